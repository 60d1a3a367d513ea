//! From linear to guest-physical addresses, by the page tables of a vCPU (SDM 3A 5.5).

use stallbench_state::machine::SystemRegisters;
use stallbench_state::memory::Memory;

/// Size of the smallest page.
pub(crate) const PAGE: u64 = 4096;
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

/// Whether a vCPU is in 64-bit mode with four levels of page tables: what the walk here knows.
pub(super) fn is_known(system: &SystemRegisters) -> bool {
    system.cr0 & CR0_PG != 0
        && system.efer & EFER_LMA != 0
        && system.cr4 & CR4_LA57 == 0
        && system.cs.access & CS_L != 0
}

/// Where a linear address lies in guest-physical memory; `table` is told of each entry that the walk reads.
pub(super) fn physical(memory: &dyn Memory, cr3: u64, linear: u64, table: &mut dyn FnMut(u64)) -> Option<u64> {
    let mut base = cr3 & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let address = base + (linear >> shift) % 512 * 8;
        table(address);
        let entry = memory.read_u64(address).filter(|entry| entry & PRESENT != 0)?;
        let is_leaf = shift == 12 || (shift < 39 && entry & LARGE != 0);
        if is_leaf {
            let within = (1 << shift) - 1;
            return Some(entry & ADDRESS & !within | linear & within);
        }
        base = entry & ADDRESS;
    }
    None
}
