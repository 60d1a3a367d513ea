//! Injected faults: what a scenario makes go wrong, and who does it. What is injected is marked wherever its result is shown.
//!
//! With a local APIC in the kernel no host sees an interprocessor interrupt, so those are lost, doubled and delayed by the
//! guest's own send primitive. What a hypervisor does wrong is done by the host.

use crate::pause::Arrival;

/// Most faults of a scenario.
pub const FAULTS: usize = 8;

/// An interrupt of any kind, in [`Fault::ipi`].
pub const ANY_IPI: u32 = u32::MAX;
/// Bits of the interrupt command register that say what is sent: delivery mode and vector (SDM 3A 11.6.1).
pub const IPI_MASK: u32 = 0x7ff;

open_enum! {
    /// What goes wrong.
    pub enum FaultKind: u32 {
        /// Guest: an interprocessor interrupt is not sent.
        DROP_IPI = 1 => "drop ipi",
        /// Guest: it is sent twice.
        DUPLICATE_IPI = 2 => "duplicate ipi",
        /// Guest: it is sent only when a vCPU arrives at a pause point.
        DELAY_IPI = 3 => "delay ipi",
        /// Guest: a vCPU is never started.
        NO_START = 4 => "no-start",
        /// Host: from the moment it halts in its case, a vCPU is not let into the guest.
        KEEP_OUT = 5 => "keep-out",
        /// Host: as that, and an INIT that it got meanwhile is taken away from it.
        LOSE_INIT = 6 => "lose-init",
    }
}

impl FaultKind {
    /// Whether the host does it; else the guest.
    pub const fn is_of_host(self) -> bool {
        matches!(self, Self::KEEP_OUT | Self::LOSE_INIT)
    }
}

plain_struct! {
    /// A fault.
    pub struct Fault: 48 {
        /// What goes wrong.
        pub kind: FaultKind,
        /// Which interrupt, as the interrupt command register has it under [`IPI_MASK`], or [`ANY_IPI`].
        pub ipi: u32,
        /// Its sender, or [`crate::pause::ANY_VCPU`].
        pub from: u32,
        /// Its target, or the vCPU that it is about, or [`crate::pause::ANY_VCPU`].
        pub to: u32,
        /// Which of those interrupts, from 1 on; 0 for each of them.
        pub nth: u32,
        /// What ends it, where something does.
        pub release: crate::pause::Release,
        /// The arrival that ends it, where that does.
        pub until: Arrival,
        /// Zero.
        pub reserved: u64,
    }
}

plain_struct! {
    /// How far a fault has come.
    pub struct FaultState: 32 {
        /// Interrupts that it could have been about so far.
        pub matched: u32,
        /// How often it took effect.
        pub hits: u32,
        /// Arrivals of [`Fault::until`] so far.
        pub until: u32,
        /// Zero.
        pub reserved: u32,
        /// A delayed interrupt: the whole interrupt command register of x2APIC mode; 0 for none.
        pub deferred: u64,
        /// Zero.
        pub reserved_end: u64,
    }
}
