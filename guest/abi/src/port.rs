//! Doorbells: the only exits that a guest makes on purpose. A 32-bit `out` to one of these ports.

/// The port of the doorbells; the value written is a [`Doorbell`].
pub const DOORBELL: u16 = 0x5b10;

/// A spin that yields writes here once a turn: the host gives the CPU to another vCPU and does nothing else.
pub const YIELD: u16 = 0x5b14;

open_enum! {
    /// What a vCPU tells the host by [`DOORBELL`].
    pub enum Doorbell: u32 {
        /// All vCPUs are up, the case begins.
        START_LINE = 1 => "start-line",
        /// An initiator has come to the end of its part of the case.
        DONE = 2 => "done",
        /// The guest has written an epitaph and stays where it is.
        EPITAPH = 3 => "epitaph",
        /// A line of text lies in the log field of the publication page.
        LOG = 4 => "log",
    }
}
