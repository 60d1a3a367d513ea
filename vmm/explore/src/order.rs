//! In which order states are expanded: those first that schedules with fewer preemptions lead to.
//!
//! A preemption leaves a vCPU that could have gone on and got something done. That is known once the states are expanded that it comes
//! through alone. They need no preemption more, so all of one level are expanded before it is asked who of them gets on.

use std::collections::VecDeque;

use crate::graph::Graph;
use crate::reach::Place;
use crate::spin::Spins;

/// The order.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// Preemptions of the schedules that are followed now.
    level: usize,
    /// Places that they lead to.
    now: VecDeque<Place>,
    /// Those that were gone on from by who was there last, and by nobody else yet.
    undecided: VecDeque<Place>,
    /// Those of them that somebody else goes on from in the next level.
    later: Vec<Place>,
    /// A bit for each place that was met.
    met: Vec<u64>,
    spins: Spins,
}

impl Order {
    /// From the first state on.
    pub(crate) fn new(graph: &Graph) -> Self {
        let mut order = Self::default();
        order.meet(graph, Place { state: 0, last: 0 });
        order
    }

    /// The next state to expand; the same until it is. None: there is none.
    pub(crate) fn next(&mut self, graph: &Graph) -> Option<u32> {
        loop {
            if let Some(place) = self.now.front().copied() {
                if !graph.is_expanded(place.state) {
                    return Some(place.state);
                }
                self.now.pop_front();
                self.go_on(graph, place);
            } else if let Some(place) = self.undecided.pop_front() {
                match self.spins.gets_on(graph, place.state, usize::from(place.last) - 1) {
                    true => self.later.push(place),
                    false => self.switch(graph, place),
                }
            } else if self.later.is_empty() {
                return None;
            } else {
                self.level += 1;
                std::mem::take(&mut self.later).into_iter().for_each(|place| self.switch(graph, place));
            }
        }
    }

    /// All schedules with so many preemptions at most were followed; none: not even all of those with none.
    pub(crate) fn done(&self) -> Option<usize> {
        self.level.checked_sub(1)
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let places = self.now.capacity() + self.undecided.capacity() + self.later.capacity();
        places * size_of::<Place>() + self.met.capacity() * size_of::<u64>() + self.spins.bytes()
    }

    /// Who was there last goes on; at the start whoever can.
    fn go_on(&mut self, graph: &Graph, place: Place) {
        let mut is_all = true;
        for edge in graph.edges(place.state) {
            let next = place.behind(edge);
            if place.last == 0 || next.last == place.last {
                self.meet(graph, next);
            } else {
                is_all = false;
            }
        }
        if !is_all {
            self.undecided.push_back(place);
        }
    }

    /// Somebody else does.
    fn switch(&mut self, graph: &Graph, place: Place) {
        for next in graph.edges(place.state).iter().map(|edge| place.behind(edge)) {
            if next.last != place.last {
                self.meet(graph, next);
            }
        }
    }

    fn meet(&mut self, graph: &Graph, place: Place) {
        let lasts = graph.vcpus() + 1;
        let bit = place.state as usize * lasts + usize::from(place.last);
        self.met.resize(self.met.len().max((graph.len() * lasts).div_ceil(64)), 0);
        let (word, mask) = (&mut self.met[bit / 64], 1 << (bit % 64));
        if *word & mask == 0 {
            *word |= mask;
            self.now.push_back(place);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::graph::{sample, sample_edges};

    /// The order of a graph that is as sampled, and how many preemptions were through when each state came.
    fn order(states: u32, edges: &[(u32, u8, u32)]) -> Vec<(u32, Option<usize>)> {
        let mut graph = sample(states, edges);
        graph.forget();
        let (mut order, mut came) = (Order::new(&graph), Vec::new());
        while let Some(state) = order.next(&graph) {
            came.push((state, order.done()));
            graph.expand(state, &sample_edges(state, edges));
        }
        came
    }

    #[test]
    fn states_behind_a_preemption_come_after_all_others() {
        // vCPU 0 goes to 3 alone. Leaving it at 1, where it gets on, leads to 4.
        let edges = [(0, 0, 1), (1, 1, 4), (1, 0, 2), (2, 0, 3), (4, 1, 5)];
        let came = order(6, &edges);
        assert_eq!(came.iter().map(|(state, _)| *state).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert_eq!((came[3].1, came[4].1), (None, Some(0)));
    }

    #[test]
    fn leaving_a_vcpu_that_spins_needs_none() {
        let came = order(4, &[(0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 1, 3)]);
        assert_eq!(came.last(), Some(&(3, None)));
    }
}
