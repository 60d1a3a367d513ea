//! When it is worth while to look whether a guest can still get anywhere, and how far.
//!
//! Attempts are early and cheap at first, then ever less often: a guest that works for minutes is not to be stopped all the time, and
//! one that is stuck is to be found within milliseconds. What needs more steps than a cheap attempt makes is looked for in
//! deeper ones, each four times as deep as the one before, as soon as the time that the guest has had pays for it.

use std::time::Duration;

use stallbench_stall::proof::Limits;

/// The first attempt, and the longest interval.
const FIRST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(200);

/// The limits of cheap attempts, of the first that are not, of any, and how many levels there are above the cheap ones.
const CHEAP: Limits = Limits { steps: 48, states: 32 };
const DEEP: Limits = Limits { steps: 400, states: 128 };
const DEEPEST: Limits = Limits { steps: 40_000, states: 4096 };
const LEVELS: u32 = 5;
/// What a step of one vCPU takes, as long as nothing was measured.
const STEP: Duration = Duration::from_micros(10);

/// What cheap attempts may take together, and deep ones too: so much, and one part in so many of all time.
const UNASKED: Share = Share { free: Duration::from_millis(25), part: 20 };
/// The same of deep attempts where cheap ones are made at an interval that was asked for.
const ASKED: Share = Share { free: Duration::from_millis(20), part: 200 };
/// What each of the last attempts may take, at the end of the budget: so much, and as long as the budget was. On a busy host the states of
/// vCPUs that pass memory to each other take milliseconds each, and a stall is not to be missed for that.
const LAST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Share {
    free: Duration,
    part: u32,
}

/// What an attempt had too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacked {
    /// Steps of each vCPU.
    Steps,
    /// States of vCPUs that pass changing memory to each other.
    States,
}

/// The times and the depths of attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    next: Duration,
    interval: Duration,
    longest: Duration,
    share: Share,
    /// Cheap attempts are made however long they take.
    forced: bool,
    /// What cheap attempts have taken so far, and what deep ones have.
    spent: [Duration; 2],
    /// What attempts lack, and what one of it takes.
    lacked: Lacked,
    each: Duration,
    /// The level of the next attempt that is not a cheap one, that of the attempt under way, and that of the next at the end.
    wanted: u32,
    tried: u32,
    last: u32,
}

impl Schedule {
    /// Ever less often, or at this interval; none before the guest was left alone for so long.
    pub(super) fn new(every: Option<Duration>, alone: Duration, vcpus: usize) -> Self {
        let (first, longest) = every.map_or((FIRST, LONGEST), |every| (every, every));
        Self {
            next: first.max(alone),
            interval: first,
            longest,
            share: if every.is_some() { ASKED } else { UNASKED },
            forced: every.is_some(),
            spent: [Duration::ZERO; 2],
            // At most 255.
            each: STEP * vcpus as u32,
            lacked: Lacked::Steps,
            wanted: 1,
            tried: 0,
            last: 1,
        }
    }

    /// How long it is until the next attempt.
    pub(super) fn until(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// An attempt begins: how far it goes.
    pub(super) fn begin(&mut self, now: Duration) -> Limits {
        let left = (self.share.free + now / self.share.part).saturating_sub(self.spent[1]);
        self.tried = if self.cost(self.wanted) <= left { self.wanted } else { 0 };
        limits(self.tried)
    }

    /// An attempt at the end of the budget begins, each deeper than the one before, as long as its time allows; the first is always made.
    pub(super) fn begin_last(&mut self, budget: Duration) -> Option<Limits> {
        let is_made = self.last == 1 || self.last <= LEVELS && self.cost(self.last) <= LAST + budget;
        self.tried = self.last;
        self.last += 1;
        is_made.then(|| limits(self.tried))
    }

    /// It ended in vain and took so long; where more would have shown more, it lacked something, and took so long to look at all
    /// that it had of it.
    pub(super) fn attempted(&mut self, now: Duration, took: Duration, lacked: Option<(Lacked, Duration)>) {
        self.spent[usize::from(self.tried > 0)] += took;
        if let Some((lacked, looked)) = lacked {
            self.lacked = lacked;
            self.each = looked / self.amount(self.tried);
            if self.tried == self.wanted {
                self.wanted = if self.wanted == LEVELS { 1 } else { self.wanted + 1 };
            }
        }
        self.interval = (self.interval * 2).min(self.longest);
        let debt = (self.spent[0] + self.cost(0)).saturating_sub(self.share.free) * self.share.part;
        let earned = if self.forced { Duration::ZERO } else { debt };
        self.next = (now + self.interval).max(earned);
    }

    /// What an attempt of that level may take.
    fn cost(&self, level: u32) -> Duration {
        self.each * self.amount(level)
    }

    /// How much of what attempts lack there is at that level.
    fn amount(&self, level: u32) -> u32 {
        let Limits { steps, states } = limits(level);
        // At most those of the deepest.
        (if self.lacked == Lacked::Steps { steps } else { states }) as u32
    }
}

fn limits(level: u32) -> Limits {
    let Some(deepened) = level.checked_sub(1) else { return CHEAP };
    let deepen = |least: usize, most: usize| (least << (2 * deepened)).min(most);
    Limits { steps: deepen(DEEP.steps, DEEPEST.steps), states: deepen(DEEP.states, DEEPEST.states) }
}

#[cfg(test)]
mod test {
    use super::*;

    /// A guest that no attempt says anything about until the end: when each is made, in milliseconds, and its steps. A step takes so long.
    fn attempts(every: Option<u64>, step: Duration, end: u64) -> Vec<(u128, usize)> {
        let mut schedule = Schedule::new(every.map(Duration::from_millis), Duration::ZERO, 1);
        let (mut now, end) = (Duration::ZERO, Duration::from_millis(end));
        let mut made = Vec::new();
        loop {
            now += schedule.until(now);
            if now > end {
                return made;
            }
            let limits = schedule.begin(now);
            made.push((now.as_millis(), limits.steps));
            let took = step * limits.steps as u32;
            now += took;
            schedule.attempted(now, took, Some((Lacked::Steps, took)));
        }
    }

    fn part_of(made: &[(u128, usize)], step: Duration, end: u64) -> f64 {
        let steps: usize = made.iter().map(|(_, steps)| steps).sum();
        (step * steps as u32).as_secs_f64() / Duration::from_millis(end).as_secs_f64()
    }

    #[test]
    fn attempts_come_ever_less_often_and_go_ever_deeper() {
        let made = attempts(None, Duration::ZERO, 700);
        let times: Vec<_> = made.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [1, 3, 7, 15, 31, 63, 127, 255, 455, 655]);
        let steps: Vec<_> = made.iter().map(|(_, steps)| *steps).collect();
        assert_eq!(steps[..6], [400, 1600, 6400, 25_600, 40_000, 400]);
    }

    #[test]
    fn deep_attempts_are_made_when_they_are_paid_for() {
        let step = Duration::from_micros(8);
        let made = attempts(None, step, 20_000);
        let first = |steps| made.iter().find(|(_, made)| *made == steps).map(|(at, _)| *at);
        assert!(first(400) == Some(1) && first(1600) < Some(20), "{made:?}");
        assert!(first(6400) < Some(2_000) && first(25_600) < Some(6_000) && first(40_000) < Some(15_000), "{made:?}");
        assert!(part_of(&made, step, 20_000) < 0.11, "{made:?}");
    }

    #[test]
    fn cheap_attempts_on_a_busy_host_leave_time_for_deep_ones() {
        let made = attempts(None, Duration::from_millis(1), 60_000);
        assert!(made.iter().any(|(at, steps)| *steps == 1600 && *at < 60_000), "{made:?}");
    }

    #[test]
    fn slow_steps_of_many_vcpus_take_no_more_of_all_time() {
        for micros in [100, 1_000, 10_000] {
            let step = Duration::from_micros(micros);
            let made = attempts(None, step, 100_000);
            assert!(part_of(&made, step, 100_000) < 0.12, "{micros}: {made:?}");
        }
    }

    #[test]
    fn attempts_at_an_interval_that_was_asked_for_come_at_it_and_take_little() {
        let step = Duration::from_micros(8);
        let made = attempts(Some(100), step, 60_000);
        assert!(made.len() > 570, "{}", made.len());
        assert!(part_of(&made, step, 60_000) < 0.015, "{}", part_of(&made, step, 60_000));
    }

    /// The steps of the attempts at the end of a budget, where a step of all vCPUs takes so long.
    fn last_attempts(vcpus: usize, step: Duration, budget: u64) -> Vec<usize> {
        let mut schedule = Schedule::new(None, Duration::ZERO, vcpus);
        let mut steps = Vec::new();
        while let Some(limits) = schedule.begin_last(Duration::from_secs(budget)) {
            steps.push(limits.steps);
            let took = step * limits.steps as u32;
            schedule.attempted(Duration::from_secs(budget), took, Some((Lacked::Steps, took)));
        }
        steps
    }

    #[test]
    fn last_attempts_go_ever_deeper_as_far_as_their_time_allows() {
        assert_eq!(last_attempts(1, Duration::from_micros(8), 1), [400, 1600, 6400, 25_600, 40_000]);
        assert_eq!(last_attempts(255, Duration::from_micros(2550), 1), [400]);
        assert_eq!(last_attempts(255, Duration::from_micros(2550), 20), [400, 1600, 6400]);
        assert_eq!(last_attempts(1, Duration::from_millis(100), 0), [400], "one is always made");
    }

    #[test]
    fn guest_is_left_alone_as_long_as_was_asked_for() {
        let mut schedule = Schedule::new(None, Duration::from_secs(3), 1);
        assert_eq!(schedule.until(Duration::ZERO), Duration::from_secs(3));
        schedule.begin(Duration::from_secs(3));
        schedule.attempted(Duration::from_secs(3), Duration::ZERO, None);
        assert_eq!(schedule.until(Duration::from_secs(3)), Duration::from_millis(2));
    }

    #[test]
    fn states_that_take_long_are_not_taken_for_steps() {
        let mut schedule = Schedule::new(None, Duration::ZERO, 4);
        schedule.begin(FIRST);
        // Of 32 or 128 states a millisecond each; all that there are take four seconds.
        let took = Duration::from_millis(1) * limits(schedule.tried).states as u32;
        schedule.attempted(FIRST, took, Some((Lacked::States, took)));
        let last = |budget| {
            let mut schedule = schedule;
            std::iter::from_fn(|| schedule.begin_last(budget)).last().map(|limits| limits.states)
        };
        assert_eq!(last(Duration::from_secs(4)), Some(4096));
        assert_eq!(last(Duration::from_millis(500)), Some(512));
    }
}
