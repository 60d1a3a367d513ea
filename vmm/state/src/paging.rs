//! From linear to guest-physical addresses, by the page tables of a vCPU (SDM 3A 5.5).
//!
//! Tables are the guest's: whatever lies in them, a walk ends, and reads no more than is bounded here.

mod mapping;

pub use mapping::{Mapping, mappings};

use crate::machine::SystemRegisters;
use crate::memory::Memory;

/// Size of the smallest page.
pub const PAGE: u64 = 4096;
/// An entry is present.
const PRESENT: u64 = 1;
/// An entry maps a page itself, above the last level.
const LARGE: u64 = 1 << 7;
/// The address in an entry, bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// CR0.PG, CR4.LA57, EFER.LMA, and the L bit of CS.
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const CS_L: u32 = 1 << 13;
/// Lowest bit of the linear address that an entry of each level decides, from the top.
const SHIFTS: [u32; 4] = [39, 30, 21, 12];

/// Whether a vCPU is in 64-bit mode with four levels of page tables: what the walks here know.
pub fn is_known(system: &SystemRegisters) -> bool {
    system.cr0 & CR0_PG != 0
        && system.efer & EFER_LMA != 0
        && system.cr4 & CR4_LA57 == 0
        && system.cs.access & CS_L != 0
}

/// Where a linear address lies in guest-physical memory; `table` is told of each entry that the walk reads.
pub fn physical(memory: &dyn Memory, cr3: u64, linear: u64, table: &mut dyn FnMut(u64)) -> Option<u64> {
    let mut base = cr3 & ADDRESS;
    for shift in SHIFTS {
        let address = base + (linear >> shift) % 512 * 8;
        table(address);
        let entry = memory.read_u64(address).filter(|entry| entry & PRESENT != 0)?;
        if is_leaf(entry, shift) {
            return Some(page_of(entry, shift) | linear & within(shift));
        }
        base = entry & ADDRESS;
    }
    None
}

/// Whether an entry of that level maps a page.
fn is_leaf(entry: u64, shift: u32) -> bool {
    shift == 12 || (shift < 39 && entry & LARGE != 0)
}

/// The page that a leaf maps.
fn page_of(entry: u64, shift: u32) -> u64 {
    entry & ADDRESS & !within(shift)
}

/// The bits of an address within what an entry of that level maps.
fn within(shift: u32) -> u64 {
    (1 << shift) - 1
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::machine::Segment;
    use crate::memory::Snippet;

    /// Present and writable, accessed and dirty; and a large page.
    const ENTRY: u64 = 0x63;
    const LARGE_PAGE: u64 = 0xe3;

    /// Page tables: the first 2 MiB are where they are, and once more at 4 MiB.
    fn memory() -> Snippet {
        let mut memory = Snippet { base: 0, bytes: vec![0; 0x2_0000] };
        let mut word = |at: usize, word: u64| memory.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        word(0x1000, 0x2000 | ENTRY);
        word(0x2000, 0x3000 | ENTRY);
        word(0x3000, LARGE_PAGE);
        word(0x3010, LARGE_PAGE);
        memory
    }

    #[test]
    fn linear_addresses_go_through_the_page_tables() {
        let memory = memory();
        let mut tables = Vec::new();
        let mut physical = |linear| physical(&memory, 0x1000, linear, &mut |entry| tables.push(entry));
        assert_eq!(physical(0x41_2000), Some(0x1_2000));
        assert_eq!((physical(0x20_0000), physical(1 << 40)), (None, None), "not present");
        assert_eq!(tables, [0x1000, 0x2000, 0x3010, 0x1000, 0x2000, 0x3008, 0x1010]);
    }

    #[test]
    fn mode_with_five_levels_is_not_known() {
        let cs = Segment { access: 0xa09b, ..Segment::default() };
        let system = SystemRegisters { cr0: 1 << 31 | 1, efer: 1 << 10, cs, ..SystemRegisters::default() };
        assert!(is_known(&system));
        assert!(!is_known(&SystemRegisters { cr4: 1 << 12, ..system }));
    }
}
