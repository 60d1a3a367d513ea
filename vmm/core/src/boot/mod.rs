//! What lies in guest memory and in registers before the first instruction.
//!
//! Application processors get nothing but their CPUID model, their MTRRs and their private area: the guest brings them up.

mod descriptors;
pub(crate) mod image;
pub(crate) mod moment;
pub(crate) mod plain;
pub(crate) mod registers;
mod tables;

use stallbench_abi::boot::BootBlock;
use stallbench_abi::layout::BOOT_BLOCK;

use crate::memory::GuestMemory;
use image::{ImageError, Segment};

/// Lays out guest memory: image, boot block, descriptor tables and page tables of each vCPU. Gives the guest's entry point.
pub(crate) fn prepare(memory: &GuestMemory, image: &[u8], boot: &BootBlock, vcpus: usize) -> Result<u64, ImageError> {
    let (entry, segments) = image::load(memory, image)?;
    write(memory.write_plain(BOOT_BLOCK, boot));
    tables::write_shared(memory, &segments);
    for vcpu in 0..vcpus {
        tables::write_private(memory, vcpu);
        descriptors::write(memory, vcpu);
    }
    Ok(entry)
}

/// Lays out the memory of one vCPU that keeps no contract: pieces of read-only code and data, each with its address, and the tables.
pub(crate) fn prepare_bare(memory: &GuestMemory, pieces: &[(u64, Vec<u8>)]) {
    pieces.iter().for_each(|(base, bytes)| write(memory.write(*base, bytes)));
    let segments: Vec<_> = pieces.iter().map(|(base, bytes)| Segment::code(*base, bytes.len() as u64)).collect();
    tables::write_shared(memory, &segments);
    tables::write_private(memory, 0);
    descriptors::write(memory, 0);
}

/// All that is written here lies at addresses of the layout, which the machine's memory covers.
fn write(done: bool) {
    assert!(done, "guest memory covers the layout for its number of vCPUs");
}

/// The access that a page of the image allows.
fn page_access(segments: &[Segment], page: u64) -> Option<tables::Access> {
    let holding = segments.iter().filter(|segment| segment.holds(page));
    holding.map(|segment| segment.access).reduce(tables::Access::union)
}
