//! The time that a guest is charged for: wall time, without that in which this process did not run.
//!
//! A process that was stopped (SIGSTOP, a debugger) or a laptop that was suspended looks to its guests as if no time had passed,
//! while clocks went on. Whoever watches a machine polls far more often than [`MOST`], so that a poll that comes later was kept
//! from coming.

use std::time::{Duration, Instant};

/// What one interval between two polls counts at most.
const MOST: Duration = Duration::from_millis(100);

/// The time since some moment, as a guest is charged for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    last: Instant,
    charged: Duration,
}

impl Patience {
    /// From that moment on.
    pub(super) fn since(began: Instant) -> Self {
        Self { last: began, charged: Duration::ZERO }
    }

    /// To be called at every poll.
    pub(super) fn tick(&mut self) {
        self.tick_at(Instant::now());
    }

    /// What is charged up to now.
    pub(super) fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    fn tick_at(&mut self, now: Instant) {
        *self = Self { last: now, charged: self.at(now) };
    }

    fn at(&self, now: Instant) -> Duration {
        self.charged + now.saturating_duration_since(self.last).min(MOST)
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
    fn clock_that_goes_back_charges_nothing() {
        let began = Instant::now() + Duration::from_secs(1);
        let mut patience = Patience::since(began);
        patience.tick_at(began - POLL);
        assert_eq!(patience.at(began - POLL), Duration::ZERO);
    }
}
