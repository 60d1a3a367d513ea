//! Which vCPUs only spin: alone, one comes back to the very state that it was in.

use crate::graph::{Choice, Edge, Graph};

/// Turns of a spin, in stops, within which it comes back to where it was.
const LONGEST: usize = 64;

/// What is known of a vCPU in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing.
    Nothing,
    /// It is among those that are just looked at.
    Open,
    /// It gets something done if it goes on.
    GetsOn,
    /// It comes back, or cannot go on.
    Stays,
}

/// Who gets something done in which state, each asked once. The states that a vCPU comes through alone are those of the graph.
#[derive(Debug, Default)]
pub(crate) struct Spins {
    known: Vec<Known>,
}

impl Spins {
    /// Whether a vCPU that goes on alone gets something done: it can go on, and does not come back to this very state. Where it comes to
    /// a state that was not expanded, it does.
    pub(crate) fn gets_on(&mut self, graph: &Graph, state: u32, vcpu: usize) -> bool {
        self.known.resize(self.known.len().max(graph.len() * graph.vcpus()), Known::Nothing);
        let place = |state: u32| state as usize * graph.vcpus() + vcpu;
        let (mut way, mut at) = (Vec::new(), state);
        while self.known[place(at)] == Known::Nothing {
            self.known[place(at)] = Known::Open;
            let next = goes_on(graph, at, vcpu);
            way.push((at, next.map_or(0, |edge| edge.steps)));
            match next {
                Some(edge) => at = edge.to,
                None => {
                    self.known[place(at)] = if graph.is_expanded(at) { Known::Stays } else { Known::GetsOn };
                    break;
                }
            }
        }
        if self.known[place(at)] == Known::Open {
            self.close(&way, at, place);
        }
        way.iter().for_each(|(state, _)| self.settle(place(*state)));
        self.known[place(state)] == Known::GetsOn
    }

    /// A turn that ends where it began: those of the way from there on.
    fn close(&mut self, way: &[(u32, u8)], first: u32, place: impl Fn(u32) -> usize) {
        let begin = way.iter().position(|(state, _)| *state == first).unwrap_or(0);
        let steps: usize = way[begin..].iter().map(|(_, steps)| usize::from(*steps)).sum();
        if steps <= LONGEST {
            way[begin..].iter().for_each(|(state, _)| self.known[place(*state)] = Known::Stays);
        }
    }

    fn settle(&mut self, place: usize) {
        if self.known[place] == Known::Open {
            self.known[place] = Known::GetsOn;
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.known.capacity()
    }
}

/// Where a vCPU comes to that goes on, or for which its own stores are first to be seen.
fn goes_on(graph: &Graph, state: u32, vcpu: usize) -> Option<&Edge> {
    let by = |choice: Choice| graph.edges(state).iter().find(|edge| edge.choice == choice);
    // At most 255 vCPUs.
    by(Choice::Run(vcpu as u8)).or_else(|| by(Choice::Flush(vcpu as u8)))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::graph::sample;

    #[test]
    fn vcpu_that_comes_back_gets_nothing_done_and_one_that_comes_there_does() {
        let graph = sample(4, &[(0, 0, 1), (1, 0, 2), (2, 0, 1), (3, 1, 0)]);
        let mut spins = Spins::default();
        let gets_on = [0, 1, 2, 3].map(|state| spins.gets_on(&graph, state, 0));
        assert_eq!(gets_on, [true, false, false, false], "3: it cannot go on");
        assert!(spins.gets_on(&graph, 3, 1));
    }

    #[test]
    fn vcpu_that_waits_until_its_own_stores_are_seen_gets_something_done_behind_that() {
        let mut graph = sample(3, &[(0, 0, 1)]);
        graph.forget();
        graph.expand(0, &[Edge { choice: Choice::Flush(0), steps: 1, to: 1 }]);
        graph.expand(1, &[Edge { choice: Choice::Run(0), steps: 1, to: 2 }]);
        graph.expand(2, &[]);
        assert!(Spins::default().gets_on(&graph, 0, 0));
    }

    #[test]
    fn turn_that_is_too_long_is_none() {
        let turn = |turn: u32| {
            let edges: Vec<_> = (0..turn).map(|state| (state, 0, (state + 1) % turn)).collect();
            Spins::default().gets_on(&sample(turn, &edges), 0, 0)
        };
        assert_eq!((turn(64), turn(65)), (false, true));
    }

    #[test]
    fn turn_is_as_long_as_its_single_steps() {
        let turn = |steps| {
            let mut graph = sample(1, &[]);
            graph.forget();
            graph.expand(0, &[Edge { choice: Choice::Run(0), steps, to: 0 }]);
            Spins::default().gets_on(&graph, 0, 0)
        };
        assert_eq!((turn(64), turn(65)), (false, true));
    }
}
