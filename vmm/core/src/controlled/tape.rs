//! What a machine was asked for, to have it do just that again: what driving it costs whoever does nothing else.

use super::{Controlled, Inject, ProcessorState, Stop};

/// All that was asked of a machine for a while, in order, with every stop that came of it.
#[derive(Debug, Default)]
pub struct Tape(Vec<Call>);

#[derive(Debug)]
pub(super) enum Call {
    Enter { vcpu: usize, how: Entry, stop: Stop },
    Answer { vcpu: usize, value: u64 },
    Refuse { vcpu: usize },
    TakeMsr { vcpu: usize, index: u32, value: u64 },
    Load { vcpu: usize, state: Box<ProcessorState>, inject: Option<Inject> },
    Write { address: u64, bytes: Box<[u8]> },
}

/// How a vCPU is entered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    Run,
    GetOn,
    Step,
    Complete,
}

impl Tape {
    /// How often a vCPU was let run until something stopped it.
    pub fn stops(&self) -> usize {
        self.0.iter().filter(|call| matches!(call, Call::Enter { how, .. } if !matches!(how, Entry::Complete))).count()
    }
}

impl Controlled {
    /// Keeps what it is asked for, from now on.
    pub fn record(&mut self) {
        self.tape.replace(Some(Vec::new()));
    }

    /// What it was asked for since then.
    pub fn recorded(&mut self) -> Tape {
        Tape(self.tape.take().unwrap_or_default())
    }

    /// Does all of that again, and nothing else: whether each stop was the same.
    pub fn play(&mut self, tape: &Tape) -> bool {
        tape.0.iter().all(|call| self.play_call(call))
    }

    fn play_call(&mut self, call: &Call) -> bool {
        match call {
            Call::Enter { vcpu, how, stop } => {
                let now = match how {
                    Entry::Run => self.run(*vcpu),
                    Entry::GetOn => self.get_on(*vcpu),
                    Entry::Step => self.step(*vcpu),
                    Entry::Complete => self.complete(*vcpu),
                };
                return now == *stop;
            }
            Call::Answer { vcpu, value } => self.answer(*vcpu, *value),
            Call::Refuse { vcpu } => self.refuse(*vcpu),
            Call::TakeMsr { vcpu, index, value } => _ = self.takes_msr(*vcpu, *index, *value),
            Call::Load { vcpu, state, inject } => self.load(*vcpu, state, *inject),
            Call::Write { address, bytes } => return self.write(*address, bytes),
        }
        true
    }

    pub(super) fn note(&self, call: impl FnOnce() -> Call) {
        if let Some(calls) = &mut *self.tape.borrow_mut() {
            calls.push(call());
        }
    }

    /// The stop of an entry.
    pub(super) fn entered(&self, vcpu: usize, how: Entry, stop: Stop) -> Stop {
        self.note(|| Call::Enter { vcpu, how, stop: stop.clone() });
        stop
    }
}
