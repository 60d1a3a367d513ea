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

plain_struct! {
    /// The header of an object, in the 32 bytes before it.
    pub struct Mark: 32 {
        /// [`MARK`].
        pub magic: u32,
        /// Where it is in its life.
        pub life: Life,
        /// What it lives on.
        pub storage: Storage,
        /// The vCPU that made it.
        pub owner: u32,
        /// How many objects have lived at this address.
        pub generation: u32,
        /// Size of the object in bytes.
        pub size: u32,
        /// What it is, zero-padded.
        pub name: [u8; 8],
    }
}
