//! What cases program into MTRRs: the state of a replicating rendezvous, layouts, and programmes that a seed decides.

/// Variable ranges of the machine.
pub const RANGES: usize = 8;

plain_struct! {
    /// One variable range, as set_mtrr() takes it.
    pub struct RangeInput: 24 {
        /// Its base.
        pub base: u64,
        /// Its size in bytes; 0 takes the range out of use.
        pub size: u64,
        /// Its number.
        pub register: u32,
        /// Code of its memory type.
        pub memory_type: u32,
    }
}

plain_struct! {
    /// What a processor has beside its variable ranges.
    pub struct WholeInput: 104 {
        /// IA32_MTRR_DEF_TYPE.
        pub default_type: u64,
        /// The eleven fixed-range registers, in the order 250, 258, 259, 268–26F.
        pub fixed: [u64; 11],
        /// IA32_PAT.
        pub pat: u64,
    }
}

plain_struct! {
    /// A layout, as the boot block hands it to the case that programs it: first all of `whole`, replicated, then each range.
    pub struct LayoutInput: 304 {
        /// How many of `ranges` there are.
        pub count: u32,
        /// Zero.
        pub reserved: u32,
        /// Fixed ranges, default type and PAT.
        pub whole: WholeInput,
        /// The ranges, in the order in which they are programmed.
        pub ranges: [RangeInput; RANGES],
    }
}

// The state that `mtrr=all` replicates (`reg == ~0`): unlike what the VMM sets at start in each class of registers, and valid.

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
