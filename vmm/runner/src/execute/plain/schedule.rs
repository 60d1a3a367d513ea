//! When it is worth while to look whether a guest can still get anywhere.
//!
//! Early and cheap at first, then ever less often: a guest that works for minutes is not to be stopped all the time, and one that
//! is stuck is to be found within milliseconds. Where attempts take long, they become rare.

use std::time::Duration;

/// The first attempt, and the longest interval.
const FIRST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(200);

/// What attempts may take together: so much, and one part in so many of all time.
const FREE: Duration = Duration::from_millis(100);
const PART: u32 = 10;

/// The times of attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    next: Duration,
    interval: Duration,
    longest: Duration,
    /// However long they take.
    forced: bool,
    taken: Duration,
}

impl Schedule {
    /// Ever less often, or at this interval.
    pub(super) fn new(every: Option<Duration>) -> Self {
        let (first, longest) = every.map_or((FIRST, LONGEST), |every| (every, every));
        Self { next: first, interval: first, longest, forced: every.is_some(), taken: Duration::ZERO }
    }

    /// How long it is until the next attempt.
    pub(super) fn until(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// After an attempt that took so long.
    pub(super) fn attempted(&mut self, now: Duration, took: Duration) {
        self.interval = (self.interval * 2).min(self.longest);
        self.taken += took;
        let earned = if self.forced { Duration::ZERO } else { PART * self.taken.saturating_sub(FREE) };
        self.next = (now + self.interval).max(earned);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// The first attempts, in milliseconds, each made when it is due and taking so long.
    fn attempts(every: Option<u64>, took: u64, count: usize) -> Vec<u128> {
        let took = Duration::from_millis(took);
        let (mut schedule, mut now) = (Schedule::new(every.map(Duration::from_millis)), Duration::ZERO);
        let mut due = || {
            now += schedule.until(now);
            let began = now.as_millis();
            now += took;
            schedule.attempted(now, took);
            began
        };
        (0..count).map(|_| due()).collect()
    }

    #[test]
    fn attempts_come_ever_less_often_up_to_a_limit() {
        assert_eq!(attempts(None, 0, 10), [1, 3, 7, 15, 31, 63, 127, 255, 455, 655]);
    }

    #[test]
    fn attempts_at_an_interval_that_was_asked_for_come_at_it() {
        assert_eq!(attempts(Some(100), 0, 3), [100, 200, 300]);
    }

    #[test]
    fn attempts_that_take_long_become_rare_unless_they_are_forced() {
        assert_eq!(attempts(None, 50, 6), [1, 53, 107, 500, 1000, 1500]);
        assert_eq!(attempts(Some(100), 50, 4), [100, 250, 400, 550]);
    }
}
