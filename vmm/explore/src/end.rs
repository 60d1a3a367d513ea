//! States in which the run is over, and what is in the memory that vCPUs share then.

use crate::arena::Arenas;
use crate::graph::State;

/// A state in which the run is over.
#[derive(Clone, Copy, Debug)]
pub struct End<'s> {
    number: u32,
    arena: u32,
    arenas: &'s Arenas,
}

impl<'s> End<'s> {
    pub(crate) fn new(number: u32, state: &State, arenas: &'s Arenas) -> Self {
        Self { number, arena: state.arena, arenas }
    }

    /// The number of the state, in the order in which the search met them.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What lies in the arena at a guest-physical address: 1 to 8 bytes of one of its words, zero-extended. `None` elsewhere.
    pub fn read(&self, address: u64, size: u8) -> Option<u64> {
        let is_there = (1..=8).contains(&size) && Arenas::holds(address, size);
        is_there.then(|| self.arenas.read(self.arena, address, size))
    }

    /// The words of 8 bytes that were written on any way since the start line, by rising address.
    pub fn words(&self) -> Vec<(u64, u64)> {
        let mut words: Vec<_> = self.arenas.words(self.arena).collect();
        words.sort_unstable();
        words
    }
}
