//! What the whole graph says: which states lead to the end of the run, which never do, and how a schedule gets there.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::graph::{Choice, Edge, Graph};
use crate::spin::Spins;

/// Which states lead to one of these, by some schedule; those themselves included.
pub(crate) fn leads_to(graph: &Graph, targets: impl Iterator<Item = u32>) -> Vec<bool> {
    let (ends, sources) = predecessors(graph);
    let mut leads = vec![false; graph.len()];
    let mut queue: Vec<u32> = targets.collect();
    queue.iter().for_each(|target| leads[*target as usize] = true);
    while let Some(state) = queue.pop() {
        let at = state as usize;
        let begin = if at == 0 { 0 } else { ends[at - 1] };
        for source in &sources[begin..ends[at]] {
            if !std::mem::replace(&mut leads[*source as usize], true) {
                queue.push(*source);
            }
        }
    }
    leads
}

/// The states that lead to each, one state after the other, and where those of each end.
fn predecessors(graph: &Graph) -> (Vec<usize>, Vec<u32>) {
    let mut ends = vec![0_usize; graph.len()];
    let numbers = || 0..graph.len() as u32;
    numbers().flat_map(|state| graph.edges(state)).for_each(|edge| ends[edge.to as usize] += 1);
    let mut sum = 0;
    for end in &mut ends {
        sum += *end;
        *end = sum;
    }
    let mut places = ends.clone();
    let mut sources = vec![0; sum];
    for state in numbers() {
        for edge in graph.edges(state) {
            let place = &mut places[edge.to as usize];
            *place -= 1;
            sources[*place] = state;
        }
    }
    (ends, sources)
}

/// A way through the graph from its first state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path {
    /// The choices.
    pub(crate) choices: Vec<Choice>,
    /// The states, the first included: one more than there are choices.
    pub(crate) states: Vec<u32>,
    /// How often a vCPU was left that could have gone on and got something done.
    pub(crate) preemptions: usize,
}

impl Path {
    /// What ways are compared by: preemptions, and of those steps.
    pub(crate) fn cost(&self, graph: &Graph) -> (usize, usize) {
        (self.preemptions, self.steps_to(graph, self.choices.len()))
    }

    /// How many steps its first choices are.
    pub(crate) fn steps_to(&self, graph: &Graph, end: usize) -> usize {
        (0..end).map(|at| usize::from(self.steps_at(graph, at))).sum()
    }

    /// How many steps a choice of it is; one where that is not in the graph.
    pub(crate) fn steps_at(&self, graph: &Graph, at: usize) -> u8 {
        let edges = self.states.get(at).map_or(&[][..], |state| graph.edges(*state));
        edges.iter().find(|edge| Some(&edge.choice) == self.choices.get(at)).map_or(1, |edge| edge.steps)
    }

    /// Of a way whose states were expanded.
    pub(crate) fn of(graph: &Graph, choices: Vec<Choice>, states: Vec<u32>) -> Self {
        let mut spins = Spins::default();
        let (mut place, mut preemptions) = (Place { state: 0, last: 0 }, 0);
        for (choice, to) in choices.iter().zip(states.iter().skip(1)) {
            let next = place.behind(&Edge { choice: *choice, steps: 1, to: *to });
            if place.last != 0 && next.last != place.last {
                preemptions += usize::from(spins.gets_on(graph, place.state, usize::from(place.last) - 1));
            }
            place = next;
        }
        Self { choices, states, preemptions }
    }
}

/// A place of the way: a state, and who went last, 0 for none and else the vCPU plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) state: u32,
    pub(crate) last: u8,
}

impl Place {
    /// That to which an edge of its state leads.
    pub(crate) fn behind(self, edge: &Edge) -> Self {
        // At most 255 vCPUs.
        let last = if edge.choice.executes() { edge.choice.vcpu() as u8 + 1 } else { self.last };
        Self { state: edge.to, last }
    }
}

/// How a place was reached.
#[derive(Clone, Copy, Debug)]
struct Step {
    from: Place,
    choice: Choice,
    preemptions: u32,
    steps: u32,
}

/// Bytes of memory that it takes at most, about, to find the nearest of some states: they are to be left when a search ends.
pub(crate) fn bytes(graph: &Graph) -> usize {
    // Most states are come to by one vCPU or two that went last.
    const LAST: usize = 2;
    LAST * graph.len() * size_of::<(Place, Step)>() + graph.len() * graph.vcpus()
}

/// The way to the nearest of the states that are wanted: with the fewest preemptions, and of those the shortest.
pub(crate) fn nearest(graph: &Graph, wanted: impl Fn(u32) -> bool) -> Option<Path> {
    nearest_of_each(graph, |state| wanted(state).then_some(0), 1).pop()
}

/// The ways to the nearest of the states of each kind, the nearest first, so many kinds at most.
pub(crate) fn nearest_of_each(graph: &Graph, kind: impl Fn(u32) -> Option<u32>, most: usize) -> Vec<Path> {
    if most == 0 { Vec::new() } else { ways(graph, kind, |_, _| false, most) }
}

/// The way to the nearest step that is wanted, of a state and a choice, with that.
pub(crate) fn nearest_step(graph: &Graph, wanted: impl Fn(u32, Choice) -> bool) -> Option<Path> {
    let mut way = ways(graph, |_| None, wanted, 1).pop()?;
    let (choice, from) = (way.choices.last()?, *way.states.iter().rev().nth(1)?);
    let to = graph.edges(from).iter().find(|edge| edge.choice == *choice)?.to;
    *way.states.last_mut()? = to;
    Some(way)
}

/// The ways to the nearest of the states and steps that are wanted. Behind a step stands a state that there is not.
fn ways(
    graph: &Graph,
    kind: impl Fn(u32) -> Option<u32>,
    is_step: impl Fn(u32, Choice) -> bool,
    most: usize,
) -> Vec<Path> {
    let behind_step = graph.len() as u32;
    let (mut found, mut paths) = (FxHashSet::default(), Vec::new());
    let start = Place { state: 0, last: 0 };
    let mut reached: FxHashMap<Place, Step> = FxHashMap::default();
    let (mut left, mut spins) = (FxHashSet::default(), Spins::default());
    let mut queue = BinaryHeap::from([(Reverse(0), Reverse(0), start)]);
    while let Some((Reverse(preemptions), Reverse(steps), place)) = queue.pop() {
        if !left.insert(place) {
            continue;
        }
        let is_step_done = place.state == behind_step;
        if is_step_done || kind(place.state).is_some_and(|kind| found.insert(kind)) {
            paths.push(walk_back(&reached, place, preemptions));
            if paths.len() == most {
                break;
            }
        }
        if is_step_done {
            continue;
        }
        let gets_on = place.last != 0 && spins.gets_on(graph, place.state, usize::from(place.last) - 1);
        for edge in graph.edges(place.state) {
            let next = place.behind(edge);
            let preempts = gets_on && next.last != place.last;
            let (preemptions, steps) = (preemptions + u32::from(preempts), steps + u32::from(edge.steps));
            let is_nearer = |known: &Step| (preemptions, steps) < (known.preemptions, known.steps);
            let wanted = is_step(place.state, edge.choice).then_some(Place { state: behind_step, ..next });
            for next in wanted.into_iter().chain([next]) {
                if !left.contains(&next) && reached.get(&next).is_none_or(is_nearer) {
                    reached.insert(next, Step { from: place, choice: edge.choice, preemptions, steps });
                    queue.push((Reverse(preemptions), Reverse(steps), next));
                }
            }
        }
    }
    paths
}

/// The shortest way from a state to one of those that are wanted; none where none leads there.
pub(crate) fn shortest(graph: &Graph, from: u32, wanted: impl Fn(u32) -> bool) -> Option<Vec<Edge>> {
    let mut came: FxHashMap<u32, (u32, Edge)> = FxHashMap::default();
    let (mut queue, mut met) = (VecDeque::from([from]), FxHashSet::from_iter([from]));
    while let Some(state) = queue.pop_front() {
        if wanted(state) {
            let back = std::iter::successors(came.get(&state), |(before, _)| came.get(before));
            let mut way: Vec<_> = back.map(|(_, edge)| *edge).collect();
            way.reverse();
            return Some(way);
        }
        for edge in graph.edges(state).iter().filter(|edge| met.insert(edge.to)) {
            came.insert(edge.to, (state, *edge));
            queue.push_back(edge.to);
        }
    }
    None
}

/// A way with its preemptions counted.
pub(crate) fn counted(graph: &Graph, mut path: Path) -> Path {
    let mut spins = Spins::default();
    let mut last = None;
    path.preemptions = 0;
    for (choice, state) in path.choices.iter().zip(&path.states).filter(|(choice, _)| choice.executes()) {
        let left = last.replace(choice.vcpu()).filter(|last| *last != choice.vcpu());
        path.preemptions += usize::from(left.is_some_and(|left| spins.gets_on(graph, *state, left)));
    }
    path
}

fn walk_back(reached: &FxHashMap<Place, Step>, mut place: Place, preemptions: u32) -> Path {
    let mut path = Path { preemptions: preemptions as usize, states: vec![place.state], ..Path::default() };
    // Nothing leads back to where it began, which was left first.
    while let Some(step) = reached.get(&place) {
        path.choices.push(step.choice);
        path.states.push(step.from.state);
        place = step.from;
    }
    path.choices.reverse();
    path.states.reverse();
    path
}

/// The states of the nearest set that no schedule leaves, reached from a state; the nearest of them first.
pub(crate) fn last_states(graph: &Graph, from: u32) -> Vec<u32> {
    let components = Components::of(graph, from);
    let mut queue = VecDeque::from([from]);
    let mut met = FxHashSet::from_iter([from]);
    while let Some(state) = queue.pop_front() {
        let component = components.number[&state];
        let stays = |edge: &Edge| components.number.get(&edge.to) == Some(&component);
        if components.is_closed[component] {
            let mut states: Vec<_> =
                components.number.iter().filter(|(_, number)| **number == component).map(|(state, _)| *state).collect();
            states.sort_by_key(|other| (*other != state, *other));
            debug_assert!(graph.edges(state).iter().all(stays), "closed");
            return states;
        }
        queue.extend(graph.edges(state).iter().map(|edge| edge.to).filter(|to| met.insert(*to)));
    }
    vec![from]
}

/// Strongly connected components of what can be reached from a state (Tarjan 1972), with a stack of its own.
struct Components {
    number: FxHashMap<u32, usize>,
    /// Nothing leads out of it.
    is_closed: Vec<bool>,
}

impl Components {
    fn of(graph: &Graph, from: u32) -> Self {
        let mut index: FxHashMap<u32, (u32, u32)> = FxHashMap::default();
        let mut components = Self { number: FxHashMap::default(), is_closed: Vec::new() };
        let (mut open, mut calls, mut next) = (Vec::new(), vec![(from, 0_usize)], 0_u32);
        while let Some((state, edge)) = calls.pop() {
            if edge == 0 {
                index.insert(state, (next, next));
                next += 1;
                open.push(state);
            } else {
                // Back from the state that the edge before led to.
                let to = graph.edges(state)[edge - 1].to;
                components.lower(&mut index, state, to);
            }
            match graph.edges(state).get(edge) {
                Some(to) if index.contains_key(&to.to) => {
                    // Nothing to go into: as if back from there at once.
                    calls.push((state, edge + 1));
                }
                Some(to) => {
                    calls.push((state, edge + 1));
                    calls.push((to.to, 0));
                }
                None if index[&state].0 == index[&state].1 => components.close(graph, state, &mut open),
                None => {}
            }
        }
        components
    }

    /// What a state can reach is what those can that it leads to and that have no component yet.
    fn lower(&self, index: &mut FxHashMap<u32, (u32, u32)>, state: u32, to: u32) {
        if self.number.contains_key(&to) {
            return;
        }
        let reached = index[&to].1;
        if let Some((_, low)) = index.get_mut(&state) {
            *low = (*low).min(reached);
        }
    }

    fn close(&mut self, graph: &Graph, root: u32, open: &mut Vec<u32>) {
        let begin = open.iter().rposition(|state| *state == root).unwrap_or(0);
        let states = open.split_off(begin);
        let number = self.is_closed.len();
        states.iter().for_each(|state| _ = self.number.insert(*state, number));
        let is_in = |edge: &Edge| self.number.get(&edge.to) == Some(&number);
        self.is_closed.push(states.iter().all(|state| graph.edges(*state).iter().all(is_in)));
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::graph::sample;

    #[test]
    fn states_that_do_not_lead_to_the_end_are_told() {
        let graph = sample(5, &[(0, 0, 1), (0, 1, 2), (2, 0, 3), (3, 0, 2), (1, 0, 4)]);
        assert_eq!(leads_to(&graph, [4].into_iter()), [true, true, false, false, true]);
    }

    #[test]
    fn way_with_fewest_preemptions_comes_before_the_shortest() {
        // vCPU 0 is left at state 1, where it could go on; or it goes on until it has nothing to do.
        let graph = sample(6, &[(0, 0, 1), (1, 1, 5), (1, 0, 2), (2, 0, 3), (3, 1, 4), (4, 1, 5)]);
        let path = nearest(&graph, |state| state == 5).expect("a way");
        assert_eq!((path.preemptions, path.states), (0, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(nearest(&graph, |state| state == 9), None);
    }

    #[test]
    fn way_begins_where_nobody_has_gone_on_yet() {
        // vCPU 0 sends before its time at first, by which nothing is executed.
        let mut graph = sample(3, &[(1, 1, 2)]);
        graph.forget();
        graph.expand(0, &[Edge { choice: Choice::Early(0, 0), steps: 1, to: 1 }]);
        graph.expand(1, &[Edge { choice: Choice::Run(1), steps: 1, to: 2 }]);
        let path = nearest(&graph, |state| state == 2).expect("a way");
        assert_eq!((path.choices, path.states), (vec![Choice::Early(0, 0), Choice::Run(1)], vec![0, 1, 2]));
    }

    #[test]
    fn shortest_way_from_a_state_has_its_choices_in_order() {
        let graph = sample(5, &[(0, 0, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4), (3, 1, 2)]);
        let way = |from, to| {
            shortest(&graph, from, |state| state == to).map(|way| way.iter().map(|edge| edge.to).collect::<Vec<_>>())
        };
        assert_eq!((way(1, 4), way(1, 1), way(4, 0)), (Some(vec![2, 4]), Some(vec![]), None));
    }

    #[test]
    fn way_to_a_step_is_the_cheapest_with_that_step() {
        // The nearest state that has such a step is 1, where leaving vCPU 0 is a preemption.
        let graph = sample(5, &[(0, 0, 1), (1, 1, 4), (1, 0, 2), (2, 0, 3), (3, 1, 4)]);
        let path = nearest_step(&graph, |state, choice| [1, 3].contains(&state) && choice == Choice::Run(1));
        let path = path.expect("a way");
        assert_eq!((path.preemptions, path.states), (0, vec![0, 1, 2, 3, 4]));
        assert_eq!(nearest_step(&graph, |_, _| false), None);
    }

    #[test]
    fn leaving_a_vcpu_that_spins_is_no_preemption() {
        let graph = sample(4, &[(0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 0, 3)]);
        let path = nearest(&graph, |state| state == 3).expect("a way");
        assert_eq!(path.preemptions, 0, "vCPU 0 spins at 1, and vCPU 1 has nothing to do at 2");
    }

    #[test]
    fn states_that_no_schedule_leaves_are_found_behind_those_that_it_does() {
        let graph = sample(6, &[(0, 0, 1), (1, 0, 0), (1, 1, 2), (2, 1, 5), (2, 0, 3), (3, 0, 4), (4, 0, 3)]);
        let states = last_states(&graph, 0);
        assert_eq!(states, [5], "the nearest");
        let graph = graph_without_end();
        assert_eq!(last_states(&graph, 0), [3, 4]);
    }

    fn graph_without_end() -> Graph {
        sample(5, &[(0, 0, 1), (1, 0, 0), (1, 1, 2), (2, 0, 3), (3, 0, 4), (4, 0, 3)])
    }
}
