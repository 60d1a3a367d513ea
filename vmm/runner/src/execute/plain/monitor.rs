//! The watch over a plain guest.
//!
//! ```text
//!                    ┌────────────── not proved ──────────────┐
//!                    ▼                                        │
//!                 polling ── an attempt is due, and each ── attempt ── proved, or all halt for good ──► verdict
//!                    │       vCPU that could run has run      │
//!                    └── exit port, fault, budget ──► verdict └── exit port, fault ──► verdict
//! ```
//!
//! At the end of the budget there are more attempts, each deeper than the one before, if each vCPU that could run has.

use std::time::{Duration, Instant};

use stallbench_core::{Capture, Fault, Machine, MachineEvent, Paused};
use stallbench_stall::code::place;
use stallbench_stall::kind_without_waits;
use stallbench_stall::proof::{Limits, Loop, Question, Read, Unproved};
use stallbench_stall::set::VcpuSet;
use stallbench_state::certificate::{Span, Word};
use stallbench_state::machine::{MachineState, MpState, RFLAGS_IF, VcpuState};
use stallbench_state::program::PlainProgram;

use super::PlainPlan;
use super::ending::Ending;
use super::schedule::{Lacked, Schedule};
use crate::control::Bench;
use crate::execute::ExecuteError;
use crate::execute::last_part::LastPart;
use crate::execute::monitor::counts;
use crate::execute::patience::Patience;
use crate::execute::proof::prove;
use crate::execute::stop::STOP_DEADLINE;
use crate::outcome::{
    Address, LoopOutcome, ProofOutcome, ReadOutcome, RunOutcome, Stall, StallKind, Strength, WatchOutcome,
};
use crate::plain::{Aps, GhostSpan, GuestEnd, HostNmi};

/// Longest wait for an event: how late an interrupt, an NMI or the budget can be.
const POLL: Duration = Duration::from_millis(5);
/// The same where the monitor sees to it that vCPUs take turns, or waits for one to run.
const CLOSE_POLL: Duration = Duration::from_millis(1);
/// How long the end of a budget waits for a vCPU to run.
const GRACE: Duration = Duration::from_millis(500);

/// How a run ended.
pub(super) enum End {
    /// A vCPU wrote this status to the exit port.
    Status(usize, u32),
    /// All vCPUs that came up halt with interrupts off, which is how the guest was to end.
    Halted,
    /// A proof that nothing goes on.
    Stall(Proved),
    /// A vCPU cannot go on.
    Fault(usize, Fault),
    /// The host cannot go on: no outcome.
    Failed(ExecuteError),
    /// The budget is over.
    OverBudget,
    /// Somebody interrupted.
    Interrupted,
}

/// A machine that is stopped, and the state that it is in.
struct Stopped<'m> {
    paused: Paused<'m>,
    state: MachineState,
}

impl<'m> Stopped<'m> {
    fn of(paused: Paused<'m>) -> Self {
        let state = paused.capture(Capture::Control);
        Self { paused, state }
    }
}

/// How a run ended, and the stop that showed it.
type Found<'m> = (End, Option<Stopped<'m>>);

/// A proof, and what it says of each vCPU.
pub(super) struct Proved {
    pub(super) stall: Stall,
    pub(super) loops: Vec<LoopOutcome>,
}

/// What an attempt at a proof came to.
enum Attempt {
    /// Nothing goes on.
    Proved(Proved),
    /// Why that cannot be said.
    Unproved(String),
}

/// What the host was asked to do to the guest, and what became of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) nmi: HostNmi,
    pub(super) sent: bool,
}

/// What is known of the vCPUs since they last stood still.
struct LastLook {
    /// Those that could run then.
    could_run: Vec<usize>,
    ran: Vec<Duration>,
    entries: Vec<u64>,
}

/// Watches one machine.
pub(super) struct Monitor<'m> {
    machine: &'m Machine,
    program: &'m PlainProgram,
    plan: &'m PlainPlan,
    crowded: bool,
    patience: Patience,
    /// When the last poll was.
    now: Duration,
    schedule: Schedule,
    planned: Vec<Planned>,
    last_look: LastLook,
    ran: Vec<Duration>,
    last_part: LastPart,
    /// What attempts came to.
    proof: ProofOutcome,
    /// Why the last attempt proved nothing.
    unproved: Option<String>,
    /// What the last attempt had too little of.
    lacked: Option<(Lacked, Duration)>,
    /// How long it took.
    latency: Duration,
    counts: WatchOutcome,
    /// Where somebody who looks in has the machine stopped.
    bench: Bench<'m>,
}

impl<'m> Monitor<'m> {
    pub(super) fn new(
        machine: &'m Machine,
        program: &'m PlainProgram,
        plan: &'m PlainPlan,
        crowded: bool,
        bench: Bench<'m>,
    ) -> Self {
        let vcpus = machine.vcpus();
        let started = if plan.options.aps == Aps::Started { vcpus } else { 1 };
        let (ran, entries) = (vec![Duration::ZERO; vcpus], vec![0; vcpus]);
        let planned = |nmi: &HostNmi| Planned { nmi: *nmi, sent: false };
        Self {
            machine,
            program,
            plan,
            crowded,
            patience: Patience::since(Instant::now()),
            now: Duration::ZERO,
            schedule: Schedule::new(plan.options.suspect_every, plan.alone, vcpus),
            planned: plan.options.nmis.iter().map(planned).collect(),
            last_look: LastLook { could_run: (0..started).collect(), ran: ran.clone(), entries },
            ran,
            last_part: LastPart::of(plan.budget),
            proof: ProofOutcome::default(),
            unproved: None,
            lacked: None,
            latency: Duration::ZERO,
            counts: WatchOutcome::default(),
            bench,
        }
    }

    /// Watches until there is a verdict. The machine stands still as long as the pause is kept, where it could be stopped.
    pub(super) fn run(
        mut self,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(RunOutcome, Option<Paused<'m>>, Bench<'m>), ExecuteError> {
        let (end, stopped) = loop {
            let found = match self.poll(interrupted) {
                Some(End::OverBudget) => Some(self.last_attempts(interrupted).unwrap_or((End::OverBudget, None))),
                Some(end) => Some((end, None)),
                None => self.attempt(),
            };
            if let Some(found) = found {
                break found;
            }
        };
        let stopped = stopped.or_else(|| self.bench.pause_at_end().map(Stopped::of));
        self.machine.ran_into(&mut self.ran);
        let ending = Ending {
            machine: self.machine,
            program: self.program,
            end: self.plan.options.end,
            state: stopped.as_ref().map(|stopped| &stopped.state),
            planned: &self.planned,
            ran: &self.ran,
            // What the last attempt took was not the guest's.
            ran_before: self.last_part.ran_before(self.now),
            unproved: self.unproved.as_deref(),
            latency: self.latency,
        };
        let outcome = ending.outcome(end)?;
        let watch = counts(self.counts, self.machine.kicks());
        let interventions = self.bench.interventions();
        let outcome = RunOutcome { proof: self.proof, watch, interventions, ..outcome };
        Ok((outcome, stopped.map(|stopped| stopped.paused), self.bench))
    }

    /// Waits for an event, no longer than until something is due, and takes in what has changed.
    fn poll(&mut self, interrupted: &dyn Fn() -> bool) -> Option<End> {
        self.patience.tick();
        if let Some(end) = self.bench.next_event(self.interval()).map(end_of) {
            return Some(end);
        }
        if interrupted() {
            return Some(End::Interrupted);
        }
        self.attend(interrupted);
        if self.bench.is_asked() {
            let work = self.patience.begin_work();
            self.bench.serve_asked();
            self.patience.end_work(work);
        }
        self.machine.ran_into(&mut self.ran);
        let now = self.patience.now();
        self.now = now;
        // The last attempt waits as any other does, if not for long.
        if now >= self.plan.budget && (self.has_each_run() || now >= self.plan.budget + GRACE) {
            return Some(End::OverBudget);
        }
        self.counts.polls += 1;
        self.machine.enforce_turns();
        self.last_part.note(now, &self.ran);
        self.send_nmis(now).err().map(End::Failed)
    }

    fn interval(&self) -> Duration {
        let now = self.patience.now();
        let due = self.planned.iter().filter(|planned| !planned.sent).map(|planned| planned.nmi.after);
        let due = due.map(|at| at.saturating_sub(now)).min().unwrap_or(POLL);
        // An attempt that is due and not made waits for a vCPU to run, at the end of the budget too.
        let waits = |left: Duration| if left.is_zero() { CLOSE_POLL } else { left };
        let most = if self.crowded { CLOSE_POLL } else { POLL };
        due.min(waits(self.schedule.until(now))).min(waits(self.plan.budget.saturating_sub(now))).min(most)
    }

    /// Sends what is due. Where the machine cannot be stopped for it, the next poll tries again.
    fn send_nmis(&mut self, now: Duration) -> Result<(), ExecuteError> {
        let due = |planned: &Planned| !planned.sent && planned.nmi.after <= now;
        if !self.planned.iter().any(due) {
            return Ok(());
        }
        let Some(paused) = self.bench.pause() else { return Ok(()) };
        for planned in self.planned.iter_mut().filter(|planned| due(planned)) {
            paused.nmi(planned.nmi.vcpu, STOP_DEADLINE)?;
            planned.sent = true;
        }
        Ok(())
    }

    /// An attempt, if one is due.
    fn attempt(&mut self) -> Option<Found<'m>> {
        let now = self.patience.now();
        let is_due = self.schedule.until(now).is_zero() && now < self.plan.budget;
        if !is_due || !self.has_each_run() {
            return None;
        }
        let limits = self.schedule.begin(now);
        self.attempt_within(limits)
    }

    /// The attempts at the end of the budget: what only a deep one shows is worth the time now. A deeper one follows where the
    /// one before had too little to look at.
    fn last_attempts(&mut self, interrupted: &dyn Fn() -> bool) -> Option<Found<'m>> {
        if !self.has_each_run() {
            return None;
        }
        while let Some(limits) = self.schedule.begin_last(self.plan.budget) {
            let mut found = self.attempt_within(limits);
            // The machine stood still for who is in: there was no attempt.
            while found.is_none() && !interrupted() && self.attend(interrupted).is_some() {
                found = self.attempt_within(limits);
            }
            if found.is_some() || self.lacked.is_none() {
                return found;
            }
        }
        None
    }

    /// Does what is asked for by who is in; `None`: there was nothing.
    fn attend(&mut self, interrupted: &dyn Fn() -> bool) -> Option<bool> {
        self.bench.attend(&mut self.patience, VcpuSet::default(), interrupted)
    }

    /// A vCPU that could run and was not let into the guest since it last stood still puts the next attempt off: it is starved,
    /// and a guest is not to be blamed for what it did not get to do.
    fn has_each_run(&self) -> bool {
        let entries = self.machine.entries();
        let last = &self.last_look;
        let ran = |vcpu: &usize| self.ran[*vcpu] > last.ran[*vcpu] && entries[*vcpu] > last.entries[*vcpu];
        last.could_run.iter().all(ran)
    }

    /// Stops the machine and tries to prove that nothing goes on.
    fn attempt_within(&mut self, limits: Limits) -> Option<Found<'m>> {
        self.counts.suspicions += 1;
        self.lacked = None;
        let work = self.patience.begin_work();
        let began = Instant::now();
        let found = self.stopped(limits);
        self.latency = began.elapsed();
        self.patience.end_work(work);
        self.counts.stopped += self.latency;
        self.schedule.attempted(self.patience.now(), self.latency, self.lacked);
        found.map(|(end, stopped)| (end, Some(stopped)))
    }

    fn stopped(&mut self, limits: Limits) -> Option<(End, Stopped<'m>)> {
        let Stopped { paused, state } = self.stop()?;
        self.note_look(&state);
        // Whoever ended or died stands still for a reason that its registers do not tell.
        let (paused, event) = self.bench.event_of(paused)?;
        if let Some(event) = event {
            return Some((end_of(event), Stopped { paused, state }));
        }
        if let Some(reason) = self.to_come() {
            self.unproved = Some(reason);
            return None;
        }
        if self.plan.options.end == GuestEnd::Halted && halts_for_good(&state) {
            return Some((End::Halted, Stopped { paused, state }));
        }
        match self.prove(&paused, &state, limits) {
            Attempt::Proved(proved) => Some((End::Stall(proved), Stopped { paused, state })),
            Attempt::Unproved(reason) => {
                self.unproved = Some(reason);
                None
            }
        }
    }

    /// What the host will still do, of which nothing is known.
    fn to_come(&self) -> Option<String> {
        let planned = self.planned.iter().find(|planned| !planned.sent)?;
        let HostNmi { vcpu, after } = planned.nmi;
        Some(format!("the host has still to send vcpu{vcpu} an nmi, {} ms after the start", after.as_millis()))
    }

    fn prove(&mut self, paused: &Paused<'_>, state: &MachineState, limits: Limits) -> Attempt {
        let question = Question {
            machine: state.clone(),
            ghost: self.plan.options.ghost.iter().map(span).collect(),
            host_action: None,
            kept_out: Vec::new(),
            limits,
        };
        let attempt = prove(paused, self.machine, question);
        let lacked = match attempt.result {
            Err(Unproved::Changing { .. }) => Some(Lacked::Steps),
            Err(Unproved::TooMany { .. }) => Some(Lacked::States),
            _ => None,
        };
        self.lacked = lacked.map(|lacked| (lacked, attempt.took));
        if !self.proof.note(attempt.result, attempt.took, self.program) {
            return Attempt::Unproved(self.proof.unproved.clone().unwrap_or_default());
        }
        let kind = if self.proof.livelock { StallKind::Livelock } else { kind_without_waits(&state.vcpus) };
        let stall = Stall { kind, strength: Strength::Proved, culprit: None, root: Vec::new(), waits: Vec::new() };
        Attempt::Proved(Proved { stall, loops: self.loops() })
    }

    /// What each vCPU does, by the proof.
    fn loops(&self) -> Vec<LoopOutcome> {
        let loops = self.proof.proof.iter().flat_map(|proof| &proof.loops);
        loops.map(|of_vcpu| loop_outcome(of_vcpu, self.program)).collect()
    }

    fn note_look(&mut self, state: &MachineState) {
        self.machine.ran_into(&mut self.last_look.ran);
        self.last_look.entries = self.machine.entries();
        self.last_look.could_run = (0..state.vcpus.len()).filter(|&vcpu| could_run(&state.vcpus[vcpu])).collect();
    }

    /// Stops the machine, where it can be stopped.
    fn stop(&mut self) -> Option<Stopped<'m>> {
        self.bench.pause().map(Stopped::of)
    }
}

/// Whether a vCPU has something to execute.
pub(super) fn could_run(vcpu: &VcpuState) -> bool {
    let is_up = vcpu.mp_state.as_ref().is_ok_and(|mp_state| mp_state.is_up());
    is_up && (vcpu.mp_state != Ok(MpState::Halted) || vcpu.deliverable().is_some())
}

/// Whether every vCPU that came up halts with interrupts off and nothing pending. The others are not up, so that nothing in the
/// machine can change that.
fn halts_for_good(state: &MachineState) -> bool {
    state.vcpus.iter().all(|vcpu| match vcpu.mp_state {
        Ok(MpState::Uninitialized | MpState::InitReceived) => vcpu.index != 0,
        Ok(MpState::Halted) => is_off(vcpu),
        _ => false,
    })
}

fn is_off(vcpu: &VcpuState) -> bool {
    let (Ok(registers), Ok(apic)) = (&vcpu.registers, &vcpu.apic) else { return false };
    registers.rflags & RFLAGS_IF == 0 && apic.highest_requested().is_none() && vcpu.deliverable().is_none()
}

fn loop_outcome(of_vcpu: &Loop, program: &PlainProgram) -> LoopOutcome {
    let read = |read: &Read| ReadOutcome {
        address: Address(read.address),
        symbol: program.object(read.linear).map(|(name, offset)| with_offset(name, offset)),
        size: u8::try_from(read.size).unwrap_or_default(),
        value: Address(read.value),
        ends: read.ends.clone(),
        last_writer: None,
    };
    LoopOutcome {
        vcpu: of_vcpu.vcpu,
        does: of_vcpu.does.clone(),
        rip: place(program, of_vcpu.rip),
        reads: of_vcpu.reads.iter().map(read).collect(),
        aside: of_vcpu.aside.clone(),
    }
}

fn with_offset(name: String, offset: u64) -> String {
    if offset == 0 { name } else { format!("{name}+{offset:#x}") }
}

fn span(ghost: &GhostSpan) -> Span {
    Span { address: Word(ghost.address), size: ghost.size }
}

/// Every event of a plain guest ends its run.
fn end_of(event: MachineEvent) -> End {
    match event {
        MachineEvent::Ended { vcpu, status } => End::Status(vcpu, status),
        MachineEvent::Fault { vcpu, fault: fault @ (Fault::Run { .. } | Fault::Debug { .. }) } => {
            End::Failed(ExecuteError::Run { vcpu, fault })
        }
        MachineEvent::Fault { vcpu, fault } => End::Fault(vcpu, fault),
        MachineEvent::ThreadDied { vcpu } => End::Failed(ExecuteError::ThreadDied { vcpu }),
        // The bench takes them all.
        MachineEvent::Stopped { vcpu, .. } => End::Fault(vcpu, Fault::Unexpected { exit: "Debug".to_owned() }),
        MachineEvent::Doorbell { vcpu, .. } | MachineEvent::Log { vcpu, .. } => {
            let exit = "a doorbell without the contract".to_owned();
            End::Fault(vcpu, Fault::Unexpected { exit })
        }
    }
}
