//! The memory that vCPUs share: a hole in the guest's, of which the bytes are here.
//!
//! States of it are kept by the words that were ever written since the start line, and each once.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use stallbench_abi::layout::{ARENA, ARENA_SIZE};
use stallbench_state::memory::Memory;

use crate::hash::StateHash;

/// Bytes of a word.
const WORD: u64 = 8;
/// Bytes that what a store makes of a state takes, in a table that is between half and fully used.
const STORE: usize = 3 * size_of::<((u32, u64, u8, u64), u32)>() / 2;

/// States of the arena, each once.
#[derive(Debug)]
pub(crate) struct Arenas {
    /// All of it at the start line.
    base: Vec<u8>,
    /// The hash of that, once somebody asked: it is megabytes.
    base_hash: OnceCell<StateHash>,
    /// The words that were written since: their addresses.
    written: Vec<u64>,
    /// Where a word is among those.
    places: HashMap<u64, usize>,
    /// The written words of each state; those behind its end are as at the start line.
    states: Vec<Rc<[u64]>>,
    numbers: HashMap<Rc<[u64]>, u32>,
    /// Bytes of memory that they take, about.
    pub(crate) bytes: usize,
    /// What a store makes of a state.
    stores: HashMap<(u32, u64, u8, u64), u32>,
}

impl Arenas {
    /// With the arena as it is at the start line, which is state 0.
    pub(crate) fn new(base: Vec<u8>) -> Self {
        let first: Rc<[u64]> = Rc::new([]);
        Self {
            base,
            base_hash: OnceCell::new(),
            written: Vec::new(),
            places: HashMap::new(),
            states: vec![Rc::clone(&first)],
            numbers: HashMap::from([(first, 0)]),
            bytes: 0,
            stores: HashMap::new(),
        }
    }

    /// Whether an access lies in the arena, and in one word of it.
    pub(crate) fn holds(address: u64, size: u8) -> bool {
        let end = address.saturating_add(size.into());
        address >= ARENA && end <= ARENA + ARENA_SIZE && address / WORD == (end - 1) / WORD
    }

    /// What a vCPU reads there.
    pub(crate) fn read(&self, state: u32, address: u64, size: u8) -> u64 {
        let word = address & !(WORD - 1);
        self.word(&self.states[state as usize], word) >> (8 * (address - word)) & mask(size)
    }

    /// The state behind a store.
    pub(crate) fn store(&mut self, state: u32, address: u64, size: u8, value: u64) -> u32 {
        if let Some(known) = self.stores.get(&(state, address, size, value)) {
            return *known;
        }
        let word = address & !(WORD - 1);
        let shift = 8 * (address - word);
        let before = self.word(&self.states[state as usize], word);
        let after = before & !(mask(size) << shift) | (value & mask(size)) << shift;
        let next = if before == after { state } else { self.changed(state, word, after) };
        self.bytes += STORE;
        self.stores.insert((state, address, size, value), next);
        next
    }

    fn changed(&mut self, state: u32, word: u64, value: u64) -> u32 {
        let place = match self.places.entry(word) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.written.push(word);
                *new.insert(self.written.len() - 1)
            }
        };
        let mut words = self.states[state as usize].to_vec();
        let known = words.len().max(place + 1);
        words.extend((words.len()..known).map(|place| self.at_start(self.written[place])));
        words[place] = value;
        // One state has one form: what is as at the start line is left out at its end.
        while words.last().is_some_and(|last| *last == self.at_start(self.written[words.len() - 1])) {
            words.pop();
        }
        self.number(words.into())
    }

    fn number(&mut self, words: Rc<[u64]>) -> u32 {
        let next = self.states.len() as u32;
        match self.numbers.entry(words) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.bytes += 8 * new.key().len();
                self.states.push(Rc::clone(new.key()));
                new.insert(next);
                next
            }
        }
    }

    fn word(&self, words: &[u64], word: u64) -> u64 {
        let written = self.places.get(&word).and_then(|place| words.get(*place));
        written.copied().unwrap_or_else(|| self.at_start(word))
    }

    fn at_start(&self, word: u64) -> u64 {
        let at = (word - ARENA) as usize;
        self.base[at..at + WORD as usize].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// All of the arena at the start line.
    pub(crate) fn base(&self) -> &[u8] {
        &self.base
    }

    /// The hash of all of it at the start line.
    pub(crate) fn base_hash(&self) -> StateHash {
        *self.base_hash.get_or_init(|| StateHash::of(&self.base))
    }

    /// How many states there are.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// The words of a state, as they are kept.
    pub(crate) fn state(&self, number: usize) -> &[u64] {
        &self.states[number]
    }

    /// The addresses of the words that were ever written.
    pub(crate) fn written(&self) -> &[u64] {
        &self.written
    }

    /// Takes over other states, which were kept with the same arena at the start line. None where they cannot be.
    pub(crate) fn restore(&mut self, written: Vec<u64>, states: Vec<Vec<u64>>) -> Option<()> {
        let mut new = Self::new(std::mem::take(&mut self.base));
        for address in written {
            let is_new = new.places.insert(address, new.written.len()).is_none();
            (is_new && address % WORD == 0 && Self::holds(address, WORD as u8)).then_some(())?;
            new.written.push(address);
        }
        for (number, words) in states.into_iter().enumerate() {
            (words.len() <= new.written.len() && new.number(words.into()) as usize == number).then_some(())?;
        }
        *self = new;
        Some(())
    }

    /// The words of a state that are not as at the start line, by ascending address.
    pub(crate) fn changes(&self, state: u32) -> Vec<(u64, u64)> {
        let mut changes: Vec<_> =
            self.words(state).filter(|(address, word)| *word != self.at_start(*address)).collect();
        changes.sort_unstable();
        changes
    }

    /// The words of a state that were written since the start line, with their addresses.
    pub(crate) fn words(&self, state: u32) -> impl Iterator<Item = (u64, u64)> {
        let words = Rc::clone(&self.states[state as usize]);
        self.written.iter().map(move |address| (*address, self.word(&words, *address)))
    }
}

/// The low bytes of a word.
pub(crate) fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}

/// All of the arena of a machine.
pub(crate) fn copy(memory: &dyn Memory) -> Vec<u8> {
    let mut base = vec![0; ARENA_SIZE as usize];
    let read = memory.read(ARENA, &mut base);
    debug_assert!(read, "the arena is memory of the host, if not of the guest");
    base
}

#[cfg(test)]
mod test {
    use super::*;

    fn arenas() -> Arenas {
        Arenas::new(vec![0; ARENA_SIZE as usize])
    }

    #[test]
    fn what_is_stored_is_read_in_that_state_alone() {
        let mut arenas = arenas();
        let state = arenas.store(0, ARENA + 12, 4, 0xdead_beef);
        assert_eq!((arenas.read(state, ARENA + 12, 4), arenas.read(0, ARENA + 12, 4)), (0xdead_beef, 0));
        assert_eq!((arenas.read(state, ARENA + 8, 8), arenas.read(state, ARENA + 13, 1)), (0xdead_beef << 32, 0xbe));
    }

    #[test]
    fn ways_to_one_content_are_one_state() {
        let mut arenas = arenas();
        let (a, b) = (arenas.store(0, ARENA, 8, 1), arenas.store(0, ARENA + 64, 8, 2));
        assert_eq!(arenas.store(a, ARENA + 64, 8, 2), arenas.store(b, ARENA, 8, 1));
        assert_eq!(arenas.store(b, ARENA + 64, 8, 0), 0, "as it was");
        assert_eq!(arenas.store(a, ARENA, 4, 1), a, "nothing new");
        assert_eq!(arenas.states.len(), 4);
    }

    #[test]
    fn access_lies_in_one_word_of_the_arena() {
        assert!(Arenas::holds(ARENA, 8) && Arenas::holds(ARENA + 7, 1));
        assert!(!Arenas::holds(ARENA + 4, 8) && !Arenas::holds(ARENA - 1, 1) && !Arenas::holds(ARENA + ARENA_SIZE, 1));
    }
}
