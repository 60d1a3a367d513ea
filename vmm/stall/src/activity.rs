//! What each vCPU of a captured machine does, and whether it can move by itself.

use stallbench_state::apic::LocalApic;
use stallbench_state::machine::{Deliverable, MpState, Registers, Unread, VcpuState};

use crate::claim::{Claim, VcpuClaims, Wait};
use crate::graph::Node;

/// Bit 16 of a local vector table entry: masked (SDM 3A 11.5.1).
const LVT_MASKED: u32 = 1 << 16;

/// What a vCPU does.
#[derive(Clone, Debug)]
pub enum Activity<'a> {
    /// It spins at a wait site for what it says it waits for.
    Waiting(Wait<'a>),
    /// It halts with interrupts on, and none is deliverable.
    Idle,
    /// It halts with interrupts off: nothing short of an NMI or INIT moves it.
    Halted,
    /// It is about to take an interrupt.
    Interrupting(Deliverable),
    /// It would take an interrupt, and the host does not let it into the guest, as the scenario declares.
    KeptOut(Deliverable),
    /// Its local APIC timer is armed, or may be: nothing is concluded about what a timer can move.
    Timer,
    /// It was never started, or waits for a SIPI.
    Absent(MpState),
    /// It executes something else.
    Running {
        /// Where.
        rip: u64,
    },
    /// A register group that decides it could not be read: nothing is concluded.
    Unread(Unread),
}

impl<'a> Activity<'a> {
    /// What a vCPU does, by its captured state and its confirmed claims.
    pub(crate) fn of(state: &VcpuState, claims: Option<&VcpuClaims<'a>>) -> Self {
        let (registers, apic, mp_state) = match (&state.registers, &state.apic, &state.mp_state, &state.events) {
            (Ok(registers), Ok(apic), Ok(mp_state), Ok(_)) => (registers, apic, *mp_state),
            groups => return Self::Unread(first_unread(groups)),
        };
        match mp_state {
            MpState::Uninitialized | MpState::InitReceived => Self::Absent(mp_state),
            MpState::Runnable | MpState::Halted => Self::of_started(state, registers, apic, mp_state, claims),
            MpState::SipiReceived | MpState::Other(_) => Self::Running { rip: registers.rip },
        }
    }

    fn of_started(
        state: &VcpuState,
        registers: &Registers,
        apic: &LocalApic,
        mp_state: MpState,
        claims: Option<&VcpuClaims<'a>>,
    ) -> Self {
        if let Some(deliverable) = state.deliverable() {
            return Self::Interrupting(deliverable);
        }
        if registers.interrupts_enabled() && has_timer(apic) {
            return Self::Timer;
        }
        match (mp_state, claims.map(|claims| &claims.innermost)) {
            (MpState::Halted, _) if registers.interrupts_enabled() => Self::Idle,
            (MpState::Halted, _) => Self::Halted,
            // A bounded wait ends by itself: it is work, not a wait.
            (_, Some(Claim::Confirmed(wait))) if wait.claim.bounded == 0 => Self::Waiting(wait.clone()),
            _ => Self::Running { rip: registers.rip },
        }
    }

    /// What it comes to on a vCPU that the host keeps out of the guest.
    pub(crate) fn kept_out(self, kept_out: bool) -> Self {
        match self {
            Self::Interrupting(deliverable) if kept_out => Self::KeptOut(deliverable),
            other => other,
        }
    }

    /// The wait, if it waits.
    pub fn wait(&self) -> Option<&Wait<'a>> {
        match self {
            Self::Waiting(wait) => Some(wait),
            _ => None,
        }
    }

    /// Its part in the waits-for graph.
    pub(crate) fn node(&self, state: &VcpuState) -> Node {
        let moves = match self {
            Self::Interrupting(_) | Self::Timer | Self::Running { .. } | Self::Unread(_) => true,
            Self::Waiting(_) | Self::Idle | Self::Halted | Self::Absent(_) | Self::KeptOut(_) => false,
        };
        let is_absent = matches!(self, Self::Absent(_));
        Node { moves, interruptible: is_absent || is_interruptible(state), wait: self.wait().map(|wait| wait.need) }
    }
}

type Groups<'s> = (
    &'s Result<Registers, Unread>,
    &'s Result<LocalApic, Unread>,
    &'s Result<MpState, Unread>,
    &'s Result<stallbench_state::machine::Events, Unread>,
);

fn first_unread((registers, apic, mp_state, events): Groups<'_>) -> Unread {
    let unread = registers.as_ref().err().or(apic.as_ref().err()).or(mp_state.as_ref().err()).or(events.as_ref().err());
    unread.cloned().unwrap_or(Unread { what: "state".into(), reason: String::new() })
}

fn has_timer(apic: &LocalApic) -> bool {
    apic.is_enabled() && apic.lvt_timer & LVT_MASKED == 0
}

/// Whether an interrupt of any kind, sent to it now, would be taken. Where that cannot be read, it would.
fn is_interruptible(state: &VcpuState) -> bool {
    let takes_vectors = state.registers.as_ref().map_or(true, Registers::interrupts_enabled);
    let takes_nmis = state.events.as_ref().map_or(true, |events| !events.nmi_masked);
    takes_vectors || takes_nmis
}

/// An interrupt that is pending and that the vCPU does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBack {
    /// A vector, by RFLAGS.IF.
    ByFlag(u8),
    /// A vector, by the priority of the task or of what is in service.
    ByPriority(u8),
    /// A vector, by an APIC that software has not enabled.
    ByApic(u8),
    /// An NMI, by another that is being handled.
    Nmi,
}

impl HeldBack {
    /// What a vCPU holds back, if anything.
    pub fn of(state: &VcpuState) -> Option<Self> {
        let (Ok(registers), Ok(apic), Ok(events)) = (&state.registers, &state.apic, &state.events) else { return None };
        if events.nmi_pending > 0 && events.nmi_masked {
            return Some(Self::Nmi);
        }
        let vector = apic.highest_requested()?;
        match (apic.is_enabled(), apic.deliverable()) {
            (false, _) => Some(Self::ByApic(vector)),
            (true, None) => Some(Self::ByPriority(vector)),
            (true, Some(vector)) if !registers.interrupts_enabled() => Some(Self::ByFlag(vector)),
            (true, Some(_)) => None,
        }
    }
}

impl core::fmt::Display for HeldBack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::ByFlag(vector) => write!(f, "IF=0 with vector {vector:#x} pending"),
            Self::ByPriority(vector) => write!(f, "vector {vector:#x} pending below its task priority"),
            Self::ByApic(vector) => write!(f, "vector {vector:#x} pending in an APIC that is not enabled"),
            Self::Nmi => f.write_str("an NMI pending, NMIs masked"),
        }
    }
}
