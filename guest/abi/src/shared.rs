//! The ghost page: written by all vCPUs, read by the host, and by no decision of a guest.
//!
//! Nothing in it may decide a proof: a proof holds with these bytes replaced by any others.

/// Words that a case can name.
pub const WORD_SLOTS: usize = 16;

plain_struct! {
    /// A word of the protocol that a report shows by name.
    pub struct NamedWord: 32 {
        /// Its name, zero-padded; empty when the slot is free.
        pub name: [u8; 16],
        /// Guest-physical address; 0 when the slot is free.
        pub address: u64,
        /// Width in bytes: 4 or 8.
        pub width: u32,
        /// Zero.
        pub reserved: u32,
    }
}

plain_struct! {
    /// The ghost page, at [`crate::layout::GHOST`].
    pub struct GhostPage: 576 {
        /// Number of events recorded by all vCPUs: the next event's place in their order.
        pub event_clock: u64,
        /// Number of cross-CPU calls begun by all vCPUs.
        pub calls: u64,
        /// Zero.
        pub reserved: [u64; 6],
        /// The words that reports show by name.
        pub words: [NamedWord; WORD_SLOTS],
    }
}
