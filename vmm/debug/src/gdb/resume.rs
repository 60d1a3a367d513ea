//! How the machine goes on, and why it stops again, in gdb's words.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::multithread::{
    MultiThreadResume, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use stallbench_state::machine::{MpState, VcpuState};

use super::machine::Machine;
use super::stops::Kind;
use crate::address::Address;
use crate::linear::Linear;
use crate::live::{LiveError, State, Stop, Until, Why};

/// Why the machine stands still, as gdb is told.
pub(super) type Stopped = MultiThreadStopReason<u64>;

/// Addresses that gdb is told of.
const MOST_TOLD: usize = 64;

/// `hlt`.
const HLT: u8 = 0xf4;

/// What gdb has asked for, and what is known of the end.
#[derive(Debug, Default)]
pub(super) struct Resume {
    action: Option<Action>,
    /// The vCPU that gdb was last told to look at.
    at: usize,
    /// The exit code of a run that is over and still stands there.
    code: Option<u8>,
    /// The stop behind an instruction that waits for an interrupt, while it does.
    behind: Option<u32>,
    /// The breakpoints that gdb was told of since the machine last ran, by vCPU.
    reported: BTreeMap<usize, u64>,
    /// Addresses that gdb has been told are watched slowly.
    told: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Continue,
    Step(usize),
}

impl Resume {
    /// Whether it was not told of before.
    pub(super) fn is_news(&mut self, address: u64) -> bool {
        self.told.len() < MOST_TOLD && self.told.insert(address)
    }
}

impl Machine<'_> {
    /// Does what gdb asked for. A stop, where the machine did not go on.
    pub(super) fn go(&mut self) -> Option<Stopped> {
        let action = self.resume.action.take()?;
        self.remember_end();
        if matches!(action, Action::Continue)
            && let Some(stopped) = self.untold()
        {
            return Some(stopped);
        }
        let done = match action {
            Action::Continue => {
                self.resume.reported.clear();
                self.live().and_then(|live| live.run(Until::default()))
            }
            Action::Step(vcpu) => self.step(vcpu),
        };
        match done {
            // The end of the run went by with it.
            Err(LiveError::Gone) | Ok(()) => None,
            Err(error) => {
                self.note_refusal(&error.to_string());
                Some(self.stopped(Signal(0), None))
            }
        }
    }

    /// A vCPU that stands at a breakpoint, and gdb has not heard of it: of several that come to theirs at once it is told of one, and
    /// it takes its breakpoints away and sets them anew in between.
    fn untold(&mut self) -> Option<Stopped> {
        let breaks = |rip| self.planted.iter().find(|planted| planted.is_at(rip)).map(|planted| planted.kind);
        let of = |vcpu: &VcpuState| {
            let rip = vcpu.registers.as_ref().ok().filter(|_| vcpu.mp_state == Ok(MpState::Runnable))?.rip;
            let is_news = self.resume.reported.get(&vcpu.index) != Some(&rip);
            Some((vcpu.index, rip, breaks(rip)?)).filter(|_| is_news)
        };
        let (vcpu, rip, kind) = self.session.vcpus().iter().find_map(of)?;
        self.resume.reported.insert(vcpu, rip);
        self.resume.at = vcpu;
        let tid = self.thread();
        Some(if kind == Kind::Hardware { Stopped::HwBreak(tid) } else { Stopped::SwBreak(tid) })
    }

    /// A vCPU that waits for an interrupt cannot be stepped while all others stand still: they run until it has had one.
    fn step(&mut self, vcpu: usize) -> Result<(), LiveError> {
        self.resume.at = vcpu;
        let refused = match self.live()?.step(vcpu) {
            Err(refused @ LiveError::Refused(_)) => refused,
            other => return other,
        };
        let linear = self.behind_wait(vcpu).ok_or(refused)?;
        let (number, _) = self.live()?.add(Stop::Execute { linear, vcpu: Some(vcpu) })?;
        self.resume.behind = Some(number);
        self.note(&format!("vcpu{vcpu} waits for an interrupt: all vCPUs run until it is over"));
        self.live()?.run(Until::default())
    }

    /// Where a vCPU goes on that is at a `hlt`, or in one.
    fn behind_wait(&self, vcpu: usize) -> Option<u64> {
        let vcpu = self.session.vcpus().get(vcpu)?;
        let rip = vcpu.registers.as_ref().ok()?.rip;
        let linear = Linear::of(self.session.memory(), vcpu).ok()?;
        let is_hlt = || linear.read(Address::Linear(rip), 1).is_ok_and(|bytes| bytes == [HLT]);
        match vcpu.mp_state {
            Ok(MpState::Halted) => Some(rip),
            _ => is_hlt().then_some(rip.wrapping_add(1)),
        }
    }

    /// Waits a little for the machine to stop.
    pub(super) fn wait(&mut self, timeout: Duration) -> Option<Stopped> {
        let state = self.live().ok()?.wait(timeout);
        let why = match state {
            State::Running => return None,
            State::Gone => return Some(self.resume.code.map_or(Stopped::Terminated(Signal::SIGINT), Stopped::Exited)),
            State::Stopped(why) => why,
        };
        let behind = self.resume.behind.take();
        if let Some(number) = behind {
            let _ = self.live().and_then(|live| live.remove(number));
        }
        Some(self.told(why, behind))
    }

    /// Whether there is no machine any more.
    pub(super) fn is_gone(&mut self) -> bool {
        self.session.is_gone()
    }

    /// Stops the machine, because gdb asked.
    pub(super) fn interrupt(&mut self) -> Stopped {
        if let Err(error) = self.live().and_then(|live| live.stop()) {
            self.note_refusal(&error.to_string());
        }
        self.stopped(Signal::SIGINT, None)
    }

    /// Ends the run.
    pub(super) fn end(&mut self) {
        if let Ok(live) = self.live() {
            live.end();
        }
    }

    fn told(&mut self, why: Why, behind: Option<u32>) -> Stopped {
        match why {
            Why::Start => self.stopped(Signal(0), None),
            Why::Asked => self.stopped(Signal::SIGINT, None),
            Why::Stepped { vcpu } => self.stopped(Signal::SIGTRAP, Some(vcpu)),
            Why::At { number, vcpu } if behind == Some(number) => self.stopped(Signal::SIGTRAP, vcpu),
            Why::At { number, vcpu } => self.at_stop(number, vcpu),
            Why::Progress { vcpu } => {
                self.note(&format!("vcpu{vcpu} made progress"));
                self.stopped(Signal(0), Some(vcpu))
            }
            Why::End { text, result } => {
                text.lines().for_each(|line| self.note(line));
                self.note_always("the run is over; `continue` ends the machine");
                self.resume.code = Some(exit_code(&result));
                self.stopped(Signal(0), None)
            }
        }
    }

    fn at_stop(&mut self, number: u32, vcpu: Option<usize>) -> Stopped {
        let planted = self.planted.iter().find(|planted| planted.numbers.contains(&number));
        let known = planted.map(|planted| (planted.kind, planted.address));
        self.resume.at = vcpu.unwrap_or(self.resume.at);
        let tid = self.thread();
        if let Some((Kind::Software | Kind::Hardware, address)) = known {
            self.resume.reported.insert(self.resume.at, address);
        }
        match known {
            Some((Kind::Software, _)) => Stopped::SwBreak(tid),
            Some((Kind::Hardware, _)) => Stopped::HwBreak(tid),
            Some((Kind::Watch(kind), addr)) => Stopped::Watch { tid, kind, addr },
            None => {
                self.note(&format!("stop {number} of `monitor break`"));
                self.stopped(Signal(0), vcpu)
            }
        }
    }

    fn stopped(&mut self, signal: Signal, vcpu: Option<usize>) -> Stopped {
        self.resume.at = vcpu.unwrap_or(self.resume.at);
        Stopped::SignalWithThread { tid: self.thread(), signal }
    }

    fn thread(&self) -> Tid {
        Tid::MIN.saturating_add(self.resume.at)
    }

    /// What is left of a run that is over is its exit code.
    fn remember_end(&mut self) {
        if let Some(State::Stopped(Why::End { result, .. })) = self.session.state() {
            self.resume.code = Some(exit_code(&result));
        }
    }
}

/// The exit code of a run with that result (docs/exit-codes.md): 0 where it is as expected or nothing was, else 100.
fn exit_code(result: &serde_json::Value) -> u8 {
    if result["as_expected"] == false { 100 } else { 0 }
}

impl MultiThreadResume for Machine<'_> {
    fn resume(&mut self) -> Result<(), Infallible> {
        self.resume.action.get_or_insert(Action::Continue);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.resume.action = None;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Machine<'_> {
    fn set_resume_action_step(&mut self, thread: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.resume.action = Some(Action::Step(thread.get() - 1));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Machine<'_> {
    /// All vCPUs run, or one is stepped: there is nothing between.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}
