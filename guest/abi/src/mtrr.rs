//! The MTRR state that a replicating rendezvous programs (`mtrr=all`, `reg == ~0`): unlike what the VMM sets at start in each
//! class of registers, and valid.

/// IA32_MTRR_DEF_TYPE: E, FE, write-through.
pub const DEFAULT_TYPE: u64 = 1 << 11 | 1 << 10 | 4;

/// The eleven fixed-range registers in the order 250, 258, 259, 268–26F: write-back below 640 KiB, write-combining to
/// 768 KiB, write-protected to 896 KiB, uncacheable to 1 MiB.
pub const FIXED: [u64; 11] = [
    0x0606_0606_0606_0606,
    0x0606_0606_0606_0606,
    0x0101_0101_0101_0101,
    0x0505_0505_0505_0505,
    0x0505_0505_0505_0505,
    0x0505_0505_0505_0505,
    0x0505_0505_0505_0505,
    0,
    0,
    0,
    0,
];

/// The variable range that differs from those at start, beside the others, which stay.
pub const RANGE: usize = 2;
/// IA32_MTRR_PHYSBASE of that range: 0xe000_0000, write-combining.
pub const RANGE_BASE: u64 = 0xe000_0000 | 1;
/// IA32_MTRR_PHYSMASK of that range: 256 MiB, valid.
pub const RANGE_MASK: u64 = (!(0x1000_0000 - 1) & ((1 << crate::layout::MAX_PHYS_ADDR_BITS) - 1)) | 1 << 11;

/// IA32_PAT: write-combining in entry 3.
pub const PAT: u64 = 0x0007_0406_0107_0406;
