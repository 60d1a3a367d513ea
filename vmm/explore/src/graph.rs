//! States of the machine, and the choices that lead from one to the next.

use std::collections::{HashMap, hash_map};
use std::hash::Hasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxHasher;
use stallbench_core::controlled::Inject;

use crate::apic::Apic;

/// Words of a set of vectors.
const VECTOR_WORDS: usize = 8;

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Choice {
    /// A vCPU goes on to its next stop.
    Run(u8),
    /// It takes the interrupt of the highest priority first.
    Interrupt(u8),
    /// It takes its NMI first.
    Nmi(u8),
    /// It takes its INIT, and waits.
    Init(u8),
    /// It takes its start-up interrupt, and begins.
    StartUp(u8),
    /// Its oldest store that others do not see yet comes to memory.
    Flush(u8),
    /// It sends an interrupt now that it writes later: which, by its number among those that the search knows.
    Early(u8, u8),
}

impl Choice {
    /// Whose it is.
    pub fn vcpu(self) -> usize {
        match self {
            Self::Run(vcpu)
            | Self::Interrupt(vcpu)
            | Self::Nmi(vcpu)
            | Self::Init(vcpu)
            | Self::StartUp(vcpu)
            | Self::Flush(vcpu)
            | Self::Early(vcpu, _) => vcpu.into(),
        }
    }

    /// Whether a vCPU executes instructions by it.
    pub(crate) fn executes(self) -> bool {
        !matches!(self, Self::Flush(_) | Self::Early(..))
    }
}

/// A state of the machine: the numbers of its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// Of each vCPU.
    pub(crate) locals: Box<[u32]>,
    /// Of each local APIC.
    pub(crate) apics: Box<[u32]>,
    /// Of the arena.
    pub(crate) arena: u32,
    /// Of what each vCPU has stored and others do not see yet, and sent before its time; none where they see each store at once.
    pub(crate) buffers: Box<[u32]>,
}

impl State {
    /// Of what a vCPU has stored and others do not see yet, and sent before its time: 0 for nothing.
    pub(crate) fn buffer(&self, vcpu: usize) -> u32 {
        self.buffers.get(vcpu).copied().unwrap_or(0)
    }

    /// Whether all see what anybody has stored, and nothing was sent before its time.
    pub(crate) fn is_flushed(&self) -> bool {
        self.buffers.iter().all(|buffer| *buffer == 0)
    }

    /// As numbers in a row: those of each vCPU first.
    fn words(&self) -> impl Iterator<Item = u32> {
        self.locals.iter().chain(&self.apics).chain(&self.buffers).copied().chain([self.arena])
    }

    /// Of so many vCPUs, from its words.
    pub(crate) fn of(words: &[u32], vcpus: usize) -> Self {
        let (locals, words) = words.split_at(vcpus);
        let (apics, words) = words.split_at(vcpus);
        // The arena is the last of them, and there is one.
        let (buffers, arena) = words.split_at(words.len() - 1);
        Self { locals: locals.into(), apics: apics.into(), arena: arena[0], buffers: buffers.into() }
    }
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
            hash_map::Entry::Occupied(known) => *known.get(),
            hash_map::Entry::Vacant(new) => {
                new.insert(next);
                self.apics.push(apic);
                next
            }
        }
    }

    pub(crate) fn get(&self, number: u32) -> Apic {
        self.apics[number as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.apics.len()
    }

    /// All of them as numbers in a row.
    pub(crate) fn words(&self) -> impl ExactSizeIterator<Item = u64> {
        let words = self.apics.iter().flat_map(|apic| {
            let registers = apic.irr.into_iter().chain(apic.isr).map(u64::from);
            // One more than the vector: 0 is none.
            let start_up = apic.start_up.map_or(0, |vector| u64::from(vector) + 1);
            registers.chain([apic.nmi.into(), apic.init.into(), start_up])
        });
        words.collect::<Vec<_>>().into_iter()
    }

    /// From these numbers. None where they are no local APICs, each once.
    pub(crate) fn of(words: &[u64]) -> Option<Self> {
        let mut apics = Self::default();
        for words in words.chunks(2 * VECTOR_WORDS + 3) {
            let set = |at: usize| -> Option<[u32; VECTOR_WORDS]> {
                let words = words.get(at..at + VECTOR_WORDS)?.iter().map(|word| u32::try_from(*word).ok());
                words.collect::<Option<Vec<_>>>()?.try_into().ok()
            };
            let &[nmi, init, start_up] = words.get(2 * VECTOR_WORDS..)? else { return None };
            let start_up = start_up.checked_sub(1).map(u8::try_from).transpose().ok()?;
            let (irr, isr) = (set(0)?, set(VECTOR_WORDS)?);
            let (next, apic) = (apics.len(), Apic { irr, isr, nmi: nmi != 0, init: init != 0, start_up });
            (apics.number(apic) as usize == next).then_some(())?;
        }
        Some(apics)
    }
}

/// A choice and the state that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) choice: Choice,
    /// How many steps it [stands for](crate::fuse): the choice, and its vCPU going on.
    pub(crate) steps: u8,
    pub(crate) to: u32,
}

/// All states that were met, in the order in which they were met, and what leads from each to where.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// The words of each state, one state after the other.
    words: Vec<u32>,
    /// How many a state has.
    width: usize,
    vcpus: usize,
    numbers: HashTable<u32>,
    /// Edges of all states that were expanded, one state after the other.
    edges: Vec<Edge>,
    /// Which of them are those of each state.
    spans: Vec<Span>,
    /// States that were expanded, in that order.
    expanded: Vec<u32>,
    scratch: Vec<u32>,
}

/// Edges of a state.
#[derive(Clone, Copy, Debug)]
struct Span {
    begin: u32,
    count: u32,
}

impl Span {
    /// The state was not expanded.
    const NONE: Self = Self { begin: 0, count: u32::MAX };
}

impl Graph {
    /// The number of a state.
    pub(crate) fn number(&mut self, state: &State) -> u32 {
        self.scratch.clear();
        self.scratch.extend(state.words());
        (self.width, self.vcpus) = (self.scratch.len(), state.locals.len());
        let (words, width, scratch) = (&self.words, self.width, &self.scratch[..]);
        let of = |number: u32| &words[number as usize * width..][..width];
        let next = self.spans.len() as u32;
        let is_it = |number: &u32| of(*number) == scratch;
        match self.numbers.entry(hash(scratch), is_it, |number| hash(of(*number))) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                new.insert(next);
                self.words.extend_from_slice(&self.scratch);
                self.spans.push(Span::NONE);
                next
            }
        }
    }

    pub(crate) fn state(&self, number: u32) -> State {
        State::of(self.words(number), self.vcpus)
    }

    /// The state of one vCPU in a state.
    pub(crate) fn local(&self, number: u32, vcpu: usize) -> u32 {
        self.words[number as usize * self.width + vcpu]
    }

    /// How many vCPUs a state has.
    pub(crate) fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// States that were met.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// How many states have known edges.
    pub(crate) fn expanded(&self) -> usize {
        self.expanded.len()
    }

    /// These states, in the order in which they were expanded.
    pub(crate) fn order(&self) -> &[u32] {
        &self.expanded
    }

    /// A state, as it is kept.
    pub(crate) fn words(&self, number: u32) -> &[u32] {
        &self.words[number as usize * self.width..][..self.width]
    }

    /// Whether the edges of a state are known.
    pub(crate) fn is_expanded(&self, number: u32) -> bool {
        self.spans[number as usize].count != Span::NONE.count
    }

    /// Whether all of them are.
    pub(crate) fn is_complete(&self) -> bool {
        self.expanded.len() == self.len()
    }

    /// Choices that were followed.
    pub(crate) fn transitions(&self) -> usize {
        self.edges.len()
    }

    /// Gives a state that was not expanded its edges.
    pub(crate) fn expand(&mut self, number: u32, edges: &[Edge]) {
        debug_assert!(!self.is_expanded(number), "once");
        // Memory ends before numbers of 32 bits do: an edge has 8 bytes.
        self.spans[number as usize] = Span { begin: self.edges.len() as u32, count: edges.len() as u32 };
        self.edges.extend_from_slice(edges);
        self.expanded.push(number);
    }

    /// What leads from a state; nothing where it was not expanded.
    pub(crate) fn edges(&self, number: u32) -> &[Edge] {
        match self.spans[number as usize] {
            Span { count: u32::MAX, .. } => &[],
            Span { begin, count } => &self.edges[begin as usize..][..count as usize],
        }
    }

    /// The same without what leads to some of the states: nothing does, then, and nothing leads from them. It numbers no more states.
    pub(crate) fn without(&self, left_out: &[bool]) -> Self {
        let mut kept = Self {
            words: self.words.clone(),
            width: self.width,
            vcpus: self.vcpus,
            spans: vec![Span::NONE; self.spans.len()],
            ..Self::default()
        };
        let mut edges = Vec::new();
        for number in &self.expanded {
            let is_kept = |edge: &&Edge| !left_out[*number as usize] && !left_out[edge.to as usize];
            edges.clear();
            edges.extend(self.edges(*number).iter().filter(is_kept));
            kept.expand(*number, &edges);
        }
        kept
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        // A number in a table that is between half and fully used, with a byte of control.
        const NUMBER: usize = 8;
        self.words.capacity() * size_of::<u32>()
            + self.expanded.capacity() * size_of::<u32>()
            + self.spans.capacity() * size_of::<Span>()
            + self.edges.capacity() * size_of::<Edge>()
            + self.numbers.capacity() * NUMBER
    }
}

fn hash(words: &[u32]) -> u64 {
    let mut hasher = FxHasher::default();
    words.iter().for_each(|word| hasher.write_u32(*word));
    hasher.finish()
}

/// What a choice has delivered.
pub(crate) fn injected(choice: Choice, apic: &Apic, tpr: u8) -> Option<Inject> {
    match choice {
        Choice::Run(_) | Choice::Flush(_) | Choice::Early(..) => None,
        Choice::Interrupt(_) => apic.deliverable(tpr).map(Inject::Vector),
        Choice::Nmi(_) => Some(Inject::Nmi),
        Choice::Init(_) => Some(Inject::Init),
        Choice::StartUp(_) => apic.start_up.map(Inject::StartUp),
    }
}

/// What leads from a state in a graph of tests: for each triple (from, vCPU, to) that vCPU going on.
#[cfg(test)]
pub(crate) fn sample_edges(state: u32, edges: &[(u32, u8, u32)]) -> Vec<Edge> {
    let of = edges.iter().filter(|(from, ..)| *from == state);
    of.map(|&(_, vcpu, to)| Edge { choice: Choice::Run(vcpu), steps: 1, to }).collect()
}

/// A graph of so many states with these edges, all of them expanded.
#[cfg(test)]
pub(crate) fn sample(states: u32, edges: &[(u32, u8, u32)]) -> Graph {
    let vcpus = edges.iter().map(|(_, vcpu, _)| usize::from(*vcpu) + 1).max().unwrap_or(1);
    let mut graph = Graph::default();
    for state in 0..states {
        let apics = vec![0; vcpus].into();
        graph.number(&State { locals: vec![state; vcpus].into(), apics, arena: 0, buffers: Box::default() });
    }
    (0..states).for_each(|state| graph.expand(state, &sample_edges(state, edges)));
    graph
}

#[cfg(test)]
impl Graph {
    /// The same states, none of them expanded.
    pub(crate) fn forget(&mut self) {
        self.edges.clear();
        self.spans.fill(Span::NONE);
        self.expanded.clear();
    }
}
