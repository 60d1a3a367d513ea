//! Walks in place of a search of all schedules.

use stallbench_explore::{ExploreError, Minimised, Search, Walking, Walks};

use super::pace::Timer;
use super::{Exploring, Free, MOST_ENDS};
use crate::outcome::{MinimisedOutcome, WalksOutcome};

/// Walks between two looks at whoever interrupts.
const SLICE: u64 = 64;

/// How schedules are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// All of them.
    #[default]
    Exhaustive,
    /// So many walks.
    Walks {
        /// How each chooses.
        walking: Walking,
        /// How many at most.
        most: u64,
        /// The same makes the same walks.
        seed: u64,
    },
}

impl Free<'_> {
    /// Walks until one comes to something, or there were enough of them.
    pub(super) fn walk(
        &self,
        search: &mut Search<'_>,
        exploring: Exploring<'_>,
        mut walks: Walks,
        most: u64,
    ) -> Result<Walks, ExploreError> {
        let mut timer = Timer::default();
        while walks.walks < most && !self.is_interrupted() {
            for _ in 0..SLICE.min(most - walks.walks) {
                let is_found = search.wander(&mut walks, MOST_ENDS, self.interrupt);
                if is_found.inspect_err(|_| search.rest())? {
                    search.rest();
                    return Ok(walks);
                }
            }
            search.rest();
            (exploring.progress)(&timer.walked(search.counts(), walks.walks, most));
        }
        Ok(walks)
    }
}

/// What walks came to.
pub(super) fn outcome(walking: Walking, walks: &Walks) -> WalksOutcome {
    let (strategy, depth) = match walking {
        Walking::Random => ("random", None),
        Walking::Pct { depth } => ("pct", Some(depth)),
    };
    let Walks { walks: made, endless, agents, steps, minimised, .. } = *walks;
    let shorter = |Minimised { steps, preemptions, tried }| MinimisedOutcome { steps, preemptions, tried };
    let minimised = minimised.map(shorter);
    WalksOutcome { strategy, walks: made, endless, agents, steps, depth, bound: walks.bound(), minimised }
}
