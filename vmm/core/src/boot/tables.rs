//! Page tables: identity, one set a vCPU, the other vCPUs' private areas absent (`abi::layout`).
//!
//! Accessed and dirty bits are set from the start, so that a page walk writes nothing and equal states stay equal.

use stallbench_abi::layout::{
    ARENA, ARENA_SIZE, BOOT_BLOCK, GHOST, PAGE, PAUSE, PRIVATE_STRIDE, SHARED_TABLES, XAPIC, cr3, private, private_area,
};

use super::image::Segment;
use super::{page_access, write};
use crate::memory::GuestMemory;

/// Bits of an entry (SDM 3A 5.5.4).
mod bit {
    pub(super) const PRESENT: u64 = 1;
    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const WRITE_THROUGH: u64 = 1 << 3;
    pub(super) const CACHE_DISABLED: u64 = 1 << 4;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const LARGE: u64 = 1 << 7;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
}

/// An entry that refers to a table: the leaf decides about access.
pub(super) const TABLE: u64 = bit::PRESENT | bit::WRITABLE | bit::ACCESSED;
/// What every leaf has.
const LEAF: u64 = bit::PRESENT | bit::ACCESSED | bit::DIRTY;
/// Bytes that one entry of a page directory covers.
pub(super) const LARGE_PAGE: u64 = 1 << 21;
/// Entries of a table.
const ENTRIES: u64 = 512;

/// What a page may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Reading.
    Read,
    /// Reading and executing.
    Execute,
    /// Reading and writing.
    Write,
}

impl Access {
    /// What a page that holds parts of both has to allow; images have no writable parts.
    pub(super) fn union(self, other: Self) -> Self {
        self.max(other)
    }

    fn bits(self) -> u64 {
        match self {
            Self::Read => LEAF | bit::NO_EXECUTE,
            Self::Execute => LEAF,
            Self::Write => LEAF | bit::WRITABLE | bit::NO_EXECUTE,
        }
    }
}

/// Tables that all vCPUs use.
#[derive(Clone, Copy)]
enum Shared {
    /// Over the first 2 MiB: the image.
    Image,
    /// Over the next 2 MiB: boot block, ghost page and pause page.
    Control,
    /// Page directory of the gigabyte that the local APIC lies in.
    ApicDirectory,
    /// Over the 2 MiB that it lies in.
    Apic,
}

impl Shared {
    fn address(self) -> u64 {
        SHARED_TABLES + self as u64 * PAGE
    }
}

/// Writes the tables that all vCPUs use.
pub(super) fn write_shared(memory: &GuestMemory, segments: &[Segment]) {
    for page in (0..LARGE_PAGE).step_by(PAGE as usize) {
        if let Some(access) = page_access(segments, page) {
            map(memory, Shared::Image.address(), page, access);
        }
    }
    map(memory, Shared::Control.address(), BOOT_BLOCK, Access::Read);
    map(memory, Shared::Control.address(), GHOST, Access::Write);
    map(memory, Shared::Control.address(), PAUSE, Access::Write);
    entry(memory, Shared::ApicDirectory.address(), XAPIC / LARGE_PAGE, Shared::Apic.address() | TABLE);
    let uncached = bit::CACHE_DISABLED | bit::WRITE_THROUGH;
    entry(memory, Shared::Apic.address(), XAPIC / PAGE, XAPIC | Access::Write.bits() | uncached);
}

/// Writes the tables of one vCPU: PML4, PDPT, page directory, and the table over its private area.
pub(super) fn write_private(memory: &GuestMemory, vcpu: usize) {
    let root = cr3(vcpu);
    let [pointers, directory, area] = [1, 2, 3].map(|n| root + n * PAGE);
    entry(memory, root, 0, pointers | TABLE);
    entry(memory, pointers, 0, directory | TABLE);
    entry(memory, pointers, XAPIC / LARGE_PAGE / ENTRIES, Shared::ApicDirectory.address() | TABLE);
    entry(memory, directory, 0, Shared::Image.address() | TABLE);
    entry(memory, directory, 1, Shared::Control.address() | TABLE);
    for large in (ARENA..ARENA + ARENA_SIZE).step_by(LARGE_PAGE as usize) {
        entry(memory, directory, large / LARGE_PAGE, large | bit::LARGE | Access::Write.bits());
    }
    entry(memory, directory, private(vcpu) / LARGE_PAGE, area | TABLE);
    for offset in (0..private_area::END).step_by(PAGE as usize).filter(|o| !private_area::ABSENT.contains(o)) {
        map(memory, area, private(vcpu) + offset, Access::Write);
    }
}

/// Maps a page, in the table over its 2 MiB.
fn map(memory: &GuestMemory, table: u64, page: u64, access: Access) {
    entry(memory, table, page / PAGE, page | access.bits());
}

/// Bits of a large page that everything is allowed on.
pub(super) fn large(uncached: bool) -> u64 {
    let cache = if uncached { bit::CACHE_DISABLED | bit::WRITE_THROUGH } else { 0 };
    LEAF | bit::WRITABLE | bit::LARGE | cache
}

/// Writes an entry of a table.
pub(super) fn entry(memory: &GuestMemory, table: u64, index: u64, value: u64) {
    write(memory.write_u64(table + index % ENTRIES * 8, value));
}

const _: () =
    assert!(PRIVATE_STRIDE <= LARGE_PAGE && ARENA.is_multiple_of(LARGE_PAGE) && ARENA_SIZE.is_multiple_of(LARGE_PAGE));

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_abi::layout::{CONTROL_END, IMAGE, TABLES};
    use stallbench_state::memory::Memory;

    /// Walks the tables of a vCPU as the processor does.
    fn walk(memory: &GuestMemory, vcpu: usize, address: u64) -> Option<u64> {
        let mut table = cr3(vcpu);
        for shift in [39, 30, 21, 12] {
            let entry = memory.read_u64(table + (address >> shift) % ENTRIES * 8)?;
            if entry & bit::PRESENT == 0 {
                return None;
            }
            if shift == 12 || entry & bit::LARGE != 0 {
                return Some(entry);
            }
            table = entry & 0x7f_ffff_f000;
        }
        None
    }

    fn prepared(vcpus: usize) -> GuestMemory {
        let memory = GuestMemory::new(vcpus).expect("memory");
        let image = crate::sample::elf(&[(IMAGE, &[0xf4; 0x1800])]);
        let (_, segments) = super::super::image::load(&memory, &image).expect("a good image");
        write_shared(&memory, &segments);
        (0..vcpus).for_each(|vcpu| write_private(&memory, vcpu));
        memory
    }

    #[test]
    fn private_areas_of_others_are_absent() {
        let memory = prepared(40);
        for (vcpu, other) in [(0, 1), (1, 0), (17, 16), (39, 2)] {
            let own = walk(&memory, vcpu, private(vcpu)).expect("its own page");
            assert_eq!(own & 0x7f_ffff_f000, private(vcpu));
            assert_eq!(walk(&memory, vcpu, private(other)), None);
        }
    }

    #[test]
    fn guard_pages_page_zero_and_tables_are_absent() {
        let memory = prepared(2);
        for offset in private_area::ABSENT {
            assert_eq!(walk(&memory, 1, private(1) + offset), None);
        }
        for address in [0, TABLES, CONTROL_END, cr3(1), IMAGE + 0x2000, XAPIC + PAGE] {
            assert_eq!(walk(&memory, 1, address), None, "{address:#x}");
        }
    }

    #[test]
    fn access_is_what_the_layout_says() {
        let memory = prepared(2);
        let bits = |address| walk(&memory, 1, address).map(|e| e & (bit::WRITABLE | bit::NO_EXECUTE));
        assert_eq!(bits(IMAGE + 0x1000), Some(0));
        assert_eq!(bits(BOOT_BLOCK), Some(bit::NO_EXECUTE));
        for writable in [GHOST, ARENA, ARENA + ARENA_SIZE - 1, private(1), XAPIC] {
            assert_eq!(bits(writable), Some(bit::WRITABLE | bit::NO_EXECUTE), "{writable:#x}");
        }
        let uncached = bit::CACHE_DISABLED | bit::WRITE_THROUGH;
        assert_eq!(walk(&memory, 0, XAPIC).map(|e| e & uncached), Some(uncached));
    }
}
