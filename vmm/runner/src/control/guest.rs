//! What is known of the guest of a run: what a proof may leave out, and where vCPUs can be held.

use stallbench_core::Machine;
use stallbench_stall::code::Code;
use stallbench_state::certificate::{Span, Word};
use stallbench_state::program::{PlainProgram, Program};

use crate::execute::ghost;
use crate::plain::GhostSpan;
use crate::scenario::Injected;

/// The guest of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guest<'m> {
    /// One that keeps the contract, with what is done to it.
    Contract(&'m Program, &'m Injected),
    /// One that publishes nothing, with the memory that decides nothing in it.
    Plain(&'m PlainProgram, &'m [GhostSpan]),
}

impl<'m> Guest<'m> {
    /// Its ELF file.
    pub(super) fn bytes(&self) -> &'m [u8] {
        match self {
            Self::Contract(program, _) => program.bytes(),
            Self::Plain(program, _) => program.bytes(),
        }
    }

    pub(super) fn code(&self) -> &'m dyn Code {
        match self {
            Self::Contract(program, _) => *program,
            Self::Plain(program, _) => *program,
        }
    }

    /// Whether it publishes what it does.
    pub(super) fn publishes(&self) -> bool {
        matches!(self, Self::Contract(..))
    }

    /// Memory that no decision of it reads.
    pub(super) fn ghost(&self, machine: &Machine) -> Vec<Span> {
        match self {
            Self::Contract(..) => ghost(machine.vcpus()),
            Self::Plain(_, spans) => {
                spans.iter().map(|span| Span { address: Word(span.address), size: span.size }).collect()
            }
        }
    }
}
