//! The flags of call records. Each call layer has its own, with the bits that they had in Linux.

use crate::knob::call;

/// The layers that allocate records: 2.6.28, 2.6.29, and the proposal of a RELEASE flag.
pub mod kmalloc {
    /// Somebody waits for the callback to end (`CSD_FLAG_WAIT`).
    pub const WAIT: u32 = 1;
    /// The record is the pool's (`CSD_FLAG_ALLOC`).
    pub const ALLOC: u32 = 2;
    /// Somebody waits for the record to be copied (the proposed `CSD_FLAG_RELEASE`).
    pub const RELEASE: u32 = 4;
}

/// Records per CPU, 2009 to today.
pub mod percpu {
    /// The record is in use (`CSD_FLAG_LOCK`).
    pub const LOCK: u32 = 1;
    /// Its sender waits for the callback (`CSD_FLAG_SYNCHRONOUS`, 2015).
    pub const SYNCHRONOUS: u32 = 2;
    /// Its sender waits (`CSD_TYPE_SYNC`, today); without it the record is asynchronous (`CSD_TYPE_ASYNC`).
    pub const SYNC: u32 = 0x10;
}

/// The flags of the records of a layer, a value of the knob [`call`](crate::knob::CALL): bit and name.
pub const fn flags(layer: u8) -> &'static [(u32, &'static str)] {
    match layer {
        call::KMALLOC_2_6_28 | call::KMALLOC_2_6_29 => &[(kmalloc::WAIT, "WAIT"), (kmalloc::ALLOC, "ALLOC")],
        call::RELEASE => &[(kmalloc::WAIT, "WAIT"), (kmalloc::ALLOC, "ALLOC"), (kmalloc::RELEASE, "RELEASE")],
        call::PERCPU_LOCK | call::PERCPU_LOCKLESS => &[(percpu::LOCK, "LOCK")],
        call::PERCPU_UNLOCK_FIRST => &[(percpu::LOCK, "LOCK"), (percpu::SYNCHRONOUS, "SYNCHRONOUS")],
        call::LLIST => &[(percpu::LOCK, "LOCK"), (percpu::SYNC, "SYNC")],
        _ => &[],
    }
}
