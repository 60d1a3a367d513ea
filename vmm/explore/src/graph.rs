//! States of the machine, and the choices that lead from one to the next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use stallbench_core::controlled::Inject;

use crate::apic::Apic;

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Choice {
    /// A vCPU goes on to its next stop.
    Run(u8),
    /// It takes the interrupt of the highest priority first.
    Interrupt(u8),
    /// It takes its NMI first.
    Nmi(u8),
}

impl Choice {
    /// Whose it is.
    pub(crate) fn vcpu(self) -> usize {
        match self {
            Self::Run(vcpu) | Self::Interrupt(vcpu) | Self::Nmi(vcpu) => vcpu.into(),
        }
    }
}

/// A state of the machine: the numbers of its parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// Of each vCPU.
    pub(crate) locals: Box<[u32]>,
    /// Of each local APIC.
    pub(crate) apics: Box<[u32]>,
    /// Of the arena.
    pub(crate) arena: u32,
}

/// Local APICs, each content once.
#[derive(Debug, Default)]
pub(crate) struct Apics {
    apics: Vec<Apic>,
    numbers: HashMap<Apic, u32>,
}

impl Apics {
    pub(crate) fn number(&mut self, apic: Apic) -> u32 {
        let next = self.apics.len() as u32;
        match self.numbers.entry(apic) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                new.insert(next);
                self.apics.push(apic);
                next
            }
        }
    }

    pub(crate) fn get(&self, number: u32) -> Apic {
        self.apics[number as usize]
    }
}

/// A choice and the state that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) choice: Choice,
    pub(crate) to: u32,
}

/// All states that were met, in the order in which they were met, and what leads from each to where.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    states: Vec<Rc<State>>,
    numbers: FxHashMap<Rc<State>, u32>,
    /// Edges of all states that were expanded, one state after the other.
    edges: Vec<Edge>,
    /// Where those of each end.
    ends: Vec<usize>,
}

impl Graph {
    /// The number of a state.
    pub(crate) fn number(&mut self, state: State) -> u32 {
        let next = self.states.len() as u32;
        if let Some(known) = self.numbers.get(&state) {
            return *known;
        }
        let state = Rc::new(state);
        self.states.push(Rc::clone(&state));
        self.numbers.insert(state, next);
        next
    }

    pub(crate) fn state(&self, number: u32) -> &Rc<State> {
        &self.states[number as usize]
    }

    /// States that were met.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// States whose edges are known.
    pub(crate) fn expanded(&self) -> usize {
        self.ends.len()
    }

    /// Choices that were followed.
    pub(crate) fn transitions(&self) -> usize {
        self.edges.len()
    }

    /// Gives the next state that was not expanded its edges.
    pub(crate) fn expand(&mut self, edges: &[Edge]) {
        self.edges.extend_from_slice(edges);
        self.ends.push(self.edges.len());
    }

    /// What leads from a state; nothing where it was not expanded.
    pub(crate) fn edges(&self, number: u32) -> &[Edge] {
        let at = number as usize;
        let begin = if at == 0 { 0 } else { self.ends.get(at - 1).copied().unwrap_or(self.edges.len()) };
        let end = self.ends.get(at).copied().unwrap_or(begin);
        &self.edges[begin..end]
    }
}

/// What a choice has delivered.
pub(crate) fn injected(choice: Choice, apic: &Apic, tpr: u8) -> Option<Inject> {
    match choice {
        Choice::Run(_) => None,
        Choice::Interrupt(_) => apic.deliverable(tpr).map(Inject::Vector),
        Choice::Nmi(_) => Some(Inject::Nmi),
    }
}
