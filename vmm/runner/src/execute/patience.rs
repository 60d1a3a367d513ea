//! The time that a guest is charged for: wall time, without that in which this process did not run.
//!
//! A process that was stopped (SIGSTOP, a debugger) or a laptop that was suspended looks to its guests as if no time had passed,
//! while clocks went on. Whoever watches a machine polls far more often than [`MOST`], so that a poll that comes later was kept
//! from coming, unless it was busy all the time: an attempt at a proof can take seconds, in which the process has CPU time.

use std::time::{Duration, Instant};

use stallbench_core::process_cpu_time;

/// What one interval between two polls counts at most.
const MOST: Duration = Duration::from_millis(100);

/// The time since some moment, as a guest is charged for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    last: Instant,
    charged: Duration,
    /// One of so many parts of the time is charged.
    share: u32,
}

/// Something that takes long, and has begun.
#[derive(Debug)]
#[must_use]
pub(super) struct Work {
    cpu_time: Duration,
}

impl Patience {
    /// From that moment on.
    pub(super) fn since(began: Instant) -> Self {
        Self { last: began, charged: Duration::ZERO, share: 1 }
    }

    /// To be called at every poll.
    pub(crate) fn tick(&mut self) {
        self.tick_at(Instant::now());
    }

    /// Before something that may take longer than the interval between two polls.
    pub(super) fn begin_work(&mut self) -> Work {
        self.tick();
        Work { cpu_time: process_cpu_time() }
    }

    /// After it.
    pub(super) fn end_work(&mut self, work: Work) {
        self.end_work_at(Instant::now(), process_cpu_time().saturating_sub(work.cpu_time));
    }

    /// After something for which the guest stood still: what has passed since the last poll is not charged.
    pub(crate) fn forgo(&mut self) {
        self.last = Instant::now();
    }

    /// From now on one of so many parts of the time is charged, for the guest is kept from getting more done in it.
    pub(crate) fn slow_down(&mut self, share: u32) {
        if share != self.share {
            self.tick();
            self.share = share;
        }
    }

    /// One of how many parts of the time is charged now.
    pub(super) fn share(&self) -> u32 {
        self.share
    }

    /// What is charged up to now.
    pub(super) fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    fn tick_at(&mut self, now: Instant) {
        *self = Self { last: now, charged: self.at(now), ..*self };
    }

    fn end_work_at(&mut self, now: Instant, cpu_time: Duration) {
        let passed = now.saturating_duration_since(self.last);
        *self = Self { last: now, charged: self.charged + passed.min(MOST + cpu_time) / self.share, ..*self };
    }

    fn at(&self, now: Instant) -> Duration {
        self.charged + now.saturating_duration_since(self.last).min(MOST) / self.share
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const POLL: Duration = Duration::from_millis(1);

    /// Polls that often, and gives the moment of the last.
    fn poll(patience: &mut Patience, mut now: Instant, polls: u32) -> Instant {
        for _ in 0..polls {
            now += POLL;
            patience.tick_at(now);
        }
        now
    }

    #[test]
    fn time_between_polls_is_charged_as_it_passes() {
        let began = Instant::now();
        let mut patience = Patience::since(began);
        let now = poll(&mut patience, began, 500);
        assert_eq!(patience.at(now), 500 * POLL);
        assert_eq!(patience.at(now + POLL), 501 * POLL, "before the next poll too");
    }

    #[test]
    fn hour_in_which_nothing_was_polled_is_charged_as_one_late_poll() {
        let began = Instant::now();
        let mut patience = Patience::since(began);
        let now = poll(&mut patience, began, 10) + Duration::from_secs(3600);
        assert_eq!(patience.at(now), 10 * POLL + MOST);
        patience.tick_at(now);
        let now = poll(&mut patience, now, 10);
        assert_eq!(patience.at(now), 20 * POLL + MOST);
    }

    #[test]
    fn work_is_charged_as_far_as_the_process_ran() {
        let began = Instant::now();
        let second = Duration::from_secs(1);
        let charged = |passed: Duration, cpu_time: Duration| {
            let mut patience = Patience::since(began);
            patience.end_work_at(began + passed, cpu_time);
            patience.at(began + passed)
        };
        assert_eq!(charged(3 * second, 3 * second), 3 * second);
        assert_eq!(charged(3 * second, 6 * second), 3 * second, "several threads");
        assert_eq!(charged(3600 * second, second), second + MOST, "stopped in between");
    }

    #[test]
    fn guest_that_is_slowed_down_is_charged_a_part() {
        let began = Instant::now();
        let mut patience = Patience::since(began);
        let now = poll(&mut patience, began, 10);
        patience.share = 100;
        let now = poll(&mut patience, now, 100);
        assert_eq!(patience.at(now), 11 * POLL);
        patience.share = 1;
        assert_eq!(patience.at(now + POLL), 12 * POLL, "what is charged stays");
    }

    #[test]
    fn clock_that_goes_back_charges_nothing() {
        let began = Instant::now() + Duration::from_secs(1);
        let mut patience = Patience::since(began);
        patience.tick_at(began - POLL);
        assert_eq!(patience.at(began - POLL), Duration::ZERO);
    }
}
