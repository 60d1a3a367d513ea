//! The edges that a component lists.

use std::collections::BTreeMap;

use stallbench_state::certificate::{Component, Edge};

use crate::falsehood::{At, Falsehood, NotAnEdge, Wrong};

/// Where each transition leads, by state and vCPU.
#[derive(Debug)]
pub(super) struct Edges {
    to: BTreeMap<(usize, usize), usize>,
}

impl Edges {
    /// Those of a component; `executes` says of a state and a member whether it executes an instruction.
    pub(super) fn of(component: &Component, executes: impl Fn(usize, usize) -> bool) -> Result<Self, Falsehood> {
        let mut to = BTreeMap::new();
        for edge in &component.edges {
            check(component, edge, &executes)?;
            if to.insert((edge.from, edge.vcpu), edge.to).is_some() {
                return Err(not_an_edge(component, edge, NotAnEdge::Second));
            }
        }
        Ok(Self { to })
    }

    /// Where the edge of a vCPU leads from a state.
    pub(super) fn to(&self, state: usize, vcpu: usize) -> Option<usize> {
        self.to.get(&(state, vcpu)).copied()
    }
}

fn check(component: &Component, edge: &Edge, executes: &impl Fn(usize, usize) -> bool) -> Result<(), Falsehood> {
    let states = component.states.len();
    let &Edge { from, vcpu, to } = edge;
    if from >= states {
        let at = At::Component(component.vcpus.clone());
        return Err(Falsehood { at, wrong: Wrong::EdgeFromNowhere { from, vcpu } });
    }
    let wrong = match component.vcpus.iter().position(|member| *member == vcpu) {
        None => NotAnEdge::NotAMember,
        Some(who) if !executes(from, who) => NotAnEdge::ExecutesNothing,
        Some(_) if to >= states => NotAnEdge::NoState,
        Some(_) => return Ok(()),
    };
    Err(not_an_edge(component, edge, wrong))
}

fn not_an_edge(component: &Component, edge: &Edge, because: NotAnEdge) -> Falsehood {
    let at = At::State { state: edge.from, vcpus: component.vcpus.clone(), vcpu: edge.vcpu };
    Falsehood { at, wrong: Wrong::NotAnEdge { to: edge.to, because } }
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::certificate::{State, VcpuState};

    fn refused(edges: &[(usize, usize, usize)]) -> String {
        let state = State { vcpus: vec![VcpuState::default(); 2], ..State::default() };
        let component = Component {
            vcpus: vec![3, 5],
            states: vec![state.clone(), state],
            edges: edges.iter().map(|&(from, vcpu, to)| Edge { from, vcpu, to }).collect(),
            ..Component::default()
        };
        // vCPU 5 executes nothing in state 1.
        Edges::of(&component, |state, who| (state, who) != (1, 1)).expect_err("a wrong edge").to_string()
    }

    #[test]
    fn edges_that_cannot_be_are_named() {
        let expected = [
            (&[(2, 3, 0)][..], "vcpu3 and vcpu5: an edge of vcpu3 leaves state 2, which does not exist"),
            (
                &[(0, 4, 0)],
                "state 0 of vcpu3 and vcpu5, vcpu4: the edge to state 0 does not exist: that is none of these vcpus",
            ),
            (
                &[(1, 5, 0)],
                "state 1 of vcpu3 and vcpu5, vcpu5: the edge to state 0 does not exist: it executes nothing there",
            ),
            (
                &[(0, 5, 2)],
                "state 0 of vcpu3 and vcpu5, vcpu5: the edge to state 2 does not exist: there is no such state",
            ),
            (
                &[(0, 3, 0), (0, 3, 1)],
                "state 0 of vcpu3 and vcpu5, vcpu3: the edge to state 1 does not exist: there is another one, and executing one instruction has one result",
            ),
        ];
        for (edges, text) in expected {
            assert_eq!(refused(edges), text);
        }
    }
}
