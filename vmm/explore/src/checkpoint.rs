//! A search in a file: what it knows, so that another one goes on from there as if it had never ended.
//!
//! What vCPUs do is not in it. KVM is asked again, for each passage in the order in which it was asked first, and has to come to the same;
//! what the machine's states are made of, and what leads from one to the next, is in it as numbers. Whoever keeps the file sees to it that
//! it is whole: what is read here is taken for what was written, but no number leads beyond what is there.

use std::hash::{Hash, Hasher};
use std::io::{self, Write};

use rustc_hash::FxHasher;
use stallbench_core::controlled::Inject;
use thiserror::Error;

use crate::early::Foretold;
use crate::graph::{Apics, Edge, State};
use crate::order::Order;
use crate::passage::{Comes, Effect, Input};
use crate::search::{ExploreError, Search};

/// Why a search cannot go on from a file. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// It is not what a search writes.
    #[error("go on from a checkpoint: {0} in it cannot be")]
    Damaged(&'static str),
    /// The guest stands elsewhere when it is up.
    #[error("go on from a checkpoint: the guest starts otherwise on this host")]
    OtherStart,
    /// A vCPU does something else than it did then.
    #[error("go on from a checkpoint: vcpu {vcpu} does not do at {place} what it did then")]
    Differs {
        /// The vCPU.
        vcpu: usize,
        /// The instruction.
        place: String,
    },
    /// Nothing can be asked.
    #[error(transparent)]
    Explore(#[from] ExploreError),
}

type Restored<T> = Result<T, RestoreError>;

impl Search<'_> {
    /// Writes what is known.
    ///
    /// # Errors
    ///
    /// Those of what it is written to.
    pub fn save(&self, to: &mut dyn Write) -> io::Result<()> {
        // Whoever adds something says here what becomes of it.
        let Self {
            stage,
            arenas,
            buffers,
            apics,
            graph,
            order: _,
            ends: _,
            faults: _,
            full: _,
            aim: _,
            foretold,
            sound: _,
            // What was asked tells which words are whose, but not how often that was found out.
            fusion,
            varied: _,
        } = self;
        let mut to = Out(to);
        to.put(self.start())?;
        to.put(fusion.begun().into())?;
        to.put(stage.log().len() as u64)?;
        for (vcpu, from, input, passage) in stage.log() {
            to.put(*vcpu as u64)?;
            to.put((*from).into())?;
            to.input(*input)?;
            to.put(passage.to.into())?;
            to.put(digest(&passage.effects))?;
        }
        to.put(foretold.as_ref().map_or(0, Foretold::known) as u64)?;
        to.list(apics.words())?;
        to.list(arenas.written().iter().copied())?;
        to.put(arenas.len() as u64)?;
        for number in 0..arenas.len() {
            to.list(arenas.state(number).iter().copied())?;
        }
        to.put(buffers.len() as u64)?;
        for number in 0..buffers.len() {
            to.list(buffers.words(number).into_iter())?;
        }
        to.put(graph.len() as u64)?;
        let mut before = Vec::new();
        for number in 0..graph.len() as u32 {
            let words = graph.words(number);
            for (at, word) in words.iter().enumerate() {
                to.difference(*word, before.get(at).copied().unwrap_or(0))?;
            }
            before = words.to_vec();
        }
        to.put(graph.expanded() as u64)?;
        let mut next = 0;
        for number in graph.order() {
            to.difference(*number, next)?;
            next = number + 1;
            let edges = graph.edges(*number);
            to.put(edges.len() as u64)?;
            for edge in edges {
                to.put(edge.steps.into())?;
                to.difference(edge.to, *number)?;
            }
        }
        Ok(())
    }

    /// Goes on from what another search of the same guest wrote; nothing was searched here yet.
    ///
    /// # Errors
    ///
    /// It is none of these, or the machine does something else than it did then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut from = In(bytes);
        if from.take()? != self.start() {
            return Err(RestoreError::OtherStart);
        }
        let begun = from.small()?;
        let asked = self.ask_again(&mut from);
        self.rest();
        asked?;
        let known = from.take()? as usize;
        let foretold = (known <= self.stage.log().len()).then(|| Foretold::of(&self.stage, self.graph.vcpus(), known));
        let foretold = foretold.ok_or(RestoreError::Damaged("what is sent early"))?;
        self.foretold = self.foretold.take().map(|_| foretold);
        // What is written was expanded with all of them.
        self.stage.has_new_places();
        self.apics = Apics::of(&from.list()?).ok_or(RestoreError::Damaged("a local APIC"))?;
        let written = from.list()?;
        let states = (0..from.take()?).map(|_| from.list()).collect::<Restored<Vec<_>>>()?;
        self.arenas.restore(written, states).ok_or(RestoreError::Damaged("a state of what vcpus share"))?;
        let contents = (0..from.take()?).map(|_| from.list()).collect::<Restored<Vec<_>>>()?;
        self.buffers.restore(&contents).ok_or(RestoreError::Damaged("a store buffer"))?;
        self.restore_states(&mut from)?;
        self.restore_edges(&mut from)?;
        if !from.0.is_empty() {
            return Err(RestoreError::Damaged("what comes behind its end"));
        }
        self.fusion.restored(&self.stage, begun);
        self.order = Order::new(&self.graph);
        Ok(())
    }

    fn ask_again(&mut self, from: &mut In<'_>) -> Restored<()> {
        for _ in 0..from.take()? {
            let vcpu = from.take()? as usize;
            let (number, input) = (from.small()?, from.input()?);
            let (to, effects) = (from.small()?, from.take()?);
            if vcpu >= self.graph.vcpus() || number as usize >= self.stage.locals_of(vcpu) {
                return Err(RestoreError::Damaged("a passage"));
            }
            let passage = self.stage.passage(vcpu, number, input).map_err(ExploreError::from)?;
            if (passage.to, digest(&passage.effects)) != (to, effects) {
                return Err(RestoreError::Differs { vcpu, place: self.stage.place(vcpu, number) });
            }
            // It was asked for by somebody who knew of them: else it would not be in the file.
            self.stage.has_new_places();
        }
        Ok(())
    }

    fn restore_states(&mut self, from: &mut In<'_>) -> Restored<()> {
        let count = from.take()?;
        let mut words = vec![0; self.graph.words(0).len()];
        for number in 0..count {
            words.iter_mut().try_for_each(|word| from.difference(*word).map(|new| *word = new))?;
            let state = State::of(&words, self.graph.vcpus());
            if !self.is_state(&state) || u64::from(self.graph.number(&state)) != number {
                return Err(RestoreError::Damaged("a state"));
            }
        }
        Ok(())
    }

    fn restore_edges(&mut self, from: &mut In<'_>) -> Restored<()> {
        const DAMAGED: RestoreError = RestoreError::Damaged("what leads from a state");
        let (count, mut next, states) = (from.take()?, 0, self.graph.len() as u32);
        for _ in 0..count {
            let number = from.difference(next)?;
            if number >= states || self.graph.is_expanded(number) {
                return Err(DAMAGED);
            }
            next = number + 1;
            let state = self.graph.state(number);
            let choices = self.look_at(number, &state);
            if from.take()? != choices.len() as u64 {
                return Err(DAMAGED);
            }
            let mut edges = Vec::with_capacity(choices.len());
            for choice in choices {
                let steps = u8::try_from(from.take()?).ok().filter(|steps| *steps > 0).ok_or(DAMAGED)?;
                edges.push(Edge { choice, steps, to: from.difference(number)? });
            }
            if edges.iter().any(|edge| edge.to >= states) {
                return Err(DAMAGED);
            }
            self.graph.expand(number, &edges);
        }
        Ok(())
    }

    /// Whether all of a state's parts are there.
    fn is_state(&self, state: &State) -> bool {
        let State { locals, apics, arena, buffers } = state;
        locals.iter().enumerate().all(|(vcpu, number)| (*number as usize) < self.stage.locals_of(vcpu))
            && apics.iter().all(|number| (*number as usize) < self.apics.len())
            && (*arena as usize) < self.arenas.len()
            && buffers.iter().all(|number| (*number as usize) < self.buffers.len())
    }

    /// What tells the start line of this machine from others.
    fn start(&self) -> u64 {
        let mut hasher = FxHasher::default();
        let first = self.graph.state(0);
        first.locals.iter().enumerate().for_each(|(vcpu, number)| self.stage.local(vcpu, *number).hash_to(&mut hasher));
        self.arenas.base().hash(&mut hasher);
        hasher.finish()
    }
}

fn digest(effects: &[Effect]) -> u64 {
    let mut hasher = FxHasher::default();
    effects.hash(&mut hasher);
    hasher.finish()
}

/// Numbers in 7 bits a byte, the lowest first, as long as the highest bit is set (LEB128, DWARF 5, 7.6).
struct Out<'w>(&'w mut dyn Write);

impl Out<'_> {
    fn put(&mut self, mut number: u64) -> io::Result<()> {
        let (mut bytes, mut count) = ([0; 10], 0);
        loop {
            // The low 7 bits.
            bytes[count] = (number & 0x7f) as u8 | if number > 0x7f { 0x80 } else { 0 };
            (number, count) = (number >> 7, count + 1);
            if number == 0 {
                return self.0.write_all(&bytes[..count]);
            }
        }
    }

    /// What a number is more or less than another.
    fn difference(&mut self, number: u32, than: u32) -> io::Result<()> {
        let more = i64::from(number) - i64::from(than);
        self.put((more << 1 ^ more >> 63) as u64)
    }

    fn list(&mut self, numbers: impl ExactSizeIterator<Item = u64>) -> io::Result<()> {
        self.put(numbers.len() as u64)?;
        numbers.into_iter().try_for_each(|number| self.put(number))
    }

    fn input(&mut self, input: Input) -> io::Result<()> {
        let (kind, value) = match input {
            Input::Go(read) => (0, read),
            Input::Deliver(inject) => delivered(inject),
            Input::Creep(read, comes) => (CREEPS | bits(comes), read),
            Input::Enter(inject, comes) => {
                let (kind, vector) = delivered(inject);
                (ENTERS | bits(comes), vector << 8 | kind)
            }
        };
        self.put(kind)?;
        self.put(value)
    }
}

/// The same, read.
struct In<'b>(&'b [u8]);

impl In<'_> {
    const DAMAGED: RestoreError = RestoreError::Damaged("a number");

    fn take(&mut self) -> Restored<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Self::DAMAGED)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Self::DAMAGED)
    }

    fn small(&mut self) -> Restored<u32> {
        self.take()?.try_into().map_err(|_| Self::DAMAGED)
    }

    fn difference(&mut self, than: u32) -> Restored<u32> {
        let zigzag = self.take()?;
        let more = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        u32::try_from(i64::from(than).saturating_add(more)).map_err(|_| Self::DAMAGED)
    }

    fn list(&mut self) -> Restored<Vec<u64>> {
        (0..self.take()?).map(|_| self.take()).collect()
    }

    fn input(&mut self) -> Restored<Input> {
        let (kind, value) = (self.take()?, self.take()?);
        let comes = [1, 2, 4].map(|bit| kind & bit != 0);
        let comes = Comes { vector: comes[0], nmi: comes[1], init: comes[2] };
        let input = match kind & !(CREEPS - 1) {
            CREEPS => Some(Input::Creep(value, comes)),
            ENTERS => is_delivered(value & 0xff, value >> 8).map(|inject| Input::Enter(inject, comes)),
            0 if kind == 0 => Some(Input::Go(value)),
            0 => is_delivered(kind, value).map(Input::Deliver),
            _ => None,
        };
        input.ok_or(RestoreError::Damaged("what a vcpu goes on with"))
    }
}

/// What a vCPU goes on with, beside 0 for its next access and what stands for [deliveries](delivered): its next access, or a delivery, and
/// what can come then.
const CREEPS: u64 = 8;
const ENTERS: u64 = 16;

fn bits(Comes { vector, nmi, init }: Comes) -> u64 {
    u64::from(vector) | u64::from(nmi) << 1 | u64::from(init) << 2
}

/// What is delivered, and its vector where it has one.
fn delivered(inject: Inject) -> (u64, u64) {
    match inject {
        Inject::Vector(vector) => (1, vector.into()),
        Inject::Nmi => (2, 0),
        Inject::Init => (3, 0),
        Inject::StartUp(vector) => (4, vector.into()),
    }
}

fn is_delivered(kind: u64, vector: u64) -> Option<Inject> {
    let vector = u8::try_from(vector).ok()?;
    match (kind, vector) {
        (1, vector) => Some(Inject::Vector(vector)),
        (2, 0) => Some(Inject::Nmi),
        (3, 0) => Some(Inject::Init),
        (4, vector) => Some(Inject::StartUp(vector)),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        let mut out = Out(&mut bytes);
        let numbers = [0, 0x7f, 0x80, 0x1234_5678, u64::MAX];
        out.list(numbers.into_iter()).expect("memory takes all");
        let pairs = [(0, 0), (7, 9), (u32::MAX, 0), (0, u32::MAX)];
        pairs.into_iter().for_each(|(number, than)| out.difference(number, than).expect("memory takes all"));
        let delivered = [Inject::Vector(0xfb), Inject::Nmi, Inject::Init, Inject::StartUp(8)].map(Input::Deliver);
        let of = |kind: u8| Comes { vector: kind & 1 != 0, nmi: kind & 2 != 0, init: kind & 4 != 0 };
        let entered = [Input::Enter(Inject::Vector(0xfb), of(5)), Input::Enter(Inject::Nmi, of(0))];
        let inputs = [Input::Go(u64::MAX)].into_iter().chain(delivered).chain(entered).collect::<Vec<_>>();
        let creeps = [1, 2, 3, 4, 5, 6, 7].map(|kind| Input::Creep(5, of(kind)));
        inputs.iter().copied().chain(creeps).for_each(|input| out.input(input).expect("memory takes all"));
        let mut from = In(&bytes);
        assert_eq!(from.list().expect("a list"), numbers);
        pairs.into_iter().for_each(|(number, than)| assert_eq!(from.difference(than).expect("a number"), number));
        inputs.into_iter().chain(creeps).for_each(|input| assert_eq!(from.input().expect("an input"), input));
        assert!(from.0.is_empty() && from.take().is_err());
    }

    #[test]
    fn what_ends_early_or_never_is_no_number() {
        for bytes in [&[][..], &[0x80], &[0xff; 10], &[5, 1, 2]] {
            assert!(In(bytes).list().is_err(), "{bytes:x?}");
        }
        assert!(In(&[1]).difference(0).is_err(), "-1");
    }
}
