//! The boot block: what the host hands the guest. The guest can only read it.

use crate::fault::{FAULTS, Fault};
use crate::knob::{KNOB_SLOTS, Knob};
use crate::mtrr::LayoutInput;
use crate::pause::{HOLDS, Hold};

/// First word of a boot block.
pub const MAGIC: u64 = u64::from_le_bytes(*b"stallbnc");

plain_struct! {
    /// A range of guest-physical addresses.
    pub struct Range: 16 {
        /// First byte.
        pub base: u64,
        /// Bytes.
        pub size: u64,
    }
}

plain_struct! {
    /// What the host hands the guest, at [`crate::layout::BOOT_BLOCK`].
    pub struct BootBlock: 1808 {
        /// [`MAGIC`].
        pub magic: u64,
        /// [`crate::VERSION`].
        pub version: u32,
        /// Number of vCPUs, vCPU 0 included.
        pub vcpus: u32,
        /// Index of the case in the image's case table.
        pub case: u32,
        /// Zero.
        pub reserved: u32,
        /// Seed of everything in the guest that is random.
        pub seed: u64,
        /// What vCPUs may share.
        pub arena: Range,
        /// What vCPUs share and no decision of a guest reads.
        pub ghost: Range,
        /// Raw value of each knob, by [number](Knob::number).
        pub knobs: [u64; KNOB_SLOTS],
        /// Entries of `holds` in use.
        pub hold_count: u32,
        /// Entries of `faults` in use.
        pub fault_count: u32,
        /// Where vCPUs are held.
        pub holds: [Hold; HOLDS],
        /// What goes wrong.
        pub faults: [Fault; FAULTS],
        /// Zero.
        pub reserved_end: [u64; 3],
        /// The layout of the cases that program one.
        pub layout: LayoutInput,
    }
}

impl BootBlock {
    /// The raw value of a knob.
    pub fn knob(&self, knob: &Knob) -> u64 {
        self.knobs[knob.number as usize]
    }
}
