//! The watch over a running machine, from its start to a verdict.
//!
//! ```text
//!            progress, or nobody suspicious            waits that can never end
//!          ┌──────────────────────────────┐     ┌───────────────────────────────┐
//!          ▼                              │     │                               ▼
//!       polling ── suspicion ──► first look ────┘      polling until each of them ran
//!          ▲                              │                     │          │
//!          └──────── dismissed ◄──────────┴──── progress ───────┘          ▼
//!                        ▲                                           second look ──► stall
//!                        └──────────────── not the same ───────────────────┘
//! ```
//!
//! Beside that every poll asks whether all have done their part: then one look decides that the run is over.

use std::mem::offset_of;
use std::time::{Duration, Instant};

use stallbench_abi::layout::{GHOST, PAGE, private, private_area};
use stallbench_abi::port::Doorbell;
use stallbench_abi::vcpu::{Phase, VcpuPage};
use stallbench_core::{Capture, Fault, KickCounters, Machine, MachineEvent, Paused};
use stallbench_stall::proof::{Question, Unproved};
use stallbench_stall::set::VcpuSet;
use stallbench_stall::slow::{Slow, slow};
use stallbench_stall::{Advice, Analysis, Policy, Ran, Watch, conclude, proved};
use stallbench_state::certificate::{Span, Word};
use stallbench_state::machine::VcpuState;
use stallbench_state::memory::Memory;
use stallbench_state::program::Program;

use super::cpu_time::CpuTime;
use super::ending::Ending;
use super::last_part::LastPart;
use super::patience::Patience;
use super::proof::{Reach, prove};
use super::quiet::Quiet;
use super::stop::Captured;
use super::{ExecuteError, POLL, RunPlan, poll_interval};
use crate::control::Bench;
use crate::dump::Moment;
use crate::oracle::mtrr::Expected;
use crate::outcome::{Breach, Contradiction, LogLine, ProofOutcome, RunOutcome, SlowOutcome, Stall, WatchOutcome};

/// Interval of the polls while something is about to be decided.
const CLOSE_POLL: Duration = Duration::from_micros(100);
/// Polls at that interval after a doorbell that says that an initiator is done.
const CLOSE_POLLS: u32 = 20;
/// Lines of a guest's log that are kept.
const LOG_LINES: usize = 64;
/// CPU time of a busy vCPU without progress from which on a report tells of it. It decides nothing.
const SLOW: Duration = Duration::from_millis(5);
/// How long nobody gets on before a proof is tried that no published wait hints at, and how much longer than the last such attempt
/// took the guest runs until the next.
const UNHINTED: Duration = Duration::from_millis(50);
const UNHINTED_SHARE: u32 = 100;

/// How a run ended.
pub(super) enum End {
    /// Every vCPU that came up has done its part and rests.
    AtRest,
    /// Waits that can never end.
    Stall(Stall),
    /// A vCPU wrote an epitaph and stays where it is.
    Epitaph(usize),
    /// KVM cannot go on with a vCPU.
    Fault(usize, Fault),
    /// The host cannot go on: no outcome.
    Failed(ExecuteError),
    /// The budget is over.
    OverBudget,
    /// Somebody interrupted.
    Interrupted,
}

/// A machine that is stopped, and what was captured of it.
pub(super) struct Look<'m> {
    paused: Paused<'m>,
    pub(super) captured: Captured,
}

impl Look<'_> {
    /// What a dump needs of it.
    pub(super) fn moment(&self) -> Moment {
        Moment { machine: self.captured.machine.clone(), memory: self.paused.copy_memory() }
    }
}

impl<'m> Look<'m> {
    /// The machine.
    pub(super) fn into_paused(self) -> Paused<'m> {
        self.paused
    }
}

type Found<'m> = (End, Option<Look<'m>>);

/// What one look at the clock, the doorbells and the progress words says.
enum Poll {
    Nothing,
    Suspicious,
    /// Something was done to the machine from outside: what was seen before says nothing of it.
    Changed,
    End(End),
}

/// Watches one machine.
pub(super) struct Monitor<'m> {
    machine: &'m Machine,
    program: &'m Program,
    policy: Policy,
    patience: Patience,
    budget: Duration,
    watch: Watch,
    progress: Vec<u64>,
    cpu_time: CpuTime,
    last_part: LastPart,
    /// Polls that are still to be made at [`CLOSE_POLL`].
    close_polls: u32,
    /// When it is next worth a look whether all rest, and how long after a vain one.
    rest: Rest,
    log: Vec<LogLine>,
    counts: WatchOutcome,
    /// What the first look of the last suspicion found denied.
    denied: Vec<Contradiction>,
    /// The host's part in holds and faults.
    quiet: Quiet<'m>,
    /// The look at which caches were off that had to be on, and whether the place has a name.
    cache_off: Option<(Breach, bool)>,
    /// Who was found busy for longest while others waited for it.
    slow: Option<SlowOutcome>,
    /// How far the next attempt at a proof goes.
    reach: Reach,
    /// When the next attempt is made at one that no published wait hints at.
    next_attempt: Duration,
    /// The last attempts: the proof, or why there is none.
    proof: ProofOutcome,
    /// Where somebody who looks in has the machine stopped.
    bench: Bench<'m>,
}

/// Looks for the end of a run: the first as soon as all seem to rest, later ones ever less often.
#[derive(Clone, Copy)]
struct Rest {
    next: Duration,
    interval: Duration,
}

impl<'m> Monitor<'m> {
    pub(super) fn new(
        machine: &'m Machine,
        program: &'m Program,
        policy: Policy,
        began: Instant,
        plan: &'m RunPlan,
        bench: Bench<'m>,
    ) -> Self {
        let budget = plan.budget;
        let vcpus = machine.vcpus();
        let patience = Patience::since(began);
        Self {
            machine,
            program,
            policy,
            patience,
            budget,
            watch: Watch::new(policy, vcpus, patience.now()),
            progress: vec![0; vcpus],
            cpu_time: CpuTime::of(vcpus),
            last_part: LastPart::of(budget),
            close_polls: 0,
            rest: Rest { next: Duration::ZERO, interval: CLOSE_POLL },
            log: Vec::new(),
            counts: WatchOutcome::default(),
            denied: Vec::new(),
            quiet: Quiet::new(&plan.injected),
            cache_off: None,
            slow: None,
            reach: Reach::default(),
            next_attempt: UNHINTED,
            proof: ProofOutcome::default(),
            bench,
        }
    }

    /// Watches until there is a verdict. The machine stands still as long as the look is kept, where it could be stopped.
    pub(super) fn run(
        mut self,
        expected: &Expected,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(RunOutcome, Option<Look<'m>>, Bench<'m>), ExecuteError> {
        let (end, look) = self.watch(interrupted);
        let latency = self.now().saturating_sub(self.watch.last_progress());
        let look = look.or_else(|| self.last_look());
        let ending = Ending {
            machine: self.machine,
            program: self.program,
            captured: look.as_ref().map(|look| &look.captured),
            expected,
            cpu_time: &self.cpu_time,
            ran_before: self.last_part.ran_before(self.now()),
            denied: &self.denied,
            cache_off: self.cache_off.as_ref().map(|(breach, _)| breach),
            watch: &self.watch,
            latency,
        };
        let outcome = ending.outcome(end)?;
        let injected = self.quiet.outcome(self.machine);
        let slow = outcome.slow.clone().or(self.slow).filter(|_| outcome.verdict.stall().is_none());
        let watch = counts(self.counts, self.machine.kicks());
        let interventions = self.bench.interventions();
        let outcome = RunOutcome { injected, slow, proof: self.proof, log: self.log, watch, interventions, ..outcome };
        Ok((outcome, look, self.bench))
    }

    fn now(&self) -> Duration {
        self.patience.now()
    }

    fn watch(&mut self, interrupted: &dyn Fn() -> bool) -> Found<'m> {
        loop {
            let interval = self.interval();
            let found = match self.poll(interval, interrupted) {
                Poll::End(end) => Some((end, None)),
                _ if self.seem_to_rest() => self.look_for_rest(),
                Poll::Suspicious => self.look_for_stall(interrupted),
                Poll::Nothing | Poll::Changed => None,
            };
            if let Some(found) = found {
                return found;
            }
        }
    }

    fn interval(&mut self) -> Duration {
        let interval = if self.close_polls > 0 { CLOSE_POLL } else { POLL };
        self.close_polls = self.close_polls.saturating_sub(1);
        poll_interval(interval, self.progress.len())
    }

    /// Waits for an event, no longer than `interval`, and takes in what has changed.
    fn poll(&mut self, interval: Duration, interrupted: &dyn Fn() -> bool) -> Poll {
        self.patience.tick();
        if let Some(end) = self.bench.next_event(interval).and_then(|event| self.event(event)) {
            return Poll::End(end);
        }
        if interrupted() {
            return Poll::End(End::Interrupted);
        }
        self.cpu_time.note(self.machine, self.patience.share());
        match self.bench.attend(&mut self.patience, self.quiet.kept_out(), interrupted) {
            None => {}
            Some(is_changed) => {
                self.cpu_time.forgo(self.machine);
                if is_changed {
                    return Poll::Changed;
                }
            }
        }
        if self.bench.is_asked() {
            let work = self.patience.begin_work();
            self.bench.serve_asked();
            self.patience.end_work(work);
        }
        if self.now() >= self.budget {
            return Poll::End(End::OverBudget);
        }
        self.counts.polls += 1;
        self.machine.progress_into(&mut self.progress);
        self.machine.enforce_turns();
        let ran = self.cpu_time.counts();
        self.last_part.note(self.patience.now(), ran);
        match self.watch.observe(self.patience.now(), &self.progress, ran) {
            Advice::Wait => Poll::Nothing,
            Advice::Suspect => Poll::Suspicious,
        }
    }

    fn event(&mut self, event: MachineEvent) -> Option<End> {
        match event {
            MachineEvent::Doorbell { vcpu, doorbell: Doorbell::EPITAPH } => return Some(End::Epitaph(vcpu)),
            MachineEvent::Fault { vcpu, fault: fault @ (Fault::Run { .. } | Fault::Debug { .. }) } => {
                return Some(End::Failed(ExecuteError::Run { vcpu, fault }));
            }
            MachineEvent::Fault { vcpu, fault } => return Some(End::Fault(vcpu, fault)),
            MachineEvent::ThreadDied { vcpu } => return Some(End::Failed(ExecuteError::ThreadDied { vcpu })),
            MachineEvent::Doorbell { doorbell: Doorbell::DONE, .. } => self.close_polls = CLOSE_POLLS,
            MachineEvent::Log { vcpu, text } if self.log.len() < LOG_LINES => self.log.push(LogLine { vcpu, text }),
            // A guest of the contract has no exit port.
            MachineEvent::Doorbell { .. } | MachineEvent::Log { .. } | MachineEvent::Ended { .. } => {}
            // The bench has taken those that matter.
            MachineEvent::Stopped { .. } => {}
        }
        None
    }

    /// Whether all vCPUs publish that they have done their part and idle. A hint, read while they run.
    fn seem_to_rest(&self) -> bool {
        let memory = self.machine.memory();
        let field = |vcpu: usize, offset: usize| {
            memory.read_u32(private(vcpu) + private_area::PAGE_PUBLISHED + offset as u64).unwrap_or_default()
        };
        let idles =
            |vcpu| field(vcpu, offset_of!(VcpuPage, idle)) == 1 && field(vcpu, offset_of!(VcpuPage, depth)) == 0;
        let rests = |vcpu| match Phase(field(vcpu, offset_of!(VcpuPage, phase))) {
            Phase::FINISHED => idles(vcpu),
            // vCPU 0 is always there.
            other => other == Phase::OFF && vcpu != 0,
        };
        self.now() >= self.rest.next && (0..self.progress.len()).all(rests)
    }

    fn look_for_rest(&mut self) -> Option<Found<'m>> {
        let look = self.look(Capture::Full)?;
        if look.captured.analysis(self.machine, self.program).is_quiescent() {
            return Some((End::AtRest, Some(look)));
        }
        self.rest.next = self.now() + self.rest.interval;
        self.rest.interval = (self.rest.interval * 2).min(self.policy.most);
        self.close_polls = 1;
        None
    }

    /// Stops the machine and captures it. It goes on when the look is over.
    fn look(&mut self, what: Capture) -> Option<Look<'m>> {
        let paused = self.bench.pause()?;
        Some(self.look_at(paused, what))
    }

    /// The last look, where none led to the end.
    fn last_look(&mut self) -> Option<Look<'m>> {
        let paused = self.bench.pause_at_end()?;
        Some(self.look_at(paused, Capture::Full))
    }

    fn look_at(&mut self, paused: Paused<'m>, what: Capture) -> Look<'m> {
        let captured = Captured::of(&paused, self.machine, what, self.quiet.kept_out());
        self.note_cache_off(&captured);
        Look { paused, captured }
    }

    /// Keeps the first look at which caches were off, or the first at a place that has a name: a wait site, a pause point.
    fn note_cache_off(&mut self, captured: &Captured) {
        if self.cache_off.as_ref().is_some_and(|(_, has_name)| *has_name) {
            return;
        }
        let found = captured.cache_off(self.machine, self.program);
        if found.as_ref().is_some_and(|(_, has_name)| *has_name || self.cache_off.is_none()) {
            self.cache_off = found;
        }
    }

    /// The first look, and where it finds waits that can never end, the second.
    fn look_for_stall(&mut self, interrupted: &dyn Fn() -> bool) -> Option<Found<'m>> {
        self.counts.suspicions += 1;
        let before = self.watch.last_progress();
        let found = self.two_looks(interrupted);
        // Progress in between has set the watch back to its beginning, where it is to stay.
        if found.is_none() && self.watch.last_progress() == before {
            self.watch.dismiss(self.now());
        }
        found
    }

    fn two_looks(&mut self, interrupted: &dyn Fn() -> bool) -> Option<Found<'m>> {
        let Look { paused, captured } = self.look(Capture::Control)?;
        let first = captured.analysis(self.machine, self.program);
        self.denied = first.contradictions().cloned().collect();
        if self.quiet.step(&paused, self.machine, &captured, &first) {
            return None;
        }
        self.note_slow(&first);
        if self.quiet.is_due(self.machine) {
            return None;
        }
        let is_hinted = !first.closure.stuck.is_empty();
        let is_tried = (is_hinted || self.now() >= self.next_attempt) && !is_coming_up(&captured);
        if is_tried && self.prove(&paused, &captured) {
            // What was stepped for the proof may have come to where the host is to act.
            if self.quiet.is_due(self.machine) {
                return None;
            }
            let last = Captured::of(&paused, self.machine, Capture::Full, self.quiet.kept_out());
            let analysis = last.analysis(self.machine, self.program);
            let end = match analysis.is_quiescent() {
                true => End::AtRest,
                false => End::Stall(proved(&analysis, self.proof.livelock)),
            };
            return Some((end, Some(Look { paused, captured: last })));
        }
        if !is_hinted {
            return None;
        }
        // Before it goes on: an entry that is counted from here on comes after the first look.
        self.cpu_time.note(self.machine, self.patience.share());
        let before = (self.cpu_time.counts().to_vec(), self.machine.entries());
        paused.resume();
        if let Some(end) = self.let_run(&first.closure.stuck, &before, interrupted)? {
            return Some((end, None));
        }
        let ran_between = self.ran_since(&before);
        let second = self.look(Capture::Full)?;
        let analysis = second.captured.analysis(self.machine, self.program);
        let stall = conclude(&first, &analysis, &ran_between, self.policy.confirm)?;
        Some((End::Stall(stall), Some(second)))
    }

    /// Tries to prove that the stopped machine goes nowhere: whether it does not.
    fn prove(&mut self, paused: &Paused<'_>, captured: &Captured) -> bool {
        let question = Question {
            machine: captured.machine.clone(),
            ghost: ghost(self.machine.vcpus()),
            host_action: None,
            kept_out: captured.kept_out.iter().collect(),
            limits: self.reach.limits,
        };
        let work = self.patience.begin_work();
        let attempt = prove(paused, self.machine, question);
        self.patience.end_work(work);
        let halts = matches!(attempt.result, Err(Unproved::Halting { .. }));
        let is_proved = self.proof.note(attempt.result, attempt.took, self.program);
        if !is_proved && !halts {
            self.reach.extend();
            self.next_attempt = self.now() + (attempt.took * UNHINTED_SHARE).max(UNHINTED);
        }
        is_proved
    }

    /// Keeps the longest time that a busy vCPU had while others waited for it.
    fn note_slow(&mut self, analysis: &Analysis<'_>) {
        let found = slow_outcome(analysis, &self.watch).filter(|slow| slow.ran >= SLOW);
        if let Some(slow) = found.filter(|slow| self.slow.as_ref().is_none_or(|most| most.ran < slow.ran)) {
            self.slow = Some(slow);
        }
    }

    /// How each vCPU has run since these CPU times counted and it had made these entries.
    fn ran_since(&self, (times, entries): &(Vec<Duration>, Vec<u64>)) -> Vec<Ran> {
        let times = self.cpu_time.counts().iter().zip(times).map(|(now, then)| now.saturating_sub(*then));
        let entries = self.machine.entries().into_iter().zip(entries).map(|(now, then)| now - then);
        times.zip(entries).map(|(time, entries)| Ran { time, entries }).collect()
    }

    /// Lets the machine run until each of `waiting` has run for long enough to have left its wait if it could.
    ///
    /// `None`: there was progress. `Some(Some(_))`: the run came to an end of another kind. However long it takes: a vCPU that
    /// the host does not run proves nothing.
    fn let_run(
        &mut self,
        waiting: &VcpuSet,
        before: &(Vec<Duration>, Vec<u64>),
        interrupted: &dyn Fn() -> bool,
    ) -> Option<Option<End>> {
        let last_progress = self.watch.last_progress();
        let interval = poll_interval(CLOSE_POLL, self.progress.len());
        loop {
            match self.poll(interval, interrupted) {
                Poll::End(end) => return Some(Some(end)),
                Poll::Changed => return None,
                Poll::Nothing | Poll::Suspicious => {}
            }
            if self.watch.last_progress() != last_progress {
                return None;
            }
            let ran = self.ran_since(before);
            if waiting.iter().all(|vcpu| ran[vcpu].is_enough(self.policy.confirm)) {
                return Some(None);
            }
        }
    }
}

/// The busy vCPU that the waits of a machine hang on, with the CPU time that it has had since the last progress.
pub(super) fn slow_outcome(analysis: &Analysis<'_>, watch: &Watch) -> Option<SlowOutcome> {
    let Slow { vcpu, doing, waiting } = slow(analysis)?;
    Some(SlowOutcome { vcpu, doing, waiting: waiting.iter().collect(), ran: watch.ran_since_progress(vcpu) })
}

/// Whether a vCPU is on its way up: it was started, and has not said so. There is much that a proof does not know on that way, and it
/// has no handlers yet for what goes wrong.
fn is_coming_up(captured: &Captured) -> bool {
    let is_up = |vcpu: &VcpuState| vcpu.mp_state.as_ref().is_ok_and(|mp_state| mp_state.is_up());
    let pages = captured.published.vcpus.iter();
    captured.machine.vcpus.iter().zip(pages).any(|(vcpu, page)| is_up(vcpu) && page.phase == Phase::OFF)
}

/// What the contract declares to decide nothing: the ghost page and the event rings.
pub(crate) fn ghost(vcpus: usize) -> Vec<Span> {
    let ring = |vcpu| (private(vcpu) + private_area::RING, private_area::END - private_area::RING);
    let spans = (0..vcpus).map(ring).chain([(GHOST, PAGE)]);
    spans.map(|(address, size)| Span { address: Word(address), size }).collect()
}

pub(super) fn counts(counts: WatchOutcome, kicks: KickCounters) -> WatchOutcome {
    let KickCounters { sent, acknowledged, stale } = kicks;
    WatchOutcome { kicks_sent: sent, kicks_acknowledged: acknowledged, kicks_stale: stale, ..counts }
}
