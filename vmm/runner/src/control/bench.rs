//! The machine of a run, as the thread that watches it works on it for who is in.
//!
//! ```text
//!   running ── asked to stop, a stop, progress, the end ──▶ standing still
//!      ▲                                                        │
//!      └──────────── asked to run, nobody is in any more ◀──────┘
//! ```
//!
//! The monitor of a run has a bench whether somebody may come or not, and asks it at every poll. While the machine stands still the
//! monitor waits here, and the guest is charged no time.

use std::error::Error;
use std::time::{Duration, Instant};

use stallbench_core::{HostKvm, Machine, MachineEvent, Paused};
use stallbench_debug::live::{LiveError, State, Until, Why};
use stallbench_stall::set::VcpuSet;

use super::Opened;
use super::desk::{Desk, Task};
use super::guest::Guest;
use super::hits::Hits;
use super::interventions::Interventions;
use crate::dump::Asked;
use crate::execute::patience::Patience;
use crate::execute::stop::STOP_DEADLINE;
use crate::outcome::RunOutcome;

/// How much slower a machine is, at least, each of whose instructions is stepped: what it is charged of the time.
const STEPPED: u32 = 100;
/// How long the threads of a machine may take to come to where they stand still before its first instruction. None executes anything
/// before that, so there is no hurry.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How late an interrupt is seen while the machine stands still.
const SLICE: Duration = Duration::from_millis(20);

pub(super) type Done<T> = Result<T, LiveError>;

/// The machine of a run, and what somebody who is in has had done with it.
pub(crate) struct Bench<'m> {
    pub(super) machine: &'m Machine,
    pub(super) host: &'m HostKvm,
    pub(super) guest: Guest<'m>,
    /// `None`: nobody can come in.
    pub(super) door: Option<Opened<'m>>,
    /// The machine, where it stands still for who is in.
    pub(super) held: Option<Paused<'m>>,
    /// The vCPUs that the host keeps out of the guest.
    pub(super) kept_out: VcpuSet,
    pub(super) hits: Hits,
    /// The progress of each vCPU when the machine went on, where it is to stop at any more.
    until: Option<Vec<u64>>,
    pub(super) interventions: Interventions,
    /// Who wants a dump of it, whoever is in.
    asked: Asked<'m>,
    /// The run has its verdict: nothing changes it, and when the machine goes on it is over.
    is_over: bool,
    /// How long it has stood still so far.
    stood: Duration,
}

impl<'m> Bench<'m> {
    /// Of a machine that has been started; it stands still at its start where whoever is in wants that.
    pub(crate) fn new(
        machine: &'m Machine,
        host: &'m HostKvm,
        guest: Guest<'m>,
        door: Option<Opened<'m>>,
        asked: Asked<'m>,
    ) -> Self {
        let (hits, interventions) = Default::default();
        let is_held = door.as_ref().is_some_and(|door| door.hold);
        let mut bench = Self {
            machine,
            host,
            guest,
            door,
            held: None,
            kept_out: VcpuSet::default(),
            hits,
            until: None,
            interventions,
            asked,
            is_over: false,
            stood: Duration::ZERO,
        };
        match is_held.then(|| machine.pause(START_DEADLINE)) {
            Some(Ok(paused)) => bench.hold(paused, Why::Start),
            _ => bench.tell(State::Running),
        }
        bench
    }

    /// How long the machine has stood still for who was in.
    pub(crate) fn stood(&self) -> Duration {
        self.stood
    }

    /// One of how many parts of its time the guest is charged now.
    fn share(&self) -> u32 {
        if self.hits.is_stepping() { STEPPED } else { 1 }
    }

    /// What was done to the machine from outside, a fragment each.
    pub(crate) fn interventions(&self) -> Vec<String> {
        self.interventions.told()
    }

    /// The next thing that a vCPU has to tell, but that it came to a stop, waiting for it no longer than `timeout`.
    pub(crate) fn next_event(&mut self, timeout: Duration) -> Option<MachineEvent> {
        match self.machine.next_event(timeout)? {
            MachineEvent::Stopped { vcpu, at } => {
                self.hits.take(vcpu, at);
                None
            }
            event => Some(event),
        }
    }

    /// The same of a machine that was stopped, at once. It is not given back where it stands still for a vCPU at a stop.
    pub(crate) fn event_of(&mut self, paused: Paused<'m>) -> Option<(Paused<'m>, Option<MachineEvent>)> {
        let mut paused = paused;
        loop {
            match self.machine.next_event(Duration::ZERO) {
                Some(MachineEvent::Stopped { vcpu, at }) => paused = self.hold_at_hit(paused, vcpu, at)?,
                event => return Some((paused, event)),
            }
        }
    }

    /// Stops the machine for the monitor; `None` where it cannot be stopped, or stands still for who is in.
    pub(crate) fn pause(&mut self) -> Option<Paused<'m>> {
        if self.held.is_some() {
            return None;
        }
        self.machine.pause(STOP_DEADLINE).ok()
    }

    /// The same at the end of a run, where no stop matters any more.
    pub(crate) fn pause_at_end(&mut self) -> Option<Paused<'m>> {
        self.held.take().or_else(|| self.machine.pause(STOP_DEADLINE).ok())
    }

    /// Whether somebody has asked for a dump since this last said so.
    pub(crate) fn is_asked(&mut self) -> bool {
        self.asked.is_due()
    }

    /// Gives him the machine as it stands.
    pub(crate) fn serve_asked(&mut self) {
        match &self.held {
            Some(paused) => self.asked.serve_still(paused),
            None => {
                let paused = self.pause();
                self.asked.serve(paused);
            }
        }
    }

    /// To be called at every poll: does what is asked for, in time that the guest is not charged. `None`: there was nothing to do; else
    /// whether anything was done to the machine.
    pub(crate) fn attend(
        &mut self,
        patience: &mut Patience,
        kept_out: VcpuSet,
        interrupted: &dyn Fn() -> bool,
    ) -> Option<bool> {
        if !self.is_due() {
            return None;
        }
        patience.tick();
        let is_changed = self.serve(kept_out, interrupted);
        patience.forgo();
        patience.slow_down(self.share());
        Some(is_changed)
    }

    /// Whether there is, or may be, anything to do for who is in.
    fn is_due(&self) -> bool {
        let Some(desk) = self.desk() else { return false };
        desk.is_due() || self.held.is_some() || self.hits.are_due() || self.progressed().is_some()
    }

    /// Does what is asked for, until the machine runs and nothing more is asked: whether anything was done to the machine.
    fn serve(&mut self, kept_out: VcpuSet, interrupted: &dyn Fn() -> bool) -> bool {
        let (began, done) = (Instant::now(), self.interventions.count());
        self.kept_out = kept_out;
        self.take_left_stops_away();
        self.stop_at_hit();
        self.stop_at_progress();
        while !interrupted() && self.follow() {}
        self.stood += began.elapsed();
        self.interventions.count() != done
    }

    /// Has it stand still at its end, as long as somebody who is in wants to look.
    pub(crate) fn hold_at_end(&mut self, paused: Paused<'m>, outcome: &RunOutcome, interrupted: &dyn Fn() -> bool) {
        let Some(door) = self.door.as_mut().filter(|door| door.desk().is_in()) else { return };
        let why = door.end(outcome);
        self.is_over = true;
        self.hold(paused, why);
        self.serve(self.kept_out, interrupted);
    }

    /// One thing that is asked for: whether to look for another.
    fn follow(&mut self) -> bool {
        if self.held.is_some() && self.is_asked() {
            self.serve_asked();
        }
        let timeout = if self.held.is_some() { SLICE } else { Duration::ZERO };
        match self.desk().and_then(|desk| desk.next(timeout)) {
            Some(Task::Do(job)) => job(self),
            Some(Task::Forget) => self.forget(),
            None => return self.held.is_some(),
        }
        true
    }

    /// Whoever was in has left: the machine goes on as if nobody had been there.
    fn forget(&mut self) {
        self.take_stops_away();
        self.go_on(None);
    }

    pub(super) fn desk(&self) -> Option<&Desk> {
        self.door.as_ref().map(Opened::desk)
    }

    fn tell(&self, state: State) {
        if let Some(desk) = self.desk() {
            desk.tell(state);
        }
    }

    pub(super) fn hold(&mut self, paused: Paused<'m>, why: Why) {
        self.held = Some(paused);
        self.until = None;
        self.tell(State::Stopped(why));
    }

    fn go_on(&mut self, until: Option<Vec<u64>>) {
        self.until = until;
        self.tell(State::Running);
        self.held = None;
    }

    /// Says of a machine that stands still why it does from now on.
    pub(super) fn still(&self, why: Why) {
        self.tell(State::Stopped(why));
    }

    fn stop_at_progress(&mut self) {
        let Some(vcpu) = self.progressed() else { return };
        if let Some(paused) = self.pause() {
            self.hold(paused, Why::Progress { vcpu });
        }
    }

    /// The first vCPU that has got on since the machine went on, where somebody waits for that.
    fn progressed(&self) -> Option<usize> {
        let before = self.until.as_ref()?;
        let now = self.progress();
        (0..now.len()).find(|&vcpu| now[vcpu] != before[vcpu])
    }

    fn progress(&self) -> Vec<u64> {
        let mut progress = vec![0; self.machine.vcpus()];
        self.machine.progress_into(&mut progress);
        progress
    }

    /// The machine as it stands still for who is in.
    pub(super) fn standing(&self) -> Done<&Paused<'m>> {
        self.held.as_ref().ok_or(LiveError::Running)
    }

    /// The same, where what is done to it can still matter.
    pub(super) fn open(&self) -> Done<&Paused<'m>> {
        if self.is_over {
            return Err(LiveError::Refused("the run has its verdict: nothing is done to its machine any more".into()));
        }
        self.standing()
    }

    /// Does something while the machine stands still, if only for as long as that takes.
    pub(super) fn stopped<T>(&mut self, act: impl FnOnce(&mut Self, &Paused<'m>) -> T) -> Done<T> {
        if let Some(paused) = self.held.take() {
            let done = act(self, &paused);
            self.held = Some(paused);
            return Ok(done);
        }
        let paused = self.machine.pause(STOP_DEADLINE).map_err(refused)?;
        Ok(act(self, &paused))
    }

    /// Has it stand still from now on.
    pub(super) fn stop(&mut self) -> Done<()> {
        if self.held.is_none() {
            let paused = self.machine.pause(STOP_DEADLINE).map_err(refused)?;
            self.hold(paused, Why::Asked);
        }
        Ok(())
    }

    /// Lets it go on. A vCPU that came to a stop together with the one that was told of stands there still, and is told of next.
    pub(super) fn run(&mut self, until: Until) -> Done<()> {
        if until.progress && !self.guest.publishes() {
            return Err(LiveError::Refused("a plain guest publishes no progress".into()));
        }
        let before = until.progress.then(|| self.progress());
        match self.held {
            Some(_) => self.go_on(before),
            None => self.until = before,
        }
        Ok(())
    }
}

/// What a machine said, with all reasons, as somebody who asked is told it.
pub(super) fn refused(error: impl Error) -> LiveError {
    let mut text = format!("failed to {error}");
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    LiveError::Refused(text)
}
