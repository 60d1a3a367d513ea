//! In which order calls return on the ways to a state.
//!
//! That order is part of no state, and a way does not have one of its own: what a vCPU does between two stops comes any time between what others
//! do there. So a return that was seen on a passage is put off for as long as anybody likes, until its vCPU goes on.

use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use crate::graph::{Choice, State};
use crate::safety::CallEvent;
use crate::search::Search;

/// A state, the vCPUs whose calls have returned on a way to it, in that order, and of each vCPU how many have that are not among them yet.
type Reached = (u32, Vec<u8>, Vec<u16>);

impl Search<'_> {
    /// Every state with each order in which calls return on ways to it: the vCPU of each call. `None` where there are more than `most`.
    pub fn orders_of_returns(&self, most: usize) -> Option<BTreeSet<(u32, Vec<u8>)>> {
        let first: Reached = (0, Vec::new(), vec![0; self.graph.vcpus()]);
        let (mut known, mut open) = (FxHashSet::from_iter([first.clone()]), vec![first]);
        while let Some(reached) = open.pop() {
            let next = self.after(&reached).into_iter().chain(returns(&reached));
            let new: Vec<_> = next.filter(|next| known.insert(next.clone())).collect();
            open.extend(new);
            if known.len() > most {
                return None;
            }
        }
        let whole = known.into_iter().filter(|(.., waiting)| waiting.iter().all(|calls| *calls == 0));
        Some(whole.map(|(state, order, _)| (state, order)).collect())
    }

    /// What the choices of a state lead to.
    fn after(&self, (number, order, waiting): &Reached) -> Vec<Reached> {
        let state = self.graph.state(*number);
        let goes = |choice: Choice| !choice.executes() || waiting[choice.vcpu()] == 0;
        let edges = self.graph.edges(*number).iter().filter(|edge| goes(edge.choice));
        let next = edges.map(|edge| {
            let mut waiting = waiting.clone();
            waiting[edge.choice.vcpu()] += self.returns_on(&state, edge.choice);
            (edge.to, order.clone(), waiting)
        });
        next.collect()
    }

    /// How many calls return on the passage that a choice begins.
    fn returns_on(&self, state: &State, choice: Choice) -> u16 {
        let calls = self.seen(state, choice).map(|seen| seen.calls.as_slice()).unwrap_or_default();
        let returns = calls.iter().filter(|event| matches!(event, CallEvent::Returns(_))).count();
        // A ring of events has no room for more.
        returns as u16
    }
}

/// One of the calls that wait for it returns.
fn returns((number, order, waiting): &Reached) -> impl Iterator<Item = Reached> {
    let of = |vcpu: usize| {
        let (mut order, mut waiting) = (order.clone(), waiting.clone());
        order.push(vcpu as u8);
        waiting[vcpu] -= 1;
        (*number, order, waiting)
    };
    (0..waiting.len()).filter(|vcpu| waiting[*vcpu] > 0).map(of).collect::<Vec<_>>().into_iter()
}
