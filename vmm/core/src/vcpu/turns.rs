//! Turns, where vCPUs outnumber CPUs.
//!
//! A vCPU that spins keeps its CPU for a whole slice of the scheduler, to no use; one that works may hold the very lock that all
//! others spin for, and is best left alone. A guest of the contract says which of the two it does by the wait that it publishes. It
//! is only a claim, but all that depends on it is who runs when. A plain guest says nothing: each of its vCPUs has one turn.
//!
//! Each thread ends its own turns, by an alarm. One that halts sets none, so as not to be woken; whoever watches the machine
//! kicks it ([`crate::Machine::enforce_turns`]) once it has used up a turn all the same, and its alarms begin anew.

use std::mem::offset_of;
use std::time::Duration;

use stallbench_abi::layout::{private, private_area};
use stallbench_abi::vcpu::{CONTEXTS, Context, VcpuPage, Wait};
use stallbench_state::memory::Memory;

use super::alarm::Alarm;
use crate::clock::CpuClock;
use crate::kick::Link;

/// Turns in a row for a vCPU that does not say that it waits.
const AT_WORK: u32 = 8;

/// The turns of one vCPU, kept by its thread.
#[derive(Debug)]
pub(super) struct Turns {
    turn: Duration,
    /// The guest publishes its waits.
    publishes: bool,
    /// None where every vCPU has a CPU to itself.
    alarm: Option<Alarm>,
    /// Ends steps that wait in the kernel with the floor; made when it is first asked for.
    limit: Option<Alarm>,
    /// CPU time of the thread when its turn began.
    began: Duration,
}

impl Turns {
    /// Turns of this length for the calling thread, if it has to take turns at all.
    pub(super) fn new(turn: Option<Duration>, publishes: bool) -> Self {
        let alarm = turn.and_then(|_| Alarm::new());
        Self { turn: turn.unwrap_or_default(), publishes, alarm, limit: None, began: Duration::ZERO }
    }

    /// Lets another thread have the CPU, and begins a new turn when this one has it again.
    pub(super) fn give_up(&mut self, link: &Link) {
        std::thread::yield_now();
        self.began = CpuClock::OWN.now();
        link.begin_turn(self.began);
        self.set_alarm();
    }

    /// After an interruption that nobody asked for: whether it was the alarm that ended the turn of this vCPU.
    pub(super) fn is_over(&self, memory: &impl Memory, vcpu: usize) -> bool {
        if self.alarm.is_none() {
            return false;
        }
        let used = CpuClock::OWN.now().saturating_sub(self.began);
        // The alarm goes by wall time and a turn by CPU time: what others had of the CPU in between is missing from it. Where that
        // is no more than half a turn, the turn is over, rather than half as long again. Where it is more, the thread halted or
        // hardly ran; then no alarm is set, so as not to wake a vCPU that halts, and whoever watches the machine ends the turn.
        let allowance = self.turn / 2;
        let length = if self.publishes { length(memory, vcpu, self.turn) } else { self.turn };
        let over = used + allowance >= length;
        if !over && used >= allowance {
            self.set_alarm();
        }
        over
    }

    /// Has the thread interrupted every so often from here on: one signal may come outside of `KVM_RUN`, to no effect. Not at all
    /// where the time is 0.
    pub(super) fn limit(&mut self, every: Duration) {
        self.limit = self.limit.take().or_else(Alarm::new);
        if let Some(limit) = &self.limit {
            limit.repeat(every);
        }
    }

    fn set_alarm(&self) {
        if let Some(alarm) = &self.alarm {
            alarm.set(self.turn);
        }
    }
}

/// The length of this vCPU's turn at this moment, in CPU time.
fn length(memory: &impl Memory, vcpu: usize, turn: Duration) -> Duration {
    if says_it_waits(memory, vcpu) { turn } else { turn * AT_WORK }
}

/// Whether the innermost context of a vCPU has published a wait.
fn says_it_waits(memory: &impl Memory, vcpu: usize) -> bool {
    const ACTIVE: usize = offset_of!(VcpuPage, contexts) + offset_of!(Context, wait) + offset_of!(Wait, active);
    let page = private(vcpu) + private_area::PAGE_PUBLISHED;
    let depth = memory.read_u32(page + offset_of!(VcpuPage, depth) as u64).unwrap_or_default();
    let context = (depth as usize).min(CONTEXTS - 1) * size_of::<Context>();
    memory.read_u32(page + (ACTIVE + context) as u64) == Some(1)
}

#[cfg(test)]
mod test {
    use stallbench_abi::Plain;
    use stallbench_state::memory::Snippet;

    use super::*;

    const TURN: Duration = Duration::from_micros(500);

    fn guest(change: impl Fn(&mut VcpuPage)) -> Snippet {
        let mut page = VcpuPage::default();
        change(&mut page);
        let mut bytes = vec![0; size_of::<VcpuPage>()];
        page.write(&mut bytes).expect("the page fits");
        Snippet { base: private(0), bytes }
    }

    #[test]
    fn vcpu_that_waits_has_one_turn_and_one_that_works_several() {
        assert_eq!(length(&guest(|_| ()), 0, TURN), TURN * AT_WORK);
        assert_eq!(length(&guest(|page| page.contexts[0].wait.active = 1), 0, TURN), TURN);
    }

    #[test]
    fn innermost_context_decides_whatever_depth_the_guest_claims() {
        let waiting_task = |depth| guest(move |page| (page.depth, page.contexts[0].wait.active) = (depth, 1));
        assert_eq!(length(&waiting_task(1), 0, TURN), TURN * AT_WORK);
        assert_eq!(length(&waiting_task(u32::MAX), 0, TURN), TURN * AT_WORK);
        assert_eq!(length(&Snippet::default(), 0, TURN), TURN * AT_WORK, "no page at all");
    }
}
