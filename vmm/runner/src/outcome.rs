//! What one run came to: plain data that reports and expectations read.
//!
//! Filled by [`crate::execute`] and [`crate::oracle`], owned by nobody afterwards. The JSON names of its fields are stable.

use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use stallbench_explore::MOST_OWED;
use stallbench_stall::code::Code;
use stallbench_stall::proof::{Proof, Unproved};
pub use stallbench_stall::report::{Address, Contradiction, Culprit, Member, Stall, StallKind, Strength, WaitReport};

use crate::dump::Moment;
use crate::oracle::order::{Finding, Mode, Step};
use crate::trace::Recorded;

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

fn is_nothing(count: &usize) -> bool {
    *count == 0
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

/// What a search of all schedules knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExploredOutcome {
    /// Every state is known: what is said holds for all schedules.
    pub complete: bool,
    /// The memory model: `sc`, or `tso icr=buffer buffer=256`.
    pub model: String,
    /// States of the machine.
    pub states: usize,
    /// Those of them that were not gone on from.
    pub frontier: usize,
    /// States in which a vCPU could hold back one more store than the model has it do.
    #[serde(skip_serializing_if = "is_nothing")]
    pub full: usize,
    /// All schedules with so many preemptions at most were followed, of a search that does not know all states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<usize>,
    /// Choices that were followed.
    pub transitions: usize,
    /// What KVM was asked for: what a vCPU does from one stop to the next.
    pub passages: u64,
    /// States from which the run can never end: all of them, where all states are known.
    pub stuck: usize,
    /// States in which it is over.
    pub ends: usize,
    /// The named words as the ends have them that were judged, each content once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Words>,
    /// A schedule to the verdict: preemptions, steps, and what happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleOutcome>,
    /// Reports tell what of the way matters.
    #[serde(skip)]
    pub explain: bool,
    /// The way to the verdict, for a trace.
    #[serde(skip)]
    pub recorded: Option<Arc<Recorded>>,
    /// How long the search took.
    #[serde(rename = "took_ns", serialize_with = "nanoseconds")]
    pub took: Duration,
    /// Holds of the scenario that were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Walks that were made in place of a search of all schedules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub walks: Option<WalksOutcome>,
    /// How a search goes on that does not know all states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go_on: Option<GoOn>,
}

/// Walks: one schedule after another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WalksOutcome {
    /// How each chose: `pct`, `random`.
    pub strategy: &'static str,
    /// How many.
    pub walks: u64,
    /// Those that came to no end.
    pub endless: u64,
    /// Who went on in one of them at most: vCPUs, and what was delivered to them.
    pub agents: usize,
    /// Steps of the longest.
    pub steps: usize,
    /// Of how many steps the order has to be met for a bug that is found with that probability; of `pct`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// With which probability each walk finds such a bug at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// How the way was made shorter that found something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimised: Option<MinimisedOutcome>,
}

/// A walk that was made shorter: its schedule is what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MinimisedOutcome {
    /// Its steps, as it was made.
    pub steps: usize,
    /// Its preemptions.
    pub preemptions: usize,
    /// Changes that were tried.
    pub tried: u64,
}

impl fmt::Display for WalksOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { strategy, walks, endless, agents, steps, .. } = self;
        write!(f, "{walks} walks ({strategy}) of up to {steps} steps")?;
        if *endless > 0 {
            write!(f, ", {endless} of them given up on their way")?;
        }
        match (self.depth, self.bound) {
            (Some(depth), Some(bound)) => write!(
                f,
                "; each finds a bug of depth {depth} with a probability of at least 1/({agents}·{steps}^{}) = {bound:.1e}",
                depth.saturating_sub(1)
            ),
            _ => f.write_str("; nothing is known of what they miss"),
        }
    }
}

/// How a search goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoOn {
    /// The file from which.
    pub checkpoint: PathBuf,
    /// The command.
    pub command: String,
}

impl ExploredOutcome {
    /// How far a search came that does not know all states: a fragment.
    pub fn bound(&self) -> String {
        match self.preemptions {
            _ if self.full > 0 => {
                let is_early = self.model.contains("icr=early");
                let early = is_early.then(|| format!(", or send more than {MOST_OWED} interrupts early"));
                let early = early.unwrap_or_default();
                format!("in {} of them a vcpu could hold back more stores than --buffer allows{early}", self.full)
            }
            None => "not complete even without preemptions".to_owned(),
            Some(0) => "complete without preemptions".to_owned(),
            Some(1) => "complete up to 1 preemption".to_owned(),
            Some(most) => format!("complete up to {most} preemptions"),
        }
    }
}

/// A schedule, from the start line on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScheduleOutcome {
    /// How often it leaves a vCPU that could have gone on and got something done.
    pub preemptions: usize,
    /// How many steps it takes.
    pub steps: usize,
    /// After so many of them no schedule leads to the end any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_return: Option<usize>,
    /// What decided it at the last of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turning: Option<TurningOutcome>,
    /// Behind so many of them it goes round: its last step leads to the same state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_from: Option<usize>,
    /// What happens.
    pub legs: Vec<LegOutcome>,
}

/// The last choice at which a run could still come to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TurningOutcome {
    /// What was chosen: `vcpu1 goes on`.
    pub took: String,
    /// What would have saved it: `vcpu1 took vector 0xfb`.
    pub instead: Vec<String>,
}

/// Steps in a row of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LegOutcome {
    /// The vCPU.
    pub vcpu: usize,
    /// Its first step, from 1 on.
    pub first: usize,
    /// Its last step.
    pub last: usize,
    /// What is delivered to it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takes: Option<String>,
    /// A store of its own that others see from here on, which is then all that happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lands: Option<String>,
    /// What it sends before it writes it, which is then all that happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sends: Option<String>,
    /// Where it stands then.
    pub to: String,
}

/// What attempts at a proof came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProofOutcome {
    /// How many were made.
    pub attempts: u64,
    /// Instructions that the last one stepped.
    pub steps: usize,
    /// States of the machine that the proof is about: all combinations of those of its components. In JSON if a number of 64
    /// bits holds them.
    #[serde(skip_serializing_if = "is_no_number")]
    pub states: Option<u128>,
    /// How long the machine stood still for the last attempt, in nanoseconds.
    #[serde(rename = "took_ns", serialize_with = "nanoseconds")]
    pub took: Duration,
    /// How long it stood still for all of them, in nanoseconds.
    #[serde(rename = "took_in_all_ns", serialize_with = "nanoseconds")]
    pub took_in_all: Duration,
    /// Why the last one came to no proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unproved: Option<String>,
    /// Memory that vCPUs pass to each other changes for ever.
    #[serde(skip)]
    pub livelock: bool,
    /// The proof itself.
    #[serde(skip)]
    pub proof: Option<Arc<Proof>>,
}

/// Whether JSON has no number for it.
fn is_no_number(states: &Option<u128>) -> bool {
    states.is_none_or(|states| states > u64::MAX.into())
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

impl ProofOutcome {
    /// Whether none was tried.
    pub fn is_empty(&self) -> bool {
        self.attempts == 0
    }

    /// Takes in what came of an attempt: whether it is a proof.
    pub fn note(&mut self, result: Result<Proof, Unproved>, took: Duration, code: &dyn Code) -> bool {
        self.attempts += 1;
        (self.took, self.took_in_all) = (took, self.took_in_all + took);
        match result {
            Ok(proof) => {
                (self.steps, self.livelock, self.unproved) = (proof.steps, proof.livelock, None);
                self.states = Some(proof.states());
                self.proof = Some(Arc::new(proof));
                true
            }
            Err(unproved) => {
                self.unproved = Some(unproved.told(code));
                false
            }
        }
    }
}

/// What became of a scenario's holds and faults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InjectionOutcome {
    /// The holds, in the order of the scenario.
    pub holds: Vec<HoldOutcome>,
    /// The faults, in the order of the scenario.
    pub faults: Vec<FaultOutcome>,
}

/// What became of a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HoldOutcome {
    /// As the scenario declares it.
    pub what: String,
    /// The vCPU that was held; `None`: none came there.
    pub vcpu: Option<usize>,
    /// Whether it was let go.
    pub over: bool,
    /// Whether it was to be held to the end.
    #[serde(skip)]
    pub endless: bool,
}

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultOutcome {
    /// As the scenario declares it.
    pub what: String,
    /// Who did it.
    pub by: InjectedBy,
    /// How often it took effect.
    pub hits: u32,
}

/// Who injected a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum InjectedBy {
    /// The guest's own code.
    #[serde(rename = "guest-injected")]
    Guest,
    /// The VMM.
    #[serde(rename = "host-injected")]
    Host,
}

impl InjectedBy {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Guest => "guest-injected",
            Self::Host => "host-injected",
        }
    }
}

impl InjectionOutcome {
    /// Whether there was nothing to hold and nothing to go wrong.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.faults.is_empty()
    }

    /// The declared that did not come about, a fragment each: with it, a verdict says nothing about the scenario.
    pub fn problems(&self) -> Vec<String> {
        let hold = |hold: &HoldOutcome| match hold.vcpu {
            None => Some(format!("no vCPU was ever held by '{}'", hold.what)),
            Some(vcpu) if !hold.over && !hold.endless => {
                Some(format!("vcpu{vcpu} is still held by '{}': what ends it never came", hold.what))
            }
            Some(_) => None,
        };
        let fault = |fault: &FaultOutcome| {
            (fault.hits == 0).then(|| format!("the fault '{}' found nothing to hit", fault.what))
        };
        self.holds.iter().filter_map(hold).chain(self.faults.iter().filter_map(fault)).collect()
    }
}

/// What the MTRR oracle says about the state that KVM reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MtrrOutcome {
    /// Whether all vCPUs that came up agree, hold valid values, and those that the scenario programmed. `None`: not read.
    pub consistent: Option<bool>,
    /// Whether the state differs from that at start. `None`: not read.
    pub changed: Option<bool>,
    /// What is wrong, a line each, bounded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The types of all memory, a region each, bounded; of runs that program a whole layout, where all vCPUs agree.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
}

/// What the oracle of the control registers says at the end of a run that came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ControlOutcome {
    /// Whether all vCPUs that came up agree on CR0.CD and CR4.PGE. `None`: the run did not come to its end, or they were not read.
    pub consistent: Option<bool>,
    /// What differs, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What the oracle of the order of MTRR programming says, of all vCPUs together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OrderOutcome {
    /// How it was looked at.
    pub mode: Mode,
    /// Accesses to MTRRs that were seen.
    pub accesses: u64,
    /// Instructions that were executed step by step.
    pub instructions: u64,
    /// Times that a vCPU was followed through the procedure, step by step.
    pub procedures: u64,
    /// What is known of each step of the manual.
    #[serde(serialize_with = "steps")]
    pub steps: Vec<(Step, Finding)>,
    /// What was violated: the first of each step and vCPU, bounded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<String>,
    /// Why less was seen than the mode shows, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Default for OrderOutcome {
    /// Nobody looked.
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            accesses: 0,
            instructions: 0,
            procedures: 0,
            steps: Step::ALL.into_iter().map(|step| (step, Finding::NotObserved)).collect(),
            violations: Vec::new(),
            reason: None,
        }
    }
}

impl OrderOutcome {
    /// The steps of which this is known.
    pub fn steps_that_are(&self, finding: Finding) -> impl Iterator<Item = Step> {
        self.steps.iter().filter(move |(_, found)| *found == finding).map(|(step, _)| *step)
    }
}

fn steps<S: Serializer>(steps: &[(Step, Finding)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(steps.iter().map(|(step, finding)| (step.word(), finding)))
}

/// What the oracle of the wait=0 contract says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wait0Outcome {
    /// No call with wait=0 waited for its own callback.
    Kept,
    /// One did.
    Broken,
    /// Events were lost, so it cannot be known.
    NotObserved,
    /// The guest keeps no contract.
    NotApplicable,
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
    fn search_with_a_full_buffer_is_complete_up_to_no_number_of_preemptions() {
        let full = ExploredOutcome { full: 3, preemptions: Some(1), ..ExploredOutcome::default() };
        assert_eq!(full.bound(), "in 3 of them a vcpu could hold back more stores than --buffer allows");
        assert_eq!(ExploredOutcome { full: 0, ..full }.bound(), "complete up to 1 preemption");
    }

    /// 255 vCPUs in a loop of eight instructions have 2^765 states.
    #[test]
    fn states_beyond_any_number_of_json_are_left_out_of_it() {
        let json = |states| serde_json::to_value(ProofOutcome { states: Some(states), ..ProofOutcome::default() });
        assert_eq!(json(4096).expect("a number")["states"], 4096);
        assert_eq!(json(u128::MAX).expect("no number").get("states"), None);
    }

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
