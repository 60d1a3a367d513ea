//! Pause points: named places of a payload where a scenario can hold a vCPU, and what it holds.
//!
//! A [`Point`] is a descriptor in the image; the host names it by its address. A [`Hold`] in the boot block says which vCPU stays
//! there, at which of its arrivals, and what lets it go. The pause page holds how far that has come: decisions of the guest read
//! it, so it is no ghost memory.

/// Most holds of a scenario.
pub const HOLDS: usize = 8;
/// Stands for any vCPU.
pub const ANY_VCPU: u32 = u32::MAX;
/// Section of the [descriptors](Point) of pause points.
pub const POINTS_SECTION: &str = ".stallbench.points";

plain_struct! {
    /// A named place of a payload.
    pub struct Point: 48 {
        /// Its name, `function/step`; zero-padded.
        pub name: [u8; 48],
    }
}

plain_struct! {
    /// The arrival of a vCPU at a pause point.
    pub struct Arrival: 16 {
        /// Address of the [`Point`]; 0 for none.
        pub point: u64,
        /// The vCPU, or [`ANY_VCPU`]: then the arrivals of all are counted together.
        pub vcpu: u32,
        /// Which of its arrivals, from 1 on.
        pub nth: u32,
    }
}

open_enum! {
    /// What lets a held vCPU go.
    pub enum Release: u32 {
        /// One of the arrivals that the hold names.
        ARRIVAL = 1 => "arrival",
        /// The host, once nothing else in the machine can move.
        QUIET = 2 => "quiet",
        /// Nothing.
        NEVER = 3 => "never",
    }
}

plain_struct! {
    /// A vCPU that is held at a pause point.
    pub struct Hold: 64 {
        /// Where, and who.
        pub at: Arrival,
        /// What lets it go where that is an arrival: either of the two.
        pub until: [Arrival; 2],
        /// What lets it go.
        pub release: Release,
        /// Zero.
        pub reserved: [u32; 3],
    }
}

plain_struct! {
    /// How far a hold has come.
    pub struct HoldState: 32 {
        /// Arrivals of [`Hold::at`] so far.
        pub arrived: u32,
        /// Arrivals of [`Hold::until`] so far.
        pub until: [u32; 2],
        /// The vCPU that is or was held, plus one; 0 when none was yet.
        pub held: u32,
        /// 1 when whoever is held goes on: the word that it waits for.
        pub released: u32,
        /// Zero.
        pub reserved: [u32; 3],
    }
}

plain_struct! {
    /// The pause page, at [`crate::layout::PAUSE`].
    pub struct PausePage: 512 {
        /// The holds, in the order of the boot block.
        pub holds: [HoldState; HOLDS],
        /// The faults, in the order of the boot block.
        pub faults: [crate::fault::FaultState; crate::fault::FAULTS],
    }
}
