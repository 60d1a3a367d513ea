//! Fair cycles: sets of states in which a fair schedule can stay for ever, though another leads out of them.
//!
//! A schedule is fair that does what it can do again and again, again and again: each vCPU that can go on goes on, each interrupt that can
//! be delivered is delivered, and what was [sent before its time](crate::early) is written. Nothing has to be sent before its time. An
//! endless schedule that is not fair is no fault of the guest. Which sets of states have a fair one is asked of the strongly connected
//! components: one in which each choice that some state of it has is also followed inside of it has; from any other, the states are taken
//! away in which a choice is open that only leads out, and what is left is asked again (Emerson and Lei 1987, for strong fairness). Each
//! round leaves fewer choices, so there are no more rounds than choices.

use std::collections::VecDeque;
use std::iter::successors;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::graph::{Choice, Graph};
use crate::reach::{self, Path};

/// No component, or none yet.
const NONE: u32 = u32::MAX;

/// A choice, with the vector that an interrupt has: a fair schedule delivers each of those that can be delivered again and again.
type Label = (Choice, u8);
/// What a vCPU does that writes what it owes: no interrupt has this vector.
const PAYS: u8 = 1;

/// What a fair schedule does of what can be done.
pub(crate) trait Duties {
    /// The vector of the interrupt that a choice delivers in a state; 0 of any other choice.
    fn vector(&self, state: u32, choice: Choice) -> u8;

    /// The vCPUs that have sent in a state what they have still to write.
    fn owing(&self, _state: u32) -> Vec<u8> {
        Vec::new()
    }

    /// Whether a choice writes some of it.
    fn pays(&self, _state: u32, _choice: Choice) -> bool {
        false
    }
}

/// The way to the nearest state of such a set and once round in it; where the round begins; and how many states the set has.
pub(crate) fn livelock(graph: &Graph, duties: &dyn Duties) -> Option<(Path, usize, usize)> {
    let sets = FairSets::of(graph, duties);
    if sets.is_empty() {
        return None;
    }
    let mut way = reach::nearest(graph, |state| sets.holds(state))?;
    let (begins, from) = (way.choices.len(), *way.states.last()?);
    let round = sets.round(graph, duties, from);
    way.choices.extend(round.choices);
    way.states.extend(round.states.into_iter().skip(1));
    Some((way, begins, sets.size(from)))
}

/// Sets of states that have a fair schedule which never leaves them.
#[derive(Debug)]
pub(crate) struct FairSets {
    /// The set of each state.
    of: Vec<u32>,
    /// How many states each has.
    sizes: Vec<usize>,
}

impl FairSets {
    /// Those of a graph, the largest ones. In one that is not whole there can be more: a state whose edges are not known is in none.
    pub(crate) fn of(graph: &Graph, duties: &dyn Duties) -> Self {
        let mut walk = Walk::new(graph.len());
        let mut found = Self { of: vec![NONE; graph.len()], sizes: Vec::new() };
        let mut regions = vec![(0..graph.len() as u32).collect::<Vec<_>>()];
        while let Some(region) = regions.pop() {
            for component in walk.components(graph, &region) {
                let inside = walk.mark(&component);
                match open_to_the_outside(graph, duties, &component, |state| walk.region[state as usize] == inside) {
                    None => found.add(&component),
                    Some(open) => regions.push(without(graph, duties, component, &open)),
                }
            }
        }
        found
    }

    fn add(&mut self, states: &[u32]) {
        states.iter().for_each(|state| self.of[*state as usize] = self.sizes.len() as u32);
        self.sizes.push(states.len());
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Whether a state is in one of them.
    pub(crate) fn holds(&self, state: u32) -> bool {
        self.of[state as usize] != NONE
    }

    /// How many states the set of a state has.
    pub(crate) fn size(&self, state: u32) -> usize {
        self.sizes.get(self.of[state as usize] as usize).copied().unwrap_or(0)
    }

    /// A fair schedule from a state of a set back to it: what is open on its way is done on its way.
    pub(crate) fn round(&self, graph: &Graph, duties: &dyn Duties, from: u32) -> Path {
        let mut round = Path { states: vec![from], ..Path::default() };
        let (mut open, mut done): (FxHashSet<Label>, FxHashSet<Label>) = Default::default();
        let mut at = from;
        loop {
            let new = round.states.iter().flat_map(|state| labels(graph, duties, *state));
            open.extend(new.filter(|label| !done.contains(label)));
            if open.is_empty() && at == from && !round.choices.is_empty() {
                return round;
            }
            let is_open = |state, choice| self::done(duties, state, choice).any(|label| open.contains(&label));
            let step = self.nearest(
                graph,
                at,
                |state, choice, to| {
                    if open.is_empty() { to == from } else { is_open(state, choice) }
                },
            );
            // Inside of a set each state leads to each, and each choice that is open is followed.
            let Some(step) = step else { return round };
            for (choice, to) in step {
                for label in self::done(duties, at, choice) {
                    open.remove(&label);
                    done.insert(label);
                }
                round.choices.push(choice);
                round.states.push(to);
                at = to;
            }
        }
    }

    /// The shortest way inside of the set to a choice that is wanted, with that.
    fn nearest(
        &self,
        graph: &Graph,
        from: u32,
        wanted: impl Fn(u32, Choice, u32) -> bool,
    ) -> Option<Vec<(Choice, u32)>> {
        let set = self.of[from as usize];
        let mut reached: FxHashMap<u32, (u32, Choice)> = FxHashMap::default();
        let mut queue = VecDeque::from([from]);
        while let Some(state) = queue.pop_front() {
            for edge in graph.edges(state).iter().filter(|edge| self.of[edge.to as usize] == set) {
                if wanted(state, edge.choice, edge.to) {
                    let mut way = vec![(edge.choice, edge.to)];
                    let before = |at: u32| reached.get(&at).filter(|_| at != from);
                    let back = successors(before(state).map(|step| (state, *step)), |(_, (at, _))| {
                        before(*at).map(|step| (*at, *step))
                    });
                    way.extend(back.map(|(at, (_, choice))| (choice, at)));
                    way.reverse();
                    return Some(way);
                }
                if edge.to != from && !reached.contains_key(&edge.to) {
                    reached.insert(edge.to, (state, edge.choice));
                    queue.push_back(edge.to);
                }
            }
        }
        None
    }
}

/// What is open in a state: what can be done, and what is owed.
fn labels<'a>(graph: &'a Graph, duties: &'a dyn Duties, state: u32) -> impl Iterator<Item = Label> + 'a {
    let owed = duties.owing(state).into_iter().map(|vcpu| (Choice::Run(vcpu), PAYS));
    let edges = graph.edges(state).iter();
    edges.flat_map(move |edge| done(duties, state, edge.choice).take(1)).chain(owed)
}

/// What is done by a choice: itself first, unless nobody has to do that.
fn done(duties: &dyn Duties, state: u32, choice: Choice) -> impl Iterator<Item = Label> {
    let is_duty = !matches!(choice, Choice::Early(..));
    let pays = duties.pays(state, choice).then_some((choice, PAYS));
    is_duty.then(|| (choice, duties.vector(state, choice))).into_iter().chain(pays)
}

/// The choices that are open in a component and lead out of it only; none where there is no such choice, and the component has a cycle.
fn open_to_the_outside(
    graph: &Graph,
    duties: &dyn Duties,
    component: &[u32],
    is_inside: impl Fn(u32) -> bool,
) -> Option<FxHashSet<Label>> {
    let (mut open, mut inside): (FxHashSet<Label>, FxHashSet<Label>) = Default::default();
    for state in component {
        open.extend(labels(graph, duties, *state));
        let edges = graph.edges(*state).iter().filter(|edge| is_inside(edge.to));
        inside.extend(edges.flat_map(|edge| done(duties, *state, edge.choice)));
    }
    open.retain(|label| !inside.contains(label));
    (!open.is_empty()).then_some(open)
}

/// The states in which none of these choices is open.
fn without(graph: &Graph, duties: &dyn Duties, mut component: Vec<u32>, open: &FxHashSet<Label>) -> Vec<u32> {
    component.retain(|state| !labels(graph, duties, *state).any(|label| open.contains(&label)));
    component
}

/// Looks for strongly connected components in parts of a graph (Tarjan 1972), with arrays that all parts share.
struct Walk {
    /// The part that each state is in.
    region: Vec<u32>,
    regions: u32,
    /// When it was come to, from 1 on; 0: not yet.
    index: Vec<u32>,
    /// The earliest that it leads back to.
    low: Vec<u32>,
    /// Whether it waits for its component.
    is_open: Vec<bool>,
}

impl Walk {
    fn new(states: usize) -> Self {
        Self {
            region: vec![NONE; states],
            regions: 0,
            index: vec![0; states],
            low: vec![0; states],
            is_open: vec![false; states],
        }
    }

    /// Makes states a part of their own.
    fn mark(&mut self, states: &[u32]) -> u32 {
        self.regions += 1;
        states.iter().for_each(|state| self.region[*state as usize] = self.regions);
        self.regions
    }

    /// The components of a part that have a cycle.
    fn components(&mut self, graph: &Graph, states: &[u32]) -> Vec<Vec<u32>> {
        let region = self.mark(states);
        states.iter().for_each(|state| self.index[*state as usize] = 0);
        let (mut found, mut open, mut calls, mut next) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for root in states {
            if self.index[*root as usize] != 0 {
                continue;
            }
            calls.push((*root, 0_usize));
            while let Some((state, edge)) = calls.pop() {
                let at = state as usize;
                if edge == 0 {
                    next += 1;
                    (self.index[at], self.low[at], self.is_open[at]) = (next, next, true);
                    open.push(state);
                }
                if let Some((edge, to)) = self.follow(graph, region, state, edge) {
                    calls.extend([(state, edge), (to, 0)]);
                    continue;
                }
                if self.low[at] == self.index[at] {
                    self.close(graph, state, &mut open, &mut found);
                }
                if let Some((before, _)) = calls.last() {
                    let before = *before as usize;
                    self.low[before] = self.low[before].min(self.low[at]);
                }
            }
        }
        found
    }

    /// Looks at the edges of a state from one of them on, up to one that leads to a state that was not come to.
    fn follow(&mut self, graph: &Graph, region: u32, state: u32, first: usize) -> Option<(usize, u32)> {
        let edges = graph.edges(state);
        for (place, edge) in edges.iter().enumerate().skip(first) {
            let to = edge.to as usize;
            if self.region[to] != region {
                continue;
            }
            if self.index[to] == 0 {
                return Some((place + 1, edge.to));
            }
            if self.is_open[to] {
                self.low[state as usize] = self.low[state as usize].min(self.index[to]);
            }
        }
        None
    }

    fn close(&mut self, graph: &Graph, root: u32, open: &mut Vec<u32>, found: &mut Vec<Vec<u32>>) {
        let begin = open.iter().rposition(|state| *state == root).unwrap_or(0);
        open[begin..].iter().for_each(|state| self.is_open[*state as usize] = false);
        let has_cycle = open.len() - begin > 1 || graph.edges(root).iter().any(|edge| edge.to == root);
        if has_cycle {
            found.push(open.split_off(begin));
        } else {
            open.truncate(begin);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::graph::{Edge, State};

    /// A graph of so many states, with an edge for each triple: from, choice, to.
    fn graph(states: u32, edges: &[(u32, Choice, u32)]) -> Graph {
        let mut graph = Graph::default();
        for state in 0..states {
            let number = graph.number(&State { locals: [state].into(), apics: [0].into(), ..State::default() });
            let of = edges.iter().filter(|(from, ..)| *from == state);
            let edges: Vec<_> = of.map(|&(_, choice, to)| Edge { choice, steps: 1, to }).collect();
            graph.expand(number, &edges);
        }
        graph
    }

    use Choice::{Early, Interrupt, Run};

    impl<F: Fn(u32, Choice) -> u8> Duties for F {
        fn vector(&self, state: u32, choice: Choice) -> u8 {
            self(state, choice)
        }
    }

    fn no_vector(_: u32, _: Choice) -> u8 {
        0
    }

    /// vCPU 0 owes something at 1, and writes it by going on to 2.
    struct OwesAtOne;

    impl Duties for OwesAtOne {
        fn vector(&self, _: u32, _: Choice) -> u8 {
            0
        }

        fn owing(&self, state: u32) -> Vec<u8> {
            if state == 1 { vec![0] } else { Vec::new() }
        }

        fn pays(&self, state: u32, choice: Choice) -> bool {
            (state, choice) == (1, Run(0))
        }
    }

    #[test]
    fn what_is_owed_is_paid_by_a_fair_schedule_and_nothing_has_to_be_sent_early() {
        let round = [(0, Run(1), 0), (0, Early(0, 0), 1), (1, Run(1), 1)];
        let held = |edges: &[(u32, Choice, u32)]| {
            let graph = graph(3, edges);
            let fair = FairSets::of(&graph, &OwesAtOne);
            (0..3).filter(|state| fair.holds(*state)).collect::<Vec<_>>()
        };
        assert_eq!(held(&round), [0], "at 1 it owes for ever, and from 0 it need not go there");
        let pays = [(1, Run(0), 2), (2, Run(0), 0), (2, Run(1), 2)];
        assert_eq!(held(&[&round[..], &pays].concat()), [0, 1, 2]);
        let graph = graph(3, &[&round[..], &pays].concat());
        let round = FairSets::of(&graph, &OwesAtOne).round(&graph, &OwesAtOne, 1);
        assert!(round.choices.contains(&Run(0)) && round.states.last() == Some(&1), "{round:?}");
    }

    fn held(graph: &Graph) -> Vec<u32> {
        let fair = FairSets::of(graph, &no_vector);
        (0..graph.len() as u32).filter(|state| fair.holds(*state)).collect()
    }

    #[test]
    fn spin_that_another_vcpu_ends_is_left_by_every_fair_schedule() {
        // vCPU 0 spins at 0 until vCPU 1 writes.
        let graph = graph(3, &[(0, Run(0), 0), (0, Run(1), 1), (1, Run(0), 2)]);
        assert!(FairSets::of(&graph, &no_vector).is_empty());
    }

    #[test]
    fn two_that_make_way_for_each_other_for_ever_are_found_though_a_choice_leads_out() {
        let graph = graph(3, &[(0, Run(0), 1), (1, Run(1), 0), (0, Run(1), 2)]);
        assert_eq!(held(&graph), [0, 1]);
        assert_eq!(FairSets::of(&graph, &no_vector).size(1), 2);
    }

    #[test]
    fn interrupt_that_is_open_now_and_then_is_delivered_by_a_fair_schedule() {
        let spin = [(0, Run(0), 1), (1, Run(0), 0), (1, Interrupt(0), 2)];
        assert!(FairSets::of(&graph(3, &spin), &no_vector).is_empty());
        // One whose handler comes back to the spin is delivered in it.
        let back = [(2, Run(0), 0)];
        let graph = graph(3, &[&spin[..], &back].concat());
        assert_eq!(held(&graph), [0, 1, 2]);
    }

    #[test]
    fn interrupt_that_another_one_is_taken_before_is_delivered_by_a_fair_schedule() {
        // At 0 one vector is delivered again and again; at 1 another could be, which ends the round.
        let edges = [(0, Interrupt(0), 1), (1, Run(1), 0), (1, Interrupt(0), 2)];
        let graph = graph(3, &edges);
        assert_eq!(held(&graph), [0, 1], "were it one and the same");
        let vector = |state: u32, choice| if choice == Interrupt(0) { 0xf0 + state as u8 } else { 0 };
        assert!(FairSets::of(&graph, &vector).is_empty());
    }

    #[test]
    fn what_is_left_of_a_component_without_its_ways_out_is_asked_again() {
        // vCPU 2 leads out of 1, and is open there alone: the others go round without it.
        let edges = [
            (0, Run(0), 1),
            (1, Run(0), 0),
            (1, Run(2), 4),
            (0, Run(1), 2),
            (2, Run(0), 3),
            (3, Run(1), 2),
            (3, Run(0), 0),
        ];
        assert_eq!(held(&graph(5, &edges)), [0, 2, 3]);
    }

    #[test]
    fn end_and_states_that_are_not_come_back_to_are_in_no_set() {
        let graph = graph(3, &[(0, Run(0), 1), (1, Run(0), 2)]);
        assert!(FairSets::of(&graph, &no_vector).is_empty());
    }

    #[test]
    fn round_does_what_is_open_on_it_and_comes_back() {
        let edges =
            [(0, Run(0), 1), (1, Run(0), 0), (1, Run(1), 2), (2, Run(0), 2), (2, Run(1), 0), (0, Interrupt(1), 0)];
        let graph = graph(3, &edges);
        for from in 0..3 {
            let round = FairSets::of(&graph, &no_vector).round(&graph, &no_vector, from);
            assert_eq!((round.states[0], *round.states.last().expect("a state")), (from, from));
            for (choice, states) in round.choices.iter().zip(round.states.windows(2)) {
                assert!(edges.contains(&(states[0], *choice, states[1])), "{round:?}");
            }
            let open = round.states.iter().flat_map(|state| graph.edges(*state)).map(|edge| edge.choice);
            assert!(open.into_iter().all(|choice| round.choices.contains(&choice)), "{round:?}");
        }
    }
}
