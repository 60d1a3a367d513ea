//! States in which the run is over, and what is in the memory that vCPUs share then.

use std::collections::HashMap;
use std::sync::Arc;

use stallbench_state::mtrr::MtrrState;

use crate::arena::Arenas;
use crate::reach;
use crate::search::{Search, Way};

/// A state in which the run is over.
#[derive(Clone, Copy, Debug)]
pub struct End<'s> {
    number: u32,
    search: &'s Search<'s>,
}

impl<'s> End<'s> {
    pub(crate) fn new(number: u32, search: &'s Search<'s>) -> Self {
        Self { number, search }
    }

    /// The number of the state, in the order in which the search met them.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What lies in the arena at a guest-physical address: 1 to 8 bytes of one of its words, zero-extended. `None` elsewhere.
    pub fn read(&self, address: u64, size: u8) -> Option<u64> {
        let is_there = (1..=8).contains(&size) && Arenas::holds(address, size);
        is_there.then(|| self.search.arenas.read(self.arena(), address, size))
    }

    /// The words of 8 bytes that were written on any way since the start line, by rising address.
    pub fn words(&self) -> Vec<(u64, u64)> {
        let mut words: Vec<_> = self.search.arenas.words(self.arena()).collect();
        words.sort_unstable();
        words
    }

    /// The MTRRs and IA32_PAT of a vCPU.
    pub fn mtrrs(&self, vcpu: usize) -> MtrrState {
        let number = self.search.graph.local(self.number, vcpu);
        self.search.stage.local(vcpu, number).devices.mtrrs()
    }

    fn arena(&self) -> u32 {
        self.search.graph.state(self.number).arena
    }
}

/// What of an end its judges look at: CR0, CR4 and MTRRs of each vCPU, and some words of the arena.
type Kind = (Vec<(u64, u64, Arc<[(u32, u64)]>)>, Vec<Option<u64>>);

/// Ways to ends of each kind.
#[derive(Clone, Debug)]
pub struct Kinds {
    /// How many kinds there are.
    pub kinds: usize,
    /// The ways to the nearest end of each, the nearest first.
    pub ways: Vec<Way>,
}

impl Search<'_> {
    /// The ends by what they come to: control registers and MTRRs, and these words of the arena, each with its size; so many kinds at most.
    pub fn kinds_of_ends(&self, words: &[(u64, u8)], most: usize) -> Kinds {
        let mut kinds: HashMap<Kind, u32> = HashMap::new();
        let mut kind_of = vec![0; self.graph.len()];
        for end in self.ends() {
            let next = kinds.len() as u32 + 1;
            kind_of[end.number() as usize] = *kinds.entry(self.kind(&end, words)).or_insert(next);
        }
        let kind = |state: u32| Some(kind_of[state as usize]).filter(|kind| *kind != 0);
        let ways = reach::nearest_of_each(self.sound(), kind, most.min(kinds.len()));
        Kinds { kinds: kinds.len(), ways: ways.iter().map(|path| Way::of(&self.graph, path)).collect() }
    }

    fn kind(&self, end: &End<'_>, words: &[(u64, u8)]) -> Kind {
        let state = self.graph.state(end.number());
        let of = |(vcpu, number): (usize, &u32)| {
            let local = self.stage.local(vcpu, *number);
            (local.processor.cr0, local.processor.cr4, Arc::clone(&local.devices.msrs))
        };
        let registers = state.locals.iter().enumerate().map(of).collect();
        (registers, words.iter().map(|(address, size)| end.read(*address, *size)).collect())
    }
}
