//! When it is worth while to look whether a guest can still get anywhere.
//!
//! Early and cheap at first, then ever less often: a guest that works for minutes is not to be stopped all the time, and one that
//! is stuck is to be found within milliseconds.

use std::time::Duration;

/// The first attempt, and the longest interval.
const FIRST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(200);

/// The times of attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    next: Duration,
    interval: Duration,
    longest: Duration,
}

impl Schedule {
    /// Ever less often, or at this interval.
    pub(super) fn new(every: Option<Duration>) -> Self {
        let (first, longest) = every.map_or((FIRST, LONGEST), |every| (every, every));
        Self { next: first, interval: first, longest }
    }

    /// How long it is until the next attempt.
    pub(super) fn until(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// After an attempt.
    pub(super) fn attempted(&mut self, now: Duration) {
        self.interval = (self.interval * 2).min(self.longest);
        self.next = now + self.interval;
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// The first attempts, in milliseconds, each made when it is due.
    fn attempts(every: Option<Duration>, count: usize) -> Vec<u128> {
        let (mut schedule, mut now) = (Schedule::new(every), Duration::ZERO);
        let mut due = || {
            now += schedule.until(now);
            schedule.attempted(now);
            now.as_millis()
        };
        (0..count).map(|_| due()).collect()
    }

    #[test]
    fn attempts_come_ever_less_often_up_to_a_limit() {
        assert_eq!(attempts(None, 10), [1, 3, 7, 15, 31, 63, 127, 255, 455, 655]);
    }

    #[test]
    fn attempts_at_an_interval_that_was_asked_for_come_at_it() {
        assert_eq!(attempts(Some(Duration::from_millis(100)), 3), [100, 200, 300]);
    }
}
