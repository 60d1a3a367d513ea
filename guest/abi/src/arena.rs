//! Lifetime marks: a header before each object of the arena that comes and goes.

/// First word of a mark.
pub const MARK: u32 = u32::from_le_bytes(*b"life");

open_enum! {
    /// Where an object is in its life.
    pub enum Life: u32 {
        /// In use.
        LIVE = 1 => "live",
        /// Its memory belongs to nobody: an access is a breach.
        DEAD = 2 => "dead",
    }
}

open_enum! {
    /// What an object lives on.
    pub enum Storage: u32 {
        /// For the whole run.
        STATIC = 1 => "static",
        /// Until the function that made it returns.
        STACK = 2 => "stack",
        /// Until it is freed.
        POOL = 3 => "pool",
    }
}

/// The most that a generation can be: with it an event has room for something else.
pub const GENERATIONS: u32 = (1 << 24) - 1;

/// A reference to an object of a generation, in one word: the arena ends below 4 GiB.
pub const fn reference(object: u64, generation: u32) -> u64 {
    object | (generation as u64) << 32
}

/// Address of the object of a [`reference()`], and its generation; 0 where whoever made it knew of none.
pub const fn object_of(reference: u64) -> (u64, u32) {
    (reference & u32::MAX as u64, (reference >> 32) as u32)
}

plain_struct! {
    /// The header of an object, in the 32 bytes before it.
    pub struct Mark: 32 {
        /// [`MARK`].
        pub magic: u32,
        /// Where it is in its life.
        pub life: Life,
        /// What it lives on.
        pub storage: Storage,
        /// The vCPU that made it; once it is dead, the vCPU that ended its life.
        pub owner: u32,
        /// Tells it from the others that lived there before and will after it: at most [`GENERATIONS`], never 0.
        pub generation: u32,
        /// Size of the object in bytes.
        pub size: u32,
        /// What it is, zero-padded.
        pub name: [u8; 8],
    }
}
