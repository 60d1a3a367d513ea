//! How fast a search is, and when it may end.

use std::time::{Duration, Instant};

use stallbench_explore::Counts;

/// How long a search is looked at before it is said how fast it is.
const LOOK: Duration = Duration::from_millis(500);

/// How far a search is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// What it knows.
    pub counts: Counts,
    /// States a second.
    pub rate: f64,
    /// How long it takes if it goes on like that: known where there are fewer and fewer states to go on from.
    pub left: Option<Duration>,
    /// Walks that were made, where it makes walks.
    pub walks: Option<u64>,
}

/// Looks at a search.
#[derive(Debug)]
pub(super) struct Timer {
    began: Instant,
    /// What was known at the last look.
    last: Option<(Instant, Counts)>,
    left: Option<Duration>,
    first: Option<usize>,
}

impl Default for Timer {
    fn default() -> Self {
        Self { began: Instant::now(), last: None, left: None, first: None }
    }
}

impl Timer {
    /// How far it is now.
    pub(super) fn pace(&mut self, counts: Counts) -> Pace {
        self.pace_at(Instant::now(), counts)
    }

    /// The same of so many walks out of so many.
    pub(super) fn walked(&mut self, counts: Counts, walks: u64, most: u64) -> Pace {
        let took = self.began.elapsed();
        let rate = walks as f64 / took.as_secs_f64().max(0.001);
        let left = took.mul_f64(most.saturating_sub(walks) as f64 / walks.max(1) as f64);
        Pace { counts, rate, left: Some(left), walks: Some(walks) }
    }

    fn pace_at(&mut self, now: Instant, counts: Counts) -> Pace {
        let first = *self.first.get_or_insert(counts.states);
        let (then, before) = *self.last.get_or_insert((now, counts));
        let took = now.saturating_duration_since(then);
        if took >= LOOK {
            let gone = before.frontier.saturating_sub(counts.frontier);
            self.left = (gone > 0).then(|| took.mul_f64(counts.frontier as f64 / gone as f64));
            self.last = Some((now, counts));
        }
        let seconds = now.saturating_duration_since(self.began).as_secs_f64().max(0.001);
        Pace { counts, rate: (counts.states - first) as f64 / seconds, left: self.left, walks: None }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn end_is_foreseen_where_the_frontier_shrinks() {
        let mut timer = Timer::default();
        let began = timer.began;
        let mut at = |seconds: u64, states: usize, frontier: usize| {
            timer.pace_at(began + Duration::from_secs(seconds), Counts { states, frontier, ..Counts::default() })
        };
        assert_eq!(at(0, 100, 80).left, None);
        assert_eq!(at(1, 1100, 90).left, None, "it grows");
        let pace = at(2, 2100, 60);
        assert_eq!((pace.left, pace.rate), (Some(Duration::from_secs(2)), 1000.0));
        assert_eq!(at(3, 2200, 70).left, None);
    }
}
