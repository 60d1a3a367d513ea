//! What must hold while a run goes on, judged in every state and on every way.
//!
//! That no vCPU's caches are off while another is not inside the rendezvous is seen from a state, and from a passage and the state in which
//! it begins: nobody else moves meanwhile. That a step uses an object whose life is over is seen from its passage. Whether a call
//! with wait=0 waits for its own callback depends on what came before: which such calls of a vCPU have begun and not returned. Only
//! where some passage begins a call in that way and some passage waits for a call of that number, the states are gone
//! through once more, each with the calls that are open on the way to it. So nothing of it is part of a state.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;

use crate::graph::{Choice, State};
use crate::local::Local;
use crate::reach::{self, Path};
use crate::search::{Search, Way};

/// CR0.CD (SDM 3A 2.5).
pub(crate) const CACHE_DISABLE: u64 = 1 << 30;
/// Calls with wait=0 of which is told which are open at a time.
const MOST_CALLS: usize = 128;

/// What of a passage safety is judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The caches were off at a stop: where.
    pub(crate) caches_off: Option<u64>,
    /// A step used an object whose life was over.
    pub(crate) uses_the_dead: bool,
    /// What it did that concerns the promise of calls with wait=0, in order.
    pub(crate) calls: Vec<CallEvent>,
}

/// What concerns the promise of a call with wait=0; each with the number of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallEvent {
    /// A call with wait=0 begins.
    Begins(u64),
    /// A call returns.
    Returns(u64),
    /// A wait for the end of the call's own callback begins.
    Waits(u64),
}

/// An invariant that some way breaks.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The way to where it is broken, its last step included.
    pub way: Way,
    /// Which.
    pub what: Invariant,
}

/// What must hold while a run goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// No vCPU's caches are off while another is not inside the rendezvous.
    CachesOff {
        /// The vCPU whose caches are off.
        vcpu: usize,
        /// The function that it is in.
        function: String,
        /// Who is not inside.
        outside: Vec<usize>,
    },
    /// No step uses an object whose life is over.
    Lifetime,
    /// No call with wait=0 waits for its own callback.
    Wait0,
}

/// Calls that are open: of a way, one bit each.
type Open = u128;
/// How each state was come to, with the calls that are open there.
type Reached = FxHashMap<(u32, Open), Option<(u32, Open, Choice)>>;

impl Search<'_> {
    /// The nearest way that breaks each invariant that some way does; an error where it cannot be told.
    pub fn broken(&self) -> Result<Vec<Broken>, TooManyCalls> {
        let lifetime = self
            .nearest_with(|search, state, choice| search.seen(state, choice).is_some_and(|seen| seen.uses_the_dead));
        let wait0 = self.wait0()?.map(|way| (way, Invariant::Wait0));
        let found = [wait0, lifetime.map(|way| (way, Invariant::Lifetime)), self.caches_off()];
        let broken = |(way, what): (Path, Invariant)| {
            let paid = self.until_paid(way.clone())?;
            // That caches are off is seen in the last step alone.
            let way = if matches!(what, Invariant::CachesOff { .. }) { way } else { paid };
            Some(Broken { way: Way::of(&self.graph, &way), what })
        };
        Ok(found.into_iter().flatten().filter_map(broken).collect())
    }
}

/// More calls with wait=0 that some way may break than are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST_CALLS} calls with wait=0 may wait for their own callback")]
pub struct TooManyCalls;

impl Search<'_> {
    /// The way to the nearest step that is wanted, with that.
    fn nearest_with(&self, wanted: impl Fn(&Self, &State, Choice) -> bool) -> Option<Path> {
        let from = |number, choice: Choice| self.stage.from(choice, self.graph.local(number, choice.vcpu()));
        let shows = |number, choice: Choice| self.stage.shows(choice.vcpu(), from(number, choice));
        let is_wanted = |number, choice| shows(number, choice) && wanted(self, &self.graph.state(number), choice);
        let graph = self.sound();
        let has = |number: u32| graph.edges(number).iter().any(|edge| is_wanted(number, edge.choice));
        let has: Vec<bool> = (0..self.graph.len() as u32).map(has).collect();
        let is_wanted = |number: u32, choice| has[number as usize] && is_wanted(number, choice);
        has.contains(&true).then(|| reach::nearest_step(graph, is_wanted)).flatten()
    }

    /// The way to where caches are off while somebody is elsewhere: a state in which they are, or a passage.
    fn caches_off(&self) -> Option<(Path, Invariant)> {
        let has_off = |number: u32| {
            let locals = (0..self.graph.vcpus()).map(|vcpu| self.stage.local(vcpu, self.graph.local(number, vcpu)));
            locals.into_iter().any(Local::has_caches_off)
        };
        let is_broken = |number: u32| has_off(number) && self.off_alone(&self.graph.state(number)).is_some();
        let states: Vec<bool> = (0..self.graph.len() as u32).map(is_broken).collect();
        let to_state = states.contains(&true).then(|| reach::nearest(self.sound(), |state| states[state as usize]));
        let to_passage = self.nearest_with(|search, state, choice| search.off_alone_in(state, choice).is_some());
        let way = to_state.flatten().into_iter().chain(to_passage).min_by_key(|way| way.cost(&self.graph))?;
        let what = self.caches_off_at_end(&Way::of(&self.graph, &way))?;
        Some((way, what))
    }

    /// Whether caches are off while somebody is elsewhere in the last state of a way, or on its last passage.
    pub fn caches_off_behind(&self, way: &Way) -> Option<Broken> {
        self.caches_off_at_end(way).map(|what| Broken { way: way.clone(), what })
    }

    fn caches_off_at_end(&self, way: &Way) -> Option<Invariant> {
        let end = self.graph.state((*way.states.last()?)?);
        // A passage on which something was seen is a step of its own.
        let before = way.states.iter().rev().nth(1).copied().flatten().map(|number| self.graph.state(number));
        let in_passage = || self.off_alone_in(&before?, *way.choices.last()?);
        let (vcpu, at, outside) = self.off_alone(&end).or_else(in_passage)?;
        let function = self.stage.function(at);
        Some(Invariant::CachesOff { vcpu, function, outside })
    }

    /// The vCPU whose caches are off in a state in which others are elsewhere; one that has not come to the rendezvous itself before one that has.
    fn off_alone(&self, state: &State) -> Option<(usize, u64, Vec<usize>)> {
        let of = |vcpu: usize| self.stage.local(vcpu, state.locals[vcpu]);
        let off = (0..state.locals.len()).filter(|vcpu| of(*vcpu).has_caches_off());
        let vcpu = off.min_by_key(|vcpu| !of(*vcpu).is_elsewhere())?;
        self.outside(state, vcpu).map(|outside| (vcpu, of(vcpu).processor.general.rip, outside))
    }

    /// The same in the passage that a choice begins in a state.
    fn off_alone_in(&self, state: &State, choice: Choice) -> Option<(usize, u64, Vec<usize>)> {
        let at = self.seen(state, choice)?.caches_off?;
        self.outside(state, choice.vcpu()).map(|outside| (choice.vcpu(), at, outside))
    }

    /// The others that are up and not inside the rendezvous, if there are any.
    fn outside(&self, state: &State, vcpu: usize) -> Option<Vec<usize>> {
        let others = (0..state.locals.len()).filter(|other| *other != vcpu);
        let outside: Vec<_> =
            others.filter(|other| self.stage.local(*other, state.locals[*other]).is_elsewhere()).collect();
        (!outside.is_empty()).then_some(outside)
    }

    /// The way to where a call with wait=0 waits for its own callback.
    fn wait0(&self) -> Result<Option<Path>, TooManyCalls> {
        let calls = self.stage.promises();
        if calls.len() > MOST_CALLS {
            return Err(TooManyCalls);
        }
        let bit = |vcpu: usize, call: u64| calls.iter().position(|known| *known == (vcpu, call)).map(|at| 1 << at);
        if calls.is_empty() {
            return Ok(None);
        }
        let mut reached = Reached::default();
        reached.insert((0, 0), None);
        let mut queue = VecDeque::from([(0, 0)]);
        while let Some((number, open)) = queue.pop_front() {
            let state = self.graph.state(number);
            for edge in self.sound().edges(number) {
                let seen = self.seen(&state, edge.choice);
                let events = seen.map(|seen| seen.calls.as_slice()).unwrap_or_default();
                let (after, is_broken) = follow(open, events, |call| bit(edge.choice.vcpu(), call));
                if let Entry::Vacant(new) = reached.entry((edge.to, after)) {
                    new.insert(Some((number, open, edge.choice)));
                    queue.push_back((edge.to, after));
                }
                if is_broken {
                    let mut way = walk_back(&reached, (number, open));
                    way.choices.push(edge.choice);
                    way.states.push(edge.to);
                    return Ok(Some(reach::counted(self.sound(), way)));
                }
            }
        }
        Ok(None)
    }
}

/// The calls that are open behind some events, and whether one of them waits for its own callback.
fn follow(mut open: Open, events: &[CallEvent], bit: impl Fn(u64) -> Option<Open>) -> (Open, bool) {
    let mut is_broken = false;
    for event in events {
        match *event {
            CallEvent::Begins(call) => open |= bit(call).unwrap_or(0),
            CallEvent::Returns(call) => open &= !bit(call).unwrap_or(0),
            CallEvent::Waits(call) => is_broken |= open & bit(call).unwrap_or(0) != 0,
        }
    }
    (open, is_broken)
}

fn walk_back(reached: &Reached, mut at: (u32, Open)) -> Path {
    let mut path = Path { states: vec![at.0], ..Path::default() };
    while let Some(Some((state, open, choice))) = reached.get(&at) {
        path.choices.push(*choice);
        path.states.push(*state);
        at = (*state, *open);
    }
    path.choices.reverse();
    path.states.reverse();
    path
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn call_breaks_its_promise_only_while_it_is_open() {
        use CallEvent::{Begins, Returns, Waits};
        let bit = |call: u64| (call < 4).then(|| 1 << call);
        assert_eq!(follow(0, &[Begins(1), Waits(1)], bit), (0b10, true));
        assert_eq!(follow(0, &[Begins(1), Waits(2)], bit), (0b10, false), "another call");
        assert_eq!(follow(0, &[Begins(1), Returns(1), Waits(1)], bit), (0, false), "it has returned");
        assert_eq!(follow(0b10, &[Waits(1)], bit), (0b10, true), "begun before");
        assert_eq!(follow(0, &[Begins(9), Waits(9)], bit), (0, false), "one that nobody waits for");
    }
}
