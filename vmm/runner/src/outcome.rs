//! What one run came to: plain data that reports and expectations read.
//!
//! Filled by [`crate::execute`] and [`crate::oracle`], owned by nobody afterwards. The JSON names of its fields are stable.

mod explored;
mod injection;
mod oracles;
mod proof;

use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

pub use explored::{
    ExploredOutcome, GoOn, LegOutcome, MinimisedOutcome, ScheduleOutcome, TurningOutcome, WalksOutcome,
};
pub use injection::{FaultOutcome, HoldOutcome, InjectedBy, InjectionOutcome};
pub use oracles::{ControlOutcome, MtrrOutcome, OrderOutcome, Wait0Outcome};
pub use proof::ProofOutcome;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
pub use stallbench_stall::report::{Address, Contradiction, Culprit, Member, Stall, StallKind, Strength, WaitReport};

use crate::dump::Moment;

/// What the host concluded about a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Every vCPU did its part, and no oracle objects.
    Pass,
    /// No further progress is possible.
    Stall(Stall),
    /// An oracle on the final state objects.
    Inconsistent {
        /// What differs, or is invalid.
        reason: String,
    },
    /// An invariant was broken while running; nothing need stall.
    Breach(Breach),
    /// The guest died.
    GuestFault(GuestFault),
    /// The host did not run a vCPU that could have run.
    Starved {
        /// Which, and how much CPU time it had.
        reason: String,
    },
    /// Still changing, or not decidable, when the budget ended.
    Budget {
        /// What still changes, or what could not be decided.
        reason: String,
    },
}

impl Verdict {
    /// The word for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Stall(_) => "stall",
            Self::Inconsistent { .. } => "inconsistent",
            Self::Breach(_) => "breach",
            Self::GuestFault(_) => "guest-fault",
            Self::Starved { .. } => "starved",
            Self::Budget { .. } => "budget",
        }
    }

    /// The word for its kind, where it has kinds.
    pub const fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Stall(stall) => Some(stall.kind.word()),
            Self::Breach(breach) => Some(breach.kind.word()),
            _ => None,
        }
    }

    /// The stall, if it is one.
    pub const fn stall(&self) -> Option<&Stall> {
        match self {
            Self::Stall(stall) => Some(stall),
            _ => None,
        }
    }

    /// The words of all verdicts.
    pub const WORDS: [&'static str; 7] =
        ["pass", "stall", "inconsistent", "breach", "guest-fault", "starved", "budget"];
}

/// An invariant that was broken while running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Breach {
    /// Which.
    pub kind: BreachKind,
    /// The vCPU that broke it.
    pub vcpu: usize,
    /// The function of the protocol where it did, with the step where the protocol names it.
    pub site: String,
    /// How.
    pub reason: String,
}

/// Which invariant was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreachKind {
    /// A call with wait=0 waited for the end of its own callback.
    Wait0Waited,
    /// A step used a shared object whose life was over.
    Lifetime,
    /// A vCPU's caches were off while another was not inside the rendezvous.
    CacheOff,
    /// Interrupts were off for more visible steps than the scenario allows, or on at a step of a protocol that needs them off.
    IrqOff,
}

impl BreachKind {
    /// Every kind that this version can find.
    pub const ALL: [Self; 4] = [Self::Wait0Waited, Self::Lifetime, Self::CacheOff, Self::IrqOff];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Wait0Waited => "wait0-waited",
            Self::Lifetime => "lifetime",
            Self::CacheOff => "cache-off",
            Self::IrqOff => "irq-off",
        }
    }
}

/// How a guest died.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GuestFault {
    /// The vCPU.
    pub vcpu: usize,
    /// What happened, one line: `panic: …`, `page fault at …`, `triple fault`, or the exit that KVM reported.
    pub text: String,
    /// File of a panic; else empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Line of a panic; else 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub line: u32,
    /// Vector of an exception.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<u32>,
    /// Error code of an exception.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<u64>,
    /// Where it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rip: Option<Address>,
    /// The function at that address, with the offset.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub symbol: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(line: &u32) -> bool {
    *line == 0
}

/// Everything that one run came to.
#[derive(Clone, Debug, Serialize)]
pub struct RunOutcome {
    /// What the host concluded.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// From the start of the vCPU threads' machine being made to the end of the run, in nanoseconds.
    #[serde(rename = "wall_ns", serialize_with = "nanoseconds")]
    pub wall: Duration,
    /// From the last poll that saw a progress word change to the verdict, in nanoseconds.
    #[serde(rename = "verdict_ns", serialize_with = "nanoseconds")]
    pub verdict_latency: Duration,
    /// What the MTRR oracle says.
    pub mtrr: MtrrOutcome,
    /// What the oracle of the control registers says.
    pub control: ControlOutcome,
    /// What the oracle of the order of MTRR programming says.
    pub order: OrderOutcome,
    /// What the oracle of the wait=0 contract says.
    pub wait0: Wait0Outcome,
    /// Every breach of another kind, in the order of kinds, whatever the verdict is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breaches: Vec<Breach>,
    /// Waits for a record of an earlier call of one's own.
    pub residual_waits: usize,
    /// The named words of the protocol, as they lay in memory at the end.
    pub words: Words,
    /// Who was busy while others waited for it, where that took a while and was no stall.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<SlowOutcome>,
    /// What vCPUs published and the machine denied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contradictions: Vec<Contradiction>,
    /// Of a plain guest's stall: what each vCPU waits for, or changes for ever.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loops: Vec<LoopOutcome>,
    /// Why it is not known who last wrote what they read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unwatched: Option<String>,
    /// What a plain guest wrote to its console.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleOutcome>,
    /// The proof of a stall, or why there is none.
    #[serde(skip_serializing_if = "ProofOutcome::is_empty")]
    pub proof: ProofOutcome,
    /// What was explored, where every schedule was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explored: Option<ExploredOutcome>,
    /// A line for each vCPU.
    pub vcpu_states: Vec<VcpuSummary>,
    /// What was held and what was made to go wrong.
    #[serde(skip_serializing_if = "InjectionOutcome::is_empty")]
    pub injected: InjectionOutcome,
    /// What was done to the machine from outside, a fragment each, bounded: `vcpu1: register rip written by the debugger`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interventions: Vec<String>,
    /// Lines that the guest logged, bounded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<LogLine>,
    /// What watching and stopping the machine took.
    pub watch: WatchOutcome,
    /// The file in which the machine lies as it stood at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<PathBuf>,
    /// The file in which the schedule lies that was explored, for a replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<PathBuf>,
    /// The machine as it stood at the end, where it was kept and is not written yet.
    #[serde(skip)]
    pub moment: Option<Arc<Moment>>,
}

impl RunOutcome {
    /// Whether a free machine was looked at: of a search that ends undecided there is none.
    pub fn is_looked_at(&self) -> bool {
        self.explored.is_none() || !self.vcpu_states.is_empty()
    }

    /// Of a run that no machine was watched in.
    pub fn unwatched(verdict: Verdict) -> Self {
        Self {
            verdict,
            wall: Duration::ZERO,
            verdict_latency: Duration::ZERO,
            mtrr: MtrrOutcome::default(),
            control: ControlOutcome::default(),
            order: OrderOutcome::default(),
            wait0: Wait0Outcome::NotObserved,
            breaches: Vec::new(),
            residual_waits: 0,
            words: Words::default(),
            slow: None,
            contradictions: Vec::new(),
            loops: Vec::new(),
            unwatched: None,
            console: None,
            proof: ProofOutcome::default(),
            explored: None,
            vcpu_states: Vec::new(),
            injected: InjectionOutcome::default(),
            interventions: Vec::new(),
            log: Vec::new(),
            watch: WatchOutcome::default(),
            dump: None,
            trace: None,
            moment: None,
        }
    }
}

/// Named words of the protocol, in the guest's order; a JSON object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words(pub Vec<(String, u64)>);

impl Words {
    /// The value of a word.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(word, _)| word == name).map(|(_, value)| *value)
    }
}

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A vCPU that was busy while others waited for it: slow, not stuck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlowOutcome {
    /// The vCPU that all of them waited for in the end.
    pub vcpu: usize,
    /// What it was doing, a fragment.
    pub doing: String,
    /// Who waited for it, by whatever chain.
    pub waiting: Vec<usize>,
    /// CPU time that it had had since the last progress of any vCPU, in nanoseconds.
    #[serde(rename = "ran_ns", serialize_with = "nanoseconds")]
    pub ran: Duration,
}

/// What a vCPU was doing at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VcpuSummary {
    /// The vCPU.
    pub vcpu: usize,
    /// Where it was in its life, as it published.
    pub phase: String,
    /// What it was doing, a fragment.
    pub doing: String,
    /// What it got done.
    pub progress: u64,
    /// CPU time of its thread, in nanoseconds.
    #[serde(rename = "ran_ns", serialize_with = "nanoseconds")]
    pub ran: Duration,
}

/// What a vCPU of a plain guest does in a stall, as its own instructions say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoopOutcome {
    /// The vCPU.
    pub vcpu: usize,
    /// What it does, a fragment: `spins`, `halts with IF=0`.
    pub does: String,
    /// Where: `function+0x12`, or an address.
    pub rip: String,
    /// What it reads in every turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<ReadOutcome>,
    /// What it changes that decides nothing, a fragment each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aside: Vec<String>,
}

/// Memory that a vCPU reads in every turn of its loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReadOutcome {
    /// Where it lies.
    pub address: Address,
    /// The variable that lies there, where the guest's file names it: `lock`, `queue+0x8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// Its size in bytes.
    pub size: u8,
    /// What it holds.
    pub value: Address,
    /// What would end the loop, a fragment: `when it becomes 0`; empty where that is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ends: String,
    /// Who last changed it, a fragment: `vcpu1 at unlock+0x4 (mov)`. Where it was watched, in a second run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_writer: Option<String>,
}

/// What a plain guest wrote to its console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConsoleOutcome {
    /// The end of it; what is no UTF-8 is replaced.
    pub text: String,
    /// Bytes before it that were not kept.
    #[serde(skip_serializing_if = "is_none_dropped")]
    pub dropped: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_none_dropped(dropped: &u64) -> bool {
    *dropped == 0
}

/// A line that a guest logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// The vCPU that logged it.
    pub vcpu: usize,
    /// The line.
    pub text: String,
}

/// What watching and stopping the machine took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WatchOutcome {
    /// Polls of the progress words.
    pub polls: u64,
    /// Times the machine was stopped on suspicion.
    pub suspicions: u32,
    /// Kicks sent to vCPU threads.
    pub kicks_sent: u64,
    /// Kicks that brought a thread out of KVM_RUN.
    pub kicks_acknowledged: u64,
    /// Kicks that came when there was nothing to do.
    pub kicks_stale: u64,
    /// Wall time for which a plain guest stood still on suspicion, in nanoseconds.
    #[serde(rename = "stopped_ns", serialize_with = "nanoseconds", skip_serializing_if = "Duration::is_zero")]
    pub stopped: Duration,
}

fn nanoseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn verdict_of_stall_carries_kind_and_strength_beside_it() {
        let stall = Stall {
            kind: StallKind::Deadlock,
            strength: Strength::Observed,
            culprit: None,
            root: vec![],
            waits: vec![],
        };
        let json = serde_json::to_value(Verdict::Stall(stall)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "verdict": "stall", "kind": "deadlock", "strength": "observed", "culprit": null, "root": [], "waits": []
            })
        );
    }

    #[test]
    fn verdict_words_are_those_of_serialisation() {
        for verdict in [Verdict::Pass, Verdict::Budget { reason: String::new() }] {
            assert_eq!(serde_json::to_value(&verdict).unwrap()["verdict"], verdict.word());
            assert!(Verdict::WORDS.contains(&verdict.word()));
        }
    }

    #[test]
    fn words_serialise_in_the_order_of_the_guest() {
        let words = Words(vec![("gate".into(), 0), ("count".into(), 2)]);
        assert_eq!(serde_json::to_string(&words).unwrap(), r#"{"gate":0,"count":2}"#);
        assert_eq!((words.get("count"), words.get("flag")), (Some(2), None));
    }
}
