//! The event ring of a vCPU: what it did, in an order common to all vCPUs, readable after its death.
//!
//! Events are ghost: they explain, and count calls for the oracles; they prove nothing about a stall.

/// Events that a ring holds. The newest overwrites the oldest: a reader knows from [`crate::vcpu::VcpuPage::events`] how many
/// are lost.
pub const RING_EVENTS: usize = 1024;

/// Destination of an [`EventKind::IPI`] to all vCPUs but the sender.
pub const TO_ALL_BUT_SELF: u64 = u64::MAX;
/// Destination of an [`EventKind::IPI`] to all vCPUs.
pub const TO_ALL: u64 = u64::MAX - 1;
/// Address of an [`EventKind::ALLOC`] that failed because the scenario says so.
pub const INJECTED_FAILURE: u64 = 1;
/// Target of an [`EventKind::QUEUE`] on the list of all multi-target calls.
pub const LIST_OF_ALL: u32 = u32::MAX;

open_enum! {
    /// What happened. The meaning of `arg`, `a` and `b` stands beside each.
    pub enum EventKind: u16 {
        /// A cross-CPU call begins. arg: its wait argument (0 or 1) | [`CallShape`] << 8, a: number of the call, b: function.
        CALL = 1 => "call",
        /// The call returns to its caller. arg: 0, or 1 for an error (target offline, timed out), a: number of the call.
        CALL_RETURN = 2 => "call-return",
        /// An allocation. arg: its number from 1 on, a: address, 0 when nothing was left, [`INJECTED_FAILURE`] when the scenario has it fail, b: [`AllocSite`].
        ALLOC = 3 => "alloc",
        /// A record goes back to the pool. a: address.
        FREE = 4 => "free",
        /// A call goes another way for want of memory. arg: [`Fallback`], a: number of the call.
        FALLBACK = 5 => "fallback",
        /// A record is put on a queue. arg: target vCPU, or [`LIST_OF_ALL`], a: record, b: number of the call.
        QUEUE = 6 => "queue",
        /// An interprocessor interrupt is sent. arg: vector (2 for an NMI), a: destination vCPU, [`TO_ALL_BUT_SELF`] or [`TO_ALL`].
        IPI = 7 => "ipi",
        /// An interrupt handler is entered. arg: vector.
        IRQ = 8 => "irq",
        /// A callback begins. arg: the caller's vCPU, a: number of the call, b: function.
        CALLBACK = 9 => "callback",
        /// A callback has ended. a: number of the call.
        CALLBACK_END = 10 => "callback-end",
        /// A wait begins; recorded also where its condition holds at once. a: site, b: number of the call whose record is waited for, 0 for none.
        WAIT = 11 => "wait",
        /// The wait is over. arg: 0 when its condition held at the first look, else 1, a: site, b: as in [`Self::WAIT`].
        WAIT_END = 12 => "wait-end",
        /// An object of the arena begins or ends its life. arg: [`crate::arena::Life`] | generation << 8, a: address, b: name (8 bytes).
        LIFE = 13 => "life",
        /// A step of MTRR programming. arg: [`MtrrStep`], a and b: what was written, where there is something.
        MTRR = 14 => "mtrr",
        /// A grace period ended. a: its number.
        GRACE_PERIOD = 15 => "grace-period",
        /// A declared deviation takes effect. arg: the flip's number.
        FLIP = 16 => "flip",
        /// A vCPU is held at a pause point, or goes on. arg: number of the hold, a: the [point](crate::pause::Point), b: 0 when it begins, 1 when it is over.
        PAUSE = 17 => "pause",
        /// An injected fault takes effect in the guest. arg: its number, a: what is sent, as the low half of the interrupt command register, b: the vCPU that it is about.
        FAULT = 18 => "fault",
        /// A step of a protocol touches an object of the arena that is dead, or another than it holds. arg: the generation that it holds, a: address, b: the step, a [`text_at`].
        LIFE_BREACH = 19 => "life-breach",
        /// A section with interrupts off, where the scenario has a budget for it. arg: 1 when it begins, 0 when it ends, a: at its end, the clock of its beginning, b: its name, a [`text_at`].
        IRQ_OFF = 20 => "irq-off",
        /// A step of work that leaves no other trace.
        STEP = 21 => "step",
    }
}

open_enum! {
    /// The shape of a call.
    pub enum CallShape: u32 {
        /// One target.
        SINGLE = 1 => "single",
        /// A set of targets.
        MANY = 2 => "many",
    }
}

open_enum! {
    /// A place that allocates.
    pub enum AllocSite: u64 {
        /// The record of a multi-target call.
        CALL_MANY = 1 => "call_many",
        /// The record of a single-target call.
        CALL_SINGLE = 2 => "call_single",
        /// The mask of a call to all that meet a condition.
        CPU_MASK = 3 => "on_each_cpu_cond",
    }
}

open_enum! {
    /// What a call does for want of memory.
    pub enum Fallback: u32 {
        /// A multi-target call takes a record on its stack and waits for its completion.
        STACK_BROADCAST = 1 => "record on the stack, wait forced to 1",
        /// A multi-target call goes to its targets one by one.
        SERIAL = 2 => "one target after the other",
        /// A single-target call takes a record on its stack and waits for its completion.
        STACK_SINGLE = 3 => "record on the stack, flag WAIT",
        /// A single-target call takes a record on its stack and waits until the target has copied it.
        STACK_RELEASE = 4 => "record on the stack, flag RELEASE",
    }
}

open_enum! {
    /// A step of the procedure that programs MTRRs (SDM 3A 12.11.8).
    pub enum MtrrStep: u32 {
        /// Prepared: caches off, flushed, global pages off, MTRRs off.
        PREPARED = 1 => "prepared",
        /// One variable range written. a: base register, b: mask register.
        RANGE = 2 => "range",
        /// The saved state written. a: the classes that differed: 1 ranges, 2 fixed, 4 default type.
        ALL = 3 => "all",
        /// Restored: MTRRs on, caches on, global pages on.
        POSTED = 4 => "posted",
        /// A step is left out because the scenario says so. a: its number in the manual.
        SKIPPED = 5 => "skipped",
    }
}

/// A text of the image in the argument of an event: its address in bits 47:0, its length in bytes above.
pub const fn text_at(address: u64, length: usize) -> u64 {
    address & TEXT_ADDRESS | (length as u64) << 48
}

/// Address and length of a [`text_at`].
pub const fn text_of(argument: u64) -> (u64, usize) {
    (argument & TEXT_ADDRESS, (argument >> 48) as usize)
}

const TEXT_ADDRESS: u64 = (1 << 48) - 1;

plain_struct! {
    /// One event.
    pub struct Event: 32 {
        /// Its place in the order of all vCPUs' events.
        pub clock: u64,
        /// What happened.
        pub kind: EventKind,
        /// Nesting depth of the context it happened in, see [`crate::vcpu::VcpuPage::contexts`].
        pub depth: u16,
        /// See [`EventKind`].
        pub arg: u32,
        /// See [`EventKind`].
        pub a: u64,
        /// See [`EventKind`].
        pub b: u64,
    }
}

const _: () = assert!(
    (RING_EVENTS * size_of::<Event>()) as u64 == crate::layout::private_area::END - crate::layout::private_area::RING
);
