//! What a payload's ELF file says about itself, readable without running it.

use crate::layout::MASK_WORDS;

/// Owner name of the ELF note that carries the contract's version.
pub const NOTE_NAME: &str = "stallbench";
/// Type of that note; its descriptor is a [`Note`].
pub const NOTE_TYPE: u32 = 1;

/// Section of the [cases](Case).
pub const CASES_SECTION: &str = ".stallbench.cases";
/// Section of the [descriptors](Site) of wait sites.
pub const SITES_SECTION: &str = ".stallbench.sites";
/// Section of the [code ranges](SiteRange) of wait sites.
pub const RANGES_SECTION: &str = ".stallbench.ranges";
/// Section of the [edges](Edge) of the procedure that programs MTRRs.
pub const EDGES_SECTION: &str = ".stallbench.edges";

plain_struct! {
    /// Descriptor of the version note.
    pub struct Note: 8 {
        /// [`crate::VERSION`].
        pub version: u32,
        /// Zero.
        pub reserved: u32,
    }
}

plain_struct! {
    /// A case, as the image declares it. Its index in the section is its number.
    pub struct Case: 256 {
        /// Name, in kebab-case; zero-padded.
        pub name: [u8; 40],
        /// What happens in it, one line; zero-padded.
        pub summary: [u8; 176],
        /// Address of the function that every vCPU calls.
        pub entry: u64,
        /// The knobs that it takes, a bit for each [number](crate::knob::Knob::number).
        pub knobs: u64,
        /// Zero.
        pub reserved: [u64; 3],
    }
}

open_enum! {
    /// What a wait is for.
    pub enum SiteKind: u32 {
        /// The completion of a call's callbacks.
        COMPLETION = 1 => "completion",
        /// The acceptance of a call's record, before its callback runs.
        ACCEPTANCE = 2 => "acceptance",
        /// A record of one's own to be free again.
        RECORD = 3 => "record",
        /// The others to come to a point.
        COUNT = 4 => "count",
        /// A leave to go on.
        GATE = 5 => "gate",
        /// A lock.
        LOCK = 6 => "lock",
        /// Another vCPU to come up, or the start line.
        BRING_UP = 7 => "bring-up",
        /// The local APIC to have sent an interrupt.
        APIC = 8 => "apic",
        /// To be let go at a pause point.
        HOLD = 9 => "hold",
    }
}

plain_struct! {
    /// A place in a payload that waits.
    pub struct Site: 96 {
        /// The function of the protocol that waits; zero-padded.
        pub function: [u8; 32],
        /// Its step, where the protocol numbers them; zero-padded.
        pub step: [u8; 8],
        /// What the waited word is; zero-padded.
        pub word: [u8; 48],
        /// What the wait is for.
        pub kind: SiteKind,
        /// Zero.
        pub reserved: u32,
    }
}

plain_struct! {
    /// The spin of a wait site. A site that was inlined has more than one.
    ///
    /// While a vCPU executes it, RDI holds the address of the waited word, ESI the mask and R8D the value it is compared with:
    /// the machine itself confirms what the vCPU publishes.
    pub struct SiteRange: 24 {
        /// First byte.
        pub start: u64,
        /// Byte behind the last.
        pub end: u64,
        /// Address of the [`Site`].
        pub site: u64,
    }
}

open_enum! {
    /// Which way an edge of a procedure leads.
    pub enum EdgeKind: u64 {
        /// Into it.
        ENTRY = 1 => "entry",
        /// Out of it.
        EXIT = 2 => "exit",
    }
}

plain_struct! {
    /// An instruction at which a vCPU enters or leaves the procedure that programs MTRRs (SDM 3A 12.11.8): a host that steps
    /// through it begins and ends there.
    pub struct Edge: 16 {
        /// Address of the instruction.
        pub address: u64,
        /// Which way it leads.
        pub kind: EdgeKind,
    }
}

/// A set of vCPUs, a bit each.
pub type VcpuMask = [u64; MASK_WORDS];
