//! A shorter way to where a walk came.
//!
//! A walk leaves vCPUs wherever its numbers say so, and most of that does not matter. Where the whole graph is known, the nearest way is
//! read from it; else the walk's choices are cut, dropped and put together, one change after another, as long as it becomes shorter: fewer
//! preemptions, and of those fewer steps (delta debugging, Zeller, Hildebrandt 2002; the changes are those of Jalbert, Sen 2010 and the
//! deliveries). A change is tried by going that way: what cannot be chosen any more is passed over, and from the end of it on each vCPU goes on
//! until it spins. It is taken if that comes to where vCPUs stand for ever in the functions in which they stood before, at accesses to the
//! same words, or where the same one dies with the same words. All of it is executed, and what a machine does from its end on is followed in all directions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rustc_hash::FxHashMap;

use crate::graph::{Choice, State};
use crate::local::Parked;
use crate::reach::{self, Path};
use crate::search::{ExploreError, Search};
use crate::walk::{Choose, Ended};

/// Changes that are tried at most.
const MOST_TRIED: u64 = 10_000;
/// Choices that are followed for all of them together, at most, or somewhat more: on their ways, and in all directions from there.
const MOST_FOLLOWED: usize = 1 << 18;

/// How a walk became shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minimised {
    /// Steps of the walk.
    pub steps: usize,
    /// Its preemptions.
    pub preemptions: usize,
    /// Changes that were tried.
    pub tried: u64,
}

/// What a way comes to: where vCPUs stand for ever, or what one says that dies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Stands(BTreeSet<Stand>),
    Dies(usize, String),
}

/// Where a vCPU stands: in which function, and at an access to which address of what is shared, if at one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stand {
    vcpu: usize,
    function: String,
    address: Option<u64>,
}

impl Search<'_> {
    /// Makes the way shorter on which a walk came to where no schedule leads to the end: [findings](Self::findings) show that one then.
    /// Somebody may stop that. None where it comes there no more: interrupts may come at more places than when it was made, which is
    /// known only then.
    pub(crate) fn minimise(&mut self, walked: &Path, stop: &AtomicBool) -> Result<Option<Minimised>, ExploreError> {
        let (steps, preemptions) = (walked.choices.len(), walked.preemptions);
        let mut way = self.without_rounds(&walked.choices, &walked.states);
        let mut tried = 0;
        while self.stage.has_new_places() || !self.shorten(&mut way, &mut tried, stop)? {
            self.begin_anew();
            match self.goes_to_stay(&walked.choices, &mut 0)? {
                Some(again) => way = again,
                None => return Ok(None),
            }
        }
        self.aim = way.states.last().copied();
        Ok(Some(Minimised { steps, preemptions, tried }))
    }

    /// Until no change makes it shorter; not where interrupts come at more places now.
    fn shorten(&mut self, way: &mut Path, tried: &mut u64, stop: &AtomicBool) -> Result<bool, ExploreError> {
        let Some(wanted) = way.states.last().map(|end| self.outcome(*end)) else { return Ok(true) };
        // Changes are tried from where the last was made on, and then from the first.
        let (mut next, mut failed, mut followed) = (0, 0, 0);
        while *tried < MOST_TRIED && followed < MOST_FOLLOWED && !stop.load(Ordering::Relaxed) {
            let changes = changes(&way.choices);
            if failed >= changes.len() {
                break;
            }
            let changed = changes[next % changes.len()].done_to(&way.choices);
            (*tried, next, failed) = (*tried + 1, next + 1, failed + 1);
            let shorter = self.goes_to_stay(&changed, &mut followed)?;
            if self.stage.is_new_place_known() {
                return Ok(false);
            }
            let shorter = shorter.filter(|shorter| shorter.cost(&self.graph) < way.cost(&self.graph));
            if let Some(shorter) =
                shorter.filter(|shorter| shorter.states.last().map(|end| self.outcome(*end)) == Some(wanted.clone()))
            {
                (*way, failed) = (shorter, 0);
            }
        }
        Ok(true)
    }

    /// The way of these choices, where no schedule leads from its end to that of the run; what is followed for that is counted.
    fn goes_to_stay(&mut self, choices: &[Choice], followed: &mut usize) -> Result<Option<Path>, ExploreError> {
        let (mut way, mut made) = (vec![self.graph.state(0)], Vec::new());
        let ended = self.go(&mut way, &mut made, &mut Script::of(choices))?;
        let (end, known) = (way.last().cloned().unwrap_or_default(), self.graph.transitions());
        let is_lost = ended == Ended::Suspect && self.is_lost(&end)?;
        *followed += made.len() + self.graph.transitions() - known;
        if !is_lost {
            return Ok(None);
        }
        let states = self.keep(&way)?;
        Ok(Some(self.without_rounds(&made, &states)))
    }

    /// A way that comes through no state twice.
    fn without_rounds(&self, choices: &[Choice], states: &[u32]) -> Path {
        let last: FxHashMap<u32, usize> = states.iter().enumerate().map(|(at, state)| (*state, at)).collect();
        let (mut at, mut path) = (last[&states[0]], Path { states: vec![states[0]], ..Path::default() });
        while let (Some(choice), Some(state)) = (choices.get(at), states.get(at + 1)) {
            path.choices.push(*choice);
            path.states.push(*state);
            at = last[state];
        }
        Path::of(&self.graph, path.choices, path.states)
    }

    /// What comes of a state that no schedule leads out of.
    fn outcome(&self, state: u32) -> Outcome {
        let of = self.graph.state(state);
        let says = |vcpu: usize| match &self.stage.local(vcpu, of.locals[vcpu]).parked {
            Parked::Dead(said) => Some(Outcome::Dies(vcpu, said.to_string())),
            _ => None,
        };
        let stands = |of: &State| (0..of.locals.len()).map(|vcpu| self.stands_in(vcpu, of)).collect::<Vec<_>>();
        let stays =
            || reach::last_states(&self.graph, state).into_iter().flat_map(|last| stands(&self.graph.state(last)));
        (0..of.locals.len()).find_map(says).unwrap_or_else(|| Outcome::Stands(stays().collect()))
    }

    fn stands_in(&self, vcpu: usize, state: &State) -> Stand {
        let at = self.stage.next(vcpu, state.locals[vcpu]);
        let address = match self.stage.local(vcpu, state.locals[vcpu]).parked {
            Parked::Read { address, .. } | Parked::Write { address, .. } => Some(address),
            _ => None,
        };
        Stand { vcpu, function: at.map_or_else(String::new, |at| self.stage.function(at)), address }
    }
}

/// What is changed in the choices of a way.
#[derive(Clone, Debug)]
enum Change {
    /// All behind so many of them is left out.
    Cut(usize),
    /// These are.
    Drop(Range<usize>),
    /// These come in front of what stands at a place that is not inside of them.
    Move(Range<usize>, usize),
}

impl Change {
    fn done_to(&self, choices: &[Choice]) -> Vec<Choice> {
        let (from, to) = match self {
            Self::Cut(end) => return choices[..*end].to_vec(),
            Self::Drop(part) => return [&choices[..part.start], &choices[part.end..]].concat(),
            Self::Move(part, to) => (part, *to),
        };
        let mut changed = choices.to_vec();
        if to >= from.end {
            changed[from.start..to].rotate_left(from.len());
        } else {
            changed[to..from.end].rotate_right(from.len());
        }
        changed
    }
}

/// What can be changed, the larger first: the end cut off, all that one vCPU does in a row dropped, what it does next done at once, or as
/// late as that; a delivery dropped.
fn changes(choices: &[Choice]) -> Vec<Change> {
    let legs = legs(choices);
    let next = |leg: usize| {
        let vcpu = choices[legs[leg].start].vcpu();
        (leg + 2..legs.len()).find(|other| choices[legs[*other].start].vcpu() == vcpu)
    };
    let pairs: Vec<_> = (0..legs.len()).filter_map(|leg| next(leg).map(|next| (leg, next))).collect();
    let cut = legs.iter().skip(1).map(|leg| Change::Cut(leg.start));
    let dropped = legs.iter().rev().cloned().map(Change::Drop);
    let early = pairs.iter().map(|(leg, next)| Change::Move(legs[*next].clone(), legs[*leg].end));
    let late = pairs.iter().map(|(leg, next)| Change::Move(legs[*leg].clone(), legs[*next].start));
    let delivered = (0..choices.len()).filter(|at| !matches!(choices[*at], Choice::Run(_)));
    cut.chain(dropped).chain(early).chain(late).chain(delivered.map(|at| Change::Drop(at..at + 1))).collect()
}

/// The steps in a row of one vCPU.
fn legs(choices: &[Choice]) -> Vec<Range<usize>> {
    let mut legs: Vec<Range<usize>> = Vec::new();
    for (at, choice) in choices.iter().enumerate() {
        match legs.last_mut().filter(|leg| choices[leg.start].vcpu() == choice.vcpu()) {
            Some(leg) => leg.end = at + 1,
            None => legs.push(at..at + 1),
        }
    }
    legs
}

/// Choices to follow, as far as they can be, and on from there with as few preemptions as there can be.
struct Script<'c> {
    choices: std::slice::Iter<'c, Choice>,
    last: Option<Choice>,
    /// Those that spun, the last of them the lowest.
    yielded: BTreeMap<Choice, i64>,
}

impl<'c> Script<'c> {
    fn of(choices: &'c [Choice]) -> Self {
        Self { choices: choices.iter(), last: None, yielded: BTreeMap::new() }
    }
}

impl Choose for Script<'_> {
    fn choose(&mut self, _step: usize, choices: &[Choice]) -> Choice {
        let rank = |choice: &&Choice| {
            let rank = self.yielded.get(*choice).copied().unwrap_or(0);
            (rank, self.last.is_some_and(|last| last.vcpu() == choice.vcpu()), std::cmp::Reverse(**choice))
        };
        let scripted = self.choices.find(|choice| choices.contains(choice));
        *scripted.or_else(|| choices.iter().max_by_key(rank)).unwrap_or(&choices[0])
    }

    fn yields(&mut self, choice: Choice) {
        let lowest = self.yielded.values().min().copied().unwrap_or(0) - 1;
        self.yielded.insert(choice, lowest);
    }

    fn last(&mut self) -> &mut Option<Choice> {
        &mut self.last
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const A: Choice = Choice::Run(0);
    const B: Choice = Choice::Run(1);
    const TAKEN: Choice = Choice::Interrupt(1);

    #[test]
    fn changes_cut_drop_join_and_take_deliveries_out() {
        let choices = [A, A, B, TAKEN, A];
        let made: Vec<_> = changes(&choices).iter().map(|change| change.done_to(&choices)).collect();
        let expected: [&[Choice]; 8] = [
            &[A, A],
            &[A, A, B, TAKEN],
            &[A, A, B, TAKEN],
            &[A, A, A],
            &[B, TAKEN, A],
            &[A, A, A, B, TAKEN],
            &[B, TAKEN, A, A, A],
            &[A, A, B, A],
        ];
        assert_eq!(made, expected);
        assert_eq!(changes(&[]).len(), 0);
    }

    #[test]
    fn script_is_followed_as_far_as_it_can_be_and_then_who_was_there_goes_on() {
        let mut script = Script::of(&[A, TAKEN, B]);
        assert_eq!(script.choose(1, &[A, B]), A);
        assert_eq!(script.choose(2, &[A, B]), B, "nothing is to be delivered");
        script.last = Some(B);
        assert_eq!(script.choose(3, &[A, B]), B);
        script.yields(B);
        assert_eq!(script.choose(4, &[A, B]), A, "who spins comes last");
        script.yields(A);
        assert_eq!(script.choose(5, &[A, B]), B, "the others have spun since");
    }
}
