//! Exploring a run: every schedule of its guest, and a verdict by a free machine.
//!
//! A state that the search finds, stuck or at its end, is handed to a free machine, with local APICs in the kernel and a thread a vCPU.
//! What that comes to is the verdict: a stall is proved there as any other, an end is judged by the same oracles.

pub mod checkpoint;
pub(crate) mod death;
mod livelock;
mod pace;
pub(crate) mod safety;
mod turning;
mod walks;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use stallbench_core::HostKvm;
use stallbench_core::controlled::{ControlError, Controlled, Inject};
use stallbench_explore::{
    Ahead, ExploreError, Findings, Landed, Leg, Limits, RestoreError, Search, Settings, StartError, Stuck, Walks, Way,
    alongside,
};
use stallbench_state::memory::Memory;
use stallbench_state::program::Program;
use stallbench_state::published::Published;
use thiserror::Error;

use crate::dump::Moment;
use crate::execute::{self, ExecuteError, RunPlan, boot_block};
use crate::oracle::order::Mode;
use crate::outcome::{ExploredOutcome, GoOn, LegOutcome, RunOutcome, ScheduleOutcome, Verdict};
use crate::scenario::Injected;
use crate::trace::{Recorded, boot_hash};
use checkpoint::Saved;
pub use pace::Pace;
use pace::Timer;
pub use stallbench_explore::Counts;
pub use stallbench_explore::Walking;
pub use walks::Strategy;

/// States that are added between two looks at whoever interrupts.
const SLICE: usize = 1 << 14;
/// Kinds of ends of the run that are judged.
const MOST_ENDS: usize = 64;

/// Why a run could not be explored: the host's part, never the guest's.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExploreRunError {
    /// The host cannot.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest does not get to where exploring begins.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The free machine could not be run.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// It cannot go on from where another search was.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// How far a search goes, and who is told.
#[derive(Clone, Copy)]
pub struct Exploring<'a> {
    /// What is explored.
    pub settings: &'a Settings,
    /// Threads that ask for passages, the one that searches among them: what it comes to is the same with any number.
    pub workers: usize,
    /// How schedules are tried.
    pub strategy: Strategy,
    /// States at most.
    pub most_states: usize,
    /// Bytes of memory that they may take.
    pub most_bytes: usize,
    /// Where it goes on from.
    pub resume: Option<&'a Saved>,
    /// Is given the search when it ends before all states are known.
    pub checkpoint: &'a (dyn Fn(&Search<'_>, Cut) -> Option<GoOn> + Sync),
    /// Ends it early when it is set.
    pub interrupt: &'a AtomicBool,
    /// Is told how far it is, now and then.
    pub progress: &'a (dyn Fn(&Pace) + Sync),
}

/// Why a search ended before all states were known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Somebody interrupted it.
    Interrupted,
    /// There are more states than it may know.
    States,
    /// They take more memory than they may.
    Memory,
}

/// Explores a run. What its scenario holds up is left out: the search makes every schedule.
pub fn explore(
    host: &HostKvm,
    program: &Program,
    plan: &RunPlan,
    exploring: Exploring<'_>,
) -> Result<RunOutcome, ExploreRunError> {
    if let Some((what, why)) = plan.injected.unexplored() {
        let reason = format!("the injected fault '{what}' {why}");
        return Ok(RunOutcome::unwatched(Verdict::Budget { reason }));
    }
    let left_out = plan.injected.holds.iter().map(|(what, _)| what.clone()).collect();
    let explored = ExploredOutcome { model: exploring.settings.to_string(), left_out, ..ExploredOutcome::default() };
    let plan = controlled(plan);
    let free = Free { host, program, plan: &plan, interrupt: exploring.interrupt };
    let worker = || Search::new(free.machine().ok()?, program, exploring.settings.clone()).ok();
    alongside(exploring.workers, &worker, |ahead| free.searched(exploring, explored, ahead))
}

/// Of what cannot be explored.
fn refused(error: ExploreError, explored: ExploredOutcome, began: Instant) -> Result<RunOutcome, ExploreRunError> {
    if let ExploreError::Start(error) = error {
        return Err(error.into());
    }
    let outcome = RunOutcome::unwatched(Verdict::Budget { reason: chain(&error) });
    Ok(RunOutcome { explored: Some(explored), wall: began.elapsed(), ..outcome })
}

/// Of a guest that does not come up, with what was injected.
fn not_up(error: &StartError, injected: &Injected, explored: ExploredOutcome, began: Instant) -> RunOutcome {
    let faults: Vec<_> = injected.faults.iter().map(|(what, _)| format!("'{what}'")).collect();
    let reason = format!("with {} it does not come to where exploring begins: {}", faults.join(", "), chain(error));
    let outcome = RunOutcome::unwatched(Verdict::Budget { reason });
    RunOutcome { explored: Some(explored), wall: began.elapsed(), ..outcome }
}

/// The plan of a machine that is driven: nobody is held up, nobody looks in. What goes wrong in it is over when all vCPUs are up.
pub(crate) fn controlled(plan: &RunPlan) -> RunPlan {
    let injected = Injected { holds: Vec::new(), ..(*plan.injected).clone() };
    RunPlan { injected: Arc::new(injected), order: Mode::Off, control: None, ..plan.clone() }
}

/// Free machines.
struct Free<'a> {
    host: &'a HostKvm,
    program: &'a Program,
    plan: &'a RunPlan,
    interrupt: &'a AtomicBool,
}

type Judged = Result<Result<RunOutcome, ExecuteError>, ExploreError>;

impl fmt::Debug for Exploring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exploring").field("most_states", &self.most_states).finish_non_exhaustive()
    }
}

impl Free<'_> {
    fn machine(&self) -> Result<Controlled, ControlError> {
        Controlled::new(self.host, self.plan.vcpus, self.program.bytes(), &boot_block(self.plan))
    }

    /// Searches, with what workers bring, and judges what was found.
    fn searched(
        &self,
        exploring: Exploring<'_>,
        mut explored: ExploredOutcome,
        ahead: &Arc<Ahead>,
    ) -> Result<RunOutcome, ExploreRunError> {
        let began = Instant::now();
        let mut search = match Search::new(self.machine()?, self.program, exploring.settings.clone()) {
            Ok(search) => search,
            Err(ExploreError::Start(error)) if !self.plan.injected.faults.is_empty() => {
                return Ok(not_up(&error, &self.plan.injected, explored, began));
            }
            Err(error) => return refused(error, explored, began),
        };
        if exploring.workers > 1 {
            search.share(ahead);
        }
        if let Some(saved) = exploring.resume {
            search.restore(saved.search())?;
        }
        let outcome = match self.explore(&mut search, exploring, &mut explored) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Err(error.into()),
            Err(error) => return refused(error, explored, began),
        };
        Ok(RunOutcome { explored: Some(explored), wall: began.elapsed(), ..outcome })
    }

    fn explore(&self, search: &mut Search<'_>, exploring: Exploring<'_>, explored: &mut ExploredOutcome) -> Judged {
        let began = Instant::now();
        let mut walked_ends = Vec::new();
        let searched = match exploring.strategy {
            Strategy::Exhaustive => self.search(search, exploring),
            Strategy::Walks { walking, most, seed } => {
                let walked = self.walk(search, exploring, Walks::new(walking, seed), most);
                walked.map(|made| {
                    explored.walks = Some(walks::outcome(walking, &made));
                    walked_ends = made.ends;
                    None
                })
            }
        };
        search.end_sharing();
        let counts = search.counts();
        explored.took = began.elapsed();
        (explored.states, explored.frontier) = (counts.states, counts.frontier);
        (explored.transitions, explored.passages) = (counts.transitions, counts.passages);
        explored.preemptions = counts.preemptions.filter(|_| counts.frontier > 0);
        let cut = searched?;
        if cut == Some(Cut::Interrupted) {
            // Whoever interrupts does not wait for the rest.
            explored.go_on = (exploring.checkpoint)(search, Cut::Interrupted);
        }
        let findings = search.findings();
        (explored.complete, explored.stuck, explored.ends) = (findings.is_complete, findings.stuck, findings.ends);
        explored.full = findings.full;
        let mut judged = self.judge(search, &findings, walked_ends, explored)?;
        if let (true, Ok(RunOutcome { verdict: Verdict::Budget { .. }, moment, .. })) =
            (self.is_interrupted(), &mut judged)
        {
            // Of what is cut short nobody is told but where its checkpoint lies: it leaves nothing else.
            (explored.recorded, *moment) = (None, None);
        }
        if let (Some(cut @ (Cut::States | Cut::Memory)), Ok(RunOutcome { verdict: Verdict::Budget { .. }, .. })) =
            (cut, &judged)
        {
            explored.go_on = (exploring.checkpoint)(search, cut);
        }
        Ok(judged)
    }

    /// Until all states are known, or it is cut off: by what.
    fn search(&self, search: &mut Search<'_>, exploring: Exploring<'_>) -> Result<Option<Cut>, ExploreError> {
        let mut timer = Timer::default();
        let mut states = search.counts().states;
        loop {
            states = (states + SLICE).min(exploring.most_states);
            let is_complete = search.run(Limits { states, bytes: exploring.most_bytes })?;
            let counts = search.counts();
            (exploring.progress)(&timer.pace(counts));
            let cut = match counts.states {
                _ if is_complete => return Ok(None),
                _ if self.is_interrupted() => Cut::Interrupted,
                known if known <= states => Cut::Memory,
                known if known > exploring.most_states => Cut::States,
                _ => continue,
            };
            return Ok(Some(cut));
        }
    }

    /// What a free machine comes to from what was found. A pass is one of all ends.
    fn judge(
        &self,
        search: &mut Search<'_>,
        findings: &Findings,
        walked_ends: Vec<Way>,
        explored: &mut ExploredOutcome,
    ) -> Judged {
        if let Some(fault) = &findings.fault {
            self.show(search, explored, fault, None)?;
            let found = death::found(search, self.program, fault)?;
            // From the state before: it makes its fault anew.
            let short = search.before_fault(fault);
            return Ok(self.resume(search, fault, short)?.map(|free| death::outcome(found, free)));
        }
        if let Some(Stuck { way, no_return, turning, .. }) = &findings.stall {
            self.show(search, explored, way, Some(*no_return))?;
            let turning = turning.as_ref().map(turning::in_words);
            explored.schedule.iter_mut().for_each(|schedule| schedule.turning.clone_from(&turning));
            return Ok(self.resume(search, way, 0)?.map(|outcome| unconfirmed(outcome, "a stall")));
        }
        if let Some(livelock) = &findings.livelock {
            explored.schedule = Some(livelock::schedule(schedule(search, &livelock.way, None), livelock));
            self.record(search, explored, &livelock.way, Some(livelock.begins))?;
            return Ok(Ok(livelock::outcome(search, livelock)?));
        }
        let broken = match search.broken() {
            Ok(broken) => broken,
            Err(error) => return Ok(Ok(RunOutcome::unwatched(Verdict::Budget { reason: error.to_string() }))),
        };
        let ends = match self.judge_ends(search, walked_ends, !broken.is_empty(), explored)? {
            Ok(ends) => ends,
            Err(outcome) => return Ok(outcome),
        };
        if let Some(broken) = broken.first() {
            self.show(search, explored, &broken.way, None)?;
            return Ok(self.resume(search, &broken.way, 0)?.map(|free| safety::outcome(broken, free)));
        }
        Ok(Ok(match ends.passed {
            Some(outcome) if findings.is_complete && ends.not_judged == 0 => *outcome,
            passed => {
                let reason = self.undecided(findings, explored, ends.not_judged);
                let outcome = passed.map_or_else(|| RunOutcome::unwatched(Verdict::Pass), |outcome| *outcome);
                RunOutcome { verdict: Verdict::Budget { reason }, ..outcome }
            }
        }))
    }

    /// Shows the way to what was found.
    fn show(
        &self,
        search: &mut Search<'_>,
        explored: &mut ExploredOutcome,
        way: &Way,
        no_return: Option<usize>,
    ) -> Result<(), ExploreError> {
        explored.schedule = Some(schedule(search, way, no_return));
        self.record(search, explored, way, None)
    }

    /// Keeps a way for a trace.
    fn record(
        &self,
        search: &mut Search<'_>,
        explored: &mut ExploredOutcome,
        way: &Way,
        round_from: Option<usize>,
    ) -> Result<(), ExploreError> {
        let (start, boot) = (search.start_hash(), boot_hash(self.program, self.plan));
        let (vcpus, events, places) = (self.plan.vcpus, search.events(way)?, search.places_between());
        let sent = search.sends_nmis_and_inits();
        explored.recorded = Some(Arc::new(Recorded { start, boot, vcpus, events, round_from, places, sent }));
        Ok(())
    }

    /// Judges an end of each kind, up to one that is not in order: what comes of that is the error. With something broken on some way,
    /// what the events on the way to an end say of it is passed over.
    fn judge_ends(
        &self,
        search: &mut Search<'_>,
        walked: Vec<Way>,
        is_broken: bool,
        explored: &mut ExploredOutcome,
    ) -> Result<Result<Ends, Result<RunOutcome, ExecuteError>>, ExploreError> {
        let mut ends = Ends { passed: None, not_judged: 0 };
        let first = match walked.first() {
            Some(walked) => Some(walked.clone()),
            None => search.kinds_of_ends(&[], 1).ways.pop(),
        };
        let Some(first) = first else { return Ok(Ok(ends)) };
        self.record(search, explored, &first, None)?;
        let ways = if explored.walks.is_some() {
            walked
        } else {
            let words = named_words(&search.moment(&first, 0)?.memory);
            let kinds = search.kinds_of_ends(&words, MOST_ENDS);
            ends.not_judged = kinds.kinds - kinds.ways.len();
            kinds.ways
        };
        for end in &ways {
            match self.resume(search, end, 0)? {
                Ok(outcome) if outcome.verdict == Verdict::Pass => {
                    if !explored.words.contains(&outcome.words) {
                        explored.words.push(outcome.words.clone());
                    }
                    ends.passed = Some(Box::new(outcome));
                }
                // It is shown where it happens.
                Ok(RunOutcome { verdict: Verdict::Breach(_), .. }) if is_broken => break,
                other => {
                    self.show(search, explored, end, None)?;
                    return Ok(Err(other));
                }
            }
        }
        Ok(Ok(ends))
    }

    fn undecided(&self, findings: &Findings, explored: &ExploredOutcome, not_judged: usize) -> String {
        let ExploredOutcome { states, frontier, .. } = explored;
        if let Some(walks) = &explored.walks {
            return format!("no stall and no fault in {walks}");
        }
        if !findings.is_complete {
            let bound = explored.bound();
            if *frontier == 0 {
                return format!("{states} states, no stall and no fault among them, but {bound}");
            }
            let why =
                if self.is_interrupted() { "interrupted" } else { "as many as --max-states and --max-memory allow" };
            return format!(
                "{states} states and {frontier} of them not gone on from, {why}: no stall and no fault among them, {bound}"
            );
        }
        format!("no schedule stalls, but {not_judged} kinds of its {} ends were not judged", findings.ends)
    }

    fn resume(&self, search: &mut Search<'_>, way: &Way, short: usize) -> Judged {
        let moment = search.moment(way, short)?;
        let moment = Moment { machine: moment.machine, memory: moment.memory };
        Ok(execute::resume(self.host, self.program, self.plan, &moment, self.interrupt))
    }

    fn is_interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }
}

/// What came of the ends of a run.
struct Ends {
    /// The last that was judged to be in order.
    passed: Option<Box<RunOutcome>>,
    /// Kinds of ends that were not judged.
    not_judged: usize,
}

/// Where the words lie that the guest has given names, and how large they are.
fn named_words(memory: &dyn Memory) -> Vec<(u64, u8)> {
    let published = Published::read(memory, 0);
    let named = published.ghost.words.iter().filter(|word| word.name[0] != 0);
    named.map(|word| (word.address, if word.width == 4 { 4 } else { 8 })).collect()
}

/// What the free machine came to, where that is what was found: a schedule of its own can lead it elsewhere.
fn unconfirmed(outcome: RunOutcome, found: &str) -> RunOutcome {
    if outcome.verdict != Verdict::Pass {
        return outcome;
    }
    let reason = format!("the search found {found}, and a free machine comes from there to its end");
    RunOutcome { verdict: Verdict::Budget { reason }, ..outcome }
}

fn schedule(search: &Search<'_>, way: &Way, no_return: Option<usize>) -> ScheduleOutcome {
    let legs = search.legs(way).into_iter().map(leg).collect();
    ScheduleOutcome {
        preemptions: way.preemptions(),
        steps: way.steps(),
        no_return,
        legs,
        ..ScheduleOutcome::default()
    }
}

fn leg(Leg { vcpu, first, last, takes, lands, sends, to }: Leg) -> LegOutcome {
    let takes = takes.map(|takes| match takes {
        Inject::Vector(vector) => format!("vector {vector:#x}"),
        Inject::Nmi => "an NMI".to_owned(),
        Inject::Init => "an INIT".to_owned(),
        Inject::StartUp(vector) => format!("SIPI {vector:#x}"),
    });
    let lands = lands.map(|Landed { address, size, value }| format!("{value:#x} in {size} bytes at {address:#x}"));
    LegOutcome { vcpu, first, last, takes, lands, sends, to }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
