//! The guest's own file: a program that keeps the contract, any other, or one that cannot be read.

use stallbench_abi::layout::PAGE;
use stallbench_stall::code::Code;
use stallbench_state::program::{Payload, PlainProgram, Program, ProgramError, SiteInfo, Symbol};

/// The guest's own file.
#[derive(Debug)]
pub(crate) enum Guest {
    /// It keeps the contract.
    Contract(Box<Program>),
    /// It does not, and was not made to.
    Plain(Box<PlainProgram>),
    /// Nothing is known of it: no symbols, no wait sites.
    Unreadable(ProgramError),
}

impl Guest {
    pub(crate) fn of(payload: &[u8]) -> Self {
        match Payload::parse(payload.to_vec()) {
            Ok(Payload::Contract(program)) => Self::Contract(program),
            Ok(Payload::Plain(program)) => Self::Plain(program),
            Err(error) => Self::Unreadable(error),
        }
    }

    /// The program, where it keeps the contract.
    pub(crate) fn contract(&self) -> Option<&Program> {
        match self {
            Self::Contract(program) => Some(program),
            Self::Plain(_) | Self::Unreadable(_) => None,
        }
    }

    /// The file, where it could be read.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Contract(program) => Some(program.bytes()),
            Self::Plain(program) => Some(program.bytes()),
            Self::Unreadable(_) => None,
        }
    }

    /// The variable of a plain guest in which an address lies, or the label in its page: `token`, `table+0x8`.
    pub(crate) fn object(&self, address: u64) -> Option<String> {
        let Self::Plain(program) = self else { return None };
        let (name, offset) = program.object(address).filter(|(_, offset)| *offset < PAGE)?;
        Some(if offset == 0 { name } else { format!("{name}+{offset:#x}") })
    }

    /// Functions and labels, by ascending address.
    pub(crate) fn symbols(&self) -> Vec<Symbol> {
        match self {
            Self::Contract(program) => program.symbols(),
            Self::Plain(program) => program.symbols(),
            Self::Unreadable(_) => Vec::new(),
        }
    }
}

impl Code for Guest {
    fn site_at(&self, descriptor: u64) -> Option<&SiteInfo> {
        self.contract()?.site_at(descriptor)
    }

    fn site_of_rip(&self, rip: u64) -> Option<&SiteInfo> {
        self.contract()?.site_of_rip(rip)
    }

    fn symbol(&self, address: u64) -> Option<(String, u64)> {
        match self {
            Self::Contract(program) => program.symbol(address),
            Self::Plain(program) => program.symbol(address),
            Self::Unreadable(_) => None,
        }
    }
}
