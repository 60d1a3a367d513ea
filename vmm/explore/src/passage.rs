//! A passage: what a vCPU does from one stop to the next.

use std::sync::Arc;

use stallbench_core::controlled::{Inject, Moved};
use thiserror::Error;

use crate::safety::Seen;

/// What makes a vCPU go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// Its next access, which reads this; 0 where it reads nothing.
    Go(u64),
    /// The same, but no farther than to the next place where one of these can come, of those that matter.
    Creep(u64, Comes),
    /// An interrupt, NMI, INIT or start-up interrupt is delivered where it stands.
    Deliver(Inject),
    /// The same of an interrupt or NMI, but no farther than to its handler's first instruction, if one of these can come on the way from there
    /// where that matters.
    Enter(Inject, Comes),
}

impl Input {
    /// Whether it is none by which the vCPU goes on where it stands, nor interrupts that.
    pub(crate) fn restarts(self) -> bool {
        matches!(self, Self::Deliver(Inject::Init | Inject::StartUp(_)))
    }

    /// What is delivered.
    pub(crate) fn delivered(self) -> Option<Inject> {
        match self {
            Self::Deliver(inject) | Self::Enter(inject, _) => Some(inject),
            Self::Go(_) | Self::Creep(..) => None,
        }
    }

    /// The same without a place at which it ends, where it can end at one.
    pub(crate) fn whole(self) -> Option<Self> {
        match self {
            Self::Creep(read, _) => Some(Self::Go(read)),
            Self::Enter(inject, _) => Some(Self::Deliver(inject)),
            Self::Go(_) | Self::Deliver(_) => None,
        }
    }
}

/// What can come to a vCPU on its way, requested or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Comes {
    /// An interrupt: it comes where interrupts are on.
    pub(crate) vector: bool,
    /// An NMI: it comes where those are not masked.
    pub(crate) nmi: bool,
    /// An INIT: it comes anywhere.
    pub(crate) init: bool,
}

/// What vCPUs send each other beside interrupts with a vector. It comes to a vCPU anywhere, if anybody sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) nmi: bool,
    pub(crate) init: bool,
}

/// What a vCPU does that others can see, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// A store.
    Store { address: u64, size: u8, value: u64 },
    /// A write to the interrupt command register.
    Send { icr: u64, x2apic: bool },
    /// The end of the interrupt in service.
    EndOfInterrupt,
}

/// A passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) effects: Arc<[Effect]>,
    /// Number of the state in which it ends.
    pub(crate) to: u32,
    /// What safety is judged by, where there is something.
    pub(crate) seen: Option<Arc<Seen>>,
}

/// What a guest does that cannot be explored. Each message is a fragment that reads well after "failed to explore:".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It accesses what is no memory that it shares and none of its own.
    #[error("vcpu {vcpu} accesses {address:#x} at {place}, where nothing is that can be shared")]
    Nowhere {
        /// The vCPU.
        vcpu: usize,
        /// Guest-physical.
        address: u64,
        /// The instruction.
        place: String,
    },
    /// It uses something of which the outcome is not known to be the same each time.
    #[error("vcpu {vcpu} {what} at {place}, in the explored part")]
    Unknown {
        /// The vCPU.
        vcpu: usize,
        /// What it does.
        what: String,
        /// The instruction.
        place: String,
    },
    /// Two vCPUs share what is not declared to be shared.
    #[error("vcpus {vcpus:?} share {address:#x} outside of the arena: one accesses it at {}, one at {}", .places[0], .places[1])]
    Shares {
        /// The vCPUs.
        vcpus: [usize; 2],
        /// Guest-physical.
        address: u64,
        /// The instruction of each.
        places: [String; 2],
    },
    /// It changes a register that is taken for fixed.
    #[error("vcpu {vcpu}: {moved}")]
    Moved {
        /// The vCPU.
        vcpu: usize,
        /// Which.
        moved: Moved,
    },
    /// Asked again, KVM did not do the same.
    #[error("vcpu {vcpu} did not do at {place} what it did before: {difference}")]
    Differs {
        /// The vCPU.
        vcpu: usize,
        /// The instruction.
        place: String,
        /// What differs.
        difference: String,
    },
}
