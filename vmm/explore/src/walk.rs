//! Walks: one schedule after another, for a machine that has more states than can be known.
//!
//! One ends where the run is over, where a vCPU dies, or where nobody gets anything done: from there all is followed, and a set of states
//! that no schedule leaves is the proof. The states of walks, and what else leads from them, are in the graph like those of any search, and
//! say the same, up to so many.
//!
//! `pct` gives each vCPU, and each delivery to it, a priority at random, and goes on with the highest that can; at some steps, chosen at
//! random too, that one becomes the lowest (Burckhardt, Kothari, Musuvathi, Nagarakatte 2010). Of n that go on and k steps a walk finds a
//! bug that takes d of them in a certain order with a probability of at least 1/(n·k^(d-1)). Who spins becomes the lowest besides, or a walk
//! would never end.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::graph::{Choice, State};
use crate::local::Parked;
use crate::minimise::Minimised;
use crate::reach::Path;
use crate::search::{ExploreError, Search, Way};

/// Steps after which a walk is given up.
const LONGEST: usize = 1 << 16;
/// Steps in which a vCPU that spins comes back.
const TURN: usize = 64;
/// Steps after which it is asked, now and then, whether anybody gets anything done.
const LOOK_EVERY: usize = 512;
/// States that are followed from where nobody seems to get anything done.
const CLOSURE: usize = 1 << 16;

/// States in the graph, from which on walks are kept no more that come to the end of the run.
const MOST_KEPT: usize = 1 << 19;
/// States in it, from which on nothing is followed any more.
const MOST_FOLLOWED: usize = 1 << 22;

/// How a walk chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walking {
    /// Each step at random.
    Random,
    /// By priorities that change so many times less one.
    Pct {
        /// Of how many steps the order has to be met: at least 1.
        depth: u32,
    },
}

/// Walks that were made.
#[derive(Clone, Debug)]
pub struct Walks {
    walking: Walking,
    seed: u64,
    /// How many.
    pub walks: u64,
    /// Those that were given up.
    pub endless: u64,
    /// Who went on in one of them, at most: vCPUs, and what was delivered to them.
    pub agents: usize,
    /// Steps of the longest that came to its end.
    pub steps: usize,
    /// The first of them to the end of the run, as they were made.
    pub ends: Vec<Way>,
    /// How the one was made shorter that came to where no schedule leads to the end.
    pub minimised: Option<Minimised>,
}

impl Walks {
    /// None yet. The same seed makes the same walks.
    pub fn new(walking: Walking, seed: u64) -> Self {
        Self { walking, seed, walks: 0, endless: 0, agents: 0, steps: 0, ends: Vec::new(), minimised: None }
    }

    /// With which probability a walk finds a bug of that depth at least; none where nothing is known of it.
    pub fn bound(&self) -> Option<f64> {
        match self.walking {
            Walking::Pct { depth } if self.steps > 0 => {
                Some(1.0 / (self.agents as f64 * (self.steps as f64).powi(depth as i32 - 1)))
            }
            _ => None,
        }
    }
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The run is over.
    Over,
    /// A vCPU has died, or nobody gets anything done.
    Suspect,
    /// It took too long.
    Endless,
}

impl Search<'_> {
    /// Makes one walk more: whether it came to something that [findings](Self::findings) may show. So many walks to the end are kept.
    /// One that did is made shorter, until somebody stops that.
    ///
    /// # Errors
    ///
    /// The guest does something that cannot be explored.
    pub fn wander(&mut self, walks: &mut Walks, most_ends: usize, stop: &AtomicBool) -> Result<bool, ExploreError> {
        if self.foretold.is_some() {
            return Err(ExploreError::Walks(self.buffers.model()));
        }
        self.fuse_nothing();
        let mut chooser = Chooser::of(walks);
        let (mut way, mut choices) = (vec![self.graph.state(0)], Vec::new());
        let ended = self.go(&mut way, &mut choices, &mut chooser)?;
        walks.walks += 1;
        walks.agents = walks.agents.max(chooser.priorities.len());
        if ended == Ended::Endless {
            walks.endless += 1;
            return Ok(false);
        }
        walks.steps = walks.steps.max(way.len() - 1);
        let is_lost = ended == Ended::Suspect && self.is_lost(way.last().unwrap_or(&State::default()))?;
        let is_end = ended == Ended::Over && walks.ends.len() < most_ends;
        if is_end || ended == Ended::Suspect || self.graph.len() < MOST_KEPT {
            // What must hold while it runs is judged in all states that are kept.
            let states = self.keep(&way)?;
            if is_lost {
                walks.minimised = self.minimise(&Path::of(&self.graph, choices, states), stop)?;
                // It may have begun anew, with other numbers.
                walks.ends.clear();
            } else if is_end {
                walks.ends.push(Way::of(&self.graph, &Path::of(&self.graph, choices, states)));
            }
        }
        if self.stage.has_new_places() {
            // Interrupts come at more places than there were on this walk, and on those before.
            self.begin_anew();
            walks.ends.clear();
            return Ok(false);
        }
        Ok(walks.minimised.is_some())
    }

    /// Goes a way from its last state on, and adds to it.
    pub(crate) fn go(
        &mut self,
        way: &mut Vec<State>,
        made: &mut Vec<Choice>,
        chooser: &mut impl Choose,
    ) -> Result<Ended, ExploreError> {
        let mut turn: Vec<State> = Vec::new();
        let mut state = way[0].clone();
        for step in 1..=LONGEST {
            let choices = self.choices(&state);
            if self.is_dead(&state) || choices.is_empty() && !self.is_over(&state) {
                return Ok(Ended::Suspect);
            }
            if self.is_over(&state) {
                return Ok(Ended::Over);
            }
            let choice = chooser.choose(step, &choices);
            let next = self.follow(&state, choice)?;
            if chooser.last().replace(choice) != Some(choice) || turn.len() > TURN {
                turn.clear();
            }
            let spins = turn.contains(&next);
            turn.push(std::mem::replace(&mut state, next));
            way.push(state.clone());
            made.push(choice);
            if spins {
                chooser.yields(choice);
                turn.clear();
            }
            if (spins || step % LOOK_EVERY == 0) && self.is_quiet(&state)? {
                return Ok(Ended::Suspect);
            }
        }
        Ok(Ended::Endless)
    }

    pub(crate) fn is_dead(&self, state: &State) -> bool {
        let dead = |vcpu: usize| matches!(self.stage.local(vcpu, state.locals[vcpu]).parked, Parked::Dead(_));
        (0..state.locals.len()).any(dead)
    }

    /// Whether nobody gets anything done: nothing is to be delivered, and whoever goes on alone comes back.
    fn is_quiet(&mut self, state: &State) -> Result<bool, ExploreError> {
        for choice in self.choices(state) {
            if !matches!(choice, Choice::Run(_)) || !self.comes_back(state, choice)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn comes_back(&mut self, state: &State, choice: Choice) -> Result<bool, ExploreError> {
        let mut at = state.clone();
        for _ in 0..TURN {
            if !self.choices(&at).contains(&choice) {
                return Ok(false);
            }
            at = self.follow(&at, choice)?;
            if at == *state {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the states of a way into the graph, with all that leads from them.
    pub(crate) fn keep(&mut self, way: &[State]) -> Result<Vec<u32>, ExploreError> {
        let mut numbers = Vec::with_capacity(way.len());
        for state in way {
            let number = self.graph.number(state);
            if !self.graph.is_expanded(number) {
                self.expand(number)?;
            }
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// Follows all that leads from a state: whether none of it is an end of the run.
    pub(crate) fn is_lost(&mut self, state: &State) -> Result<bool, ExploreError> {
        if self.graph.len() > MOST_FOLLOWED {
            return Ok(false);
        }
        let first = self.graph.number(state);
        let (mut met, mut next) = (vec![first], 0);
        let mut is_met = rustc_hash::FxHashSet::from_iter([first]);
        while let Some(number) = met.get(next).copied() {
            next += 1;
            if !self.graph.is_expanded(number) {
                self.expand(number)?;
            }
            if self.ends.contains(&number) || met.len() > CLOSURE {
                return Ok(false);
            }
            met.extend(self.graph.edges(number).iter().map(|edge| edge.to).filter(|to| is_met.insert(*to)));
        }
        Ok(true)
    }
}

/// Who chooses on a way.
pub(crate) trait Choose {
    /// One of these, at a step from 1 on.
    fn choose(&mut self, step: usize, choices: &[Choice]) -> Choice;
    /// Whoever that is spins: it comes after all others from now on.
    fn yields(&mut self, choice: Choice);
    /// What was chosen last.
    fn last(&mut self) -> &mut Option<Choice>;
}

/// What a walk chooses by.
#[derive(Debug)]
struct Chooser {
    walking: Walking,
    random: Random,
    /// Of whoever went on or could have: the highest does.
    priorities: BTreeMap<Choice, i64>,
    /// The next to become the lowest gets this.
    lowest: i64,
    /// Steps at which whoever goes on becomes the lowest.
    changes: Vec<usize>,
    last: Option<Choice>,
}

impl Chooser {
    fn of(walks: &Walks) -> Self {
        let mut random = Random(walks.seed ^ walks.walks.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let changes = match walks.walking {
            Walking::Random => 0,
            Walking::Pct { depth } => depth.saturating_sub(1),
        };
        // The first walk has no changes: it says how long walks are.
        let steps = walks.steps as u64;
        let changes = (0..changes).filter(|_| steps > 0).map(|_| 1 + random.below(steps) as usize).collect();
        Self { walking: walks.walking, random, priorities: BTreeMap::new(), lowest: 0, changes, last: None }
    }
}

impl Choose for Chooser {
    fn choose(&mut self, step: usize, choices: &[Choice]) -> Choice {
        for choice in choices {
            // Positive: above all that became the lowest.
            let priority = (self.random.next() >> 2) as i64;
            self.priorities.entry(*choice).or_insert(priority);
        }
        if self.walking == Walking::Random {
            return choices[self.random.below(choices.len() as u64) as usize];
        }
        if let Some(last) = self.last.filter(|_| self.changes.contains(&step)) {
            self.yields(last);
        }
        let highest = choices.iter().max_by_key(|choice| (self.priorities[*choice], **choice));
        *highest.unwrap_or(&choices[0])
    }

    fn yields(&mut self, choice: Choice) {
        self.lowest -= 1;
        self.priorities.insert(choice, self.lowest);
    }

    fn last(&mut self) -> &mut Option<Choice> {
        &mut self.last
    }
}

/// Numbers at random (splitmix64, Steele, Lea, Flood 2014): the same on every host.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below a number that is not 0.
    fn below(&mut self, end: u64) -> u64 {
        // The high half of the product: the remainder of one in 2^64 is of no account.
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn highest_goes_on_until_it_yields() {
        let mut chooser = Chooser::of(&Walks::new(Walking::Pct { depth: 1 }, 7));
        let choices = [Choice::Run(0), Choice::Run(1), Choice::Interrupt(0)];
        let first = chooser.choose(1, &choices);
        assert_eq!(chooser.choose(2, &choices), first);
        chooser.yields(first);
        let second = chooser.choose(3, &choices);
        assert_ne!(second, first);
        assert_eq!(chooser.choose(4, &[first]), first, "nobody else can");
    }

    #[test]
    fn priorities_change_at_as_many_steps_as_the_depth_says_less_one() {
        let mut walks = Walks::new(Walking::Pct { depth: 3 }, 7);
        assert_eq!((Chooser::of(&walks).changes.len(), walks.bound()), (0, None), "nothing is known of walks");
        (walks.steps, walks.agents) = (100, 4);
        let changes = Chooser::of(&walks).changes;
        assert!(changes.len() == 2 && changes.iter().all(|step| (1..=100).contains(step)), "{changes:?}");
        assert_eq!(walks.bound(), Some(1.0 / 40_000.0));
    }

    #[test]
    fn seed_and_number_of_a_walk_are_all_that_it_hangs_on() {
        let choices = [Choice::Run(0), Choice::Run(1), Choice::Run(2)];
        let made = |seed, walk| {
            let mut chooser = Chooser::of(&Walks { walks: walk, ..Walks::new(Walking::Random, seed) });
            (1..40).map(|step| chooser.choose(step, &choices)).collect::<Vec<_>>()
        };
        assert_eq!(made(1, 5), made(1, 5));
        assert!(made(1, 5) != made(2, 5) && made(1, 5) != made(1, 6));
    }
}
