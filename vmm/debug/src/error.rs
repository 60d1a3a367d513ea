//! Why a command could not answer. Each is one line, and the session goes on.

use stallbench_state::dump::DumpError;
use stallbench_state::machine::Unread;
use stallbench_state::program::ProgramError;
use thiserror::Error;

use crate::live::LiveError;

/// Why a command could not answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommandError {
    /// There is no such command.
    #[error("no command {name}{near}; `help` lists them")]
    UnknownCommand {
        /// What was typed.
        name: String,
        /// The nearest names.
        near: String,
    },
    /// It takes other arguments.
    #[error("{problem}; usage: {usage}")]
    Usage {
        /// What is wrong.
        problem: String,
        /// How it is used.
        usage: &'static str,
    },
    /// A quotation mark without its second half.
    #[error("a quotation mark is not closed: {line}")]
    OpenQuote {
        /// The line.
        line: String,
    },
    /// There is no such vCPU.
    #[error("no vCPU {asked}: there are {vcpus}, from 0 on")]
    UnknownVcpu {
        /// What was asked for.
        asked: String,
        /// How many there are.
        vcpus: usize,
    },
    /// There is no such register.
    #[error("no register ${name}{near}")]
    UnknownRegister {
        /// What was typed, without the dollar sign.
        name: String,
        /// The nearest names.
        near: String,
    },
    /// Neither a number nor a symbol.
    #[error("neither a number nor a symbol: {name}{near}")]
    UnknownSymbol {
        /// What was typed.
        name: String,
        /// The nearest names.
        near: String,
    },
    /// Guest-physical, where that cannot be.
    #[error("{text} is guest-physical: memory is read and written there, and here a linear address is expected")]
    Physical {
        /// What was typed.
        text: String,
    },
    /// The last part of more than one symbol.
    #[error("{count} symbols end in {name}; say more of it, or all: {first}")]
    Ambiguous {
        /// What was typed.
        name: String,
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// A vCPU that does not get on by itself.
    #[error("vcpu{vcpu} {state}, and takes no step")]
    TakesNoStep {
        /// The vCPU.
        vcpu: usize,
        /// Why, as a verb and what follows.
        state: &'static str,
    },
    /// There is no such pause point.
    #[error("no pause point {name}{near}")]
    UnknownPoint {
        /// What was typed.
        name: String,
        /// The nearest names.
        near: String,
    },
    /// A register that is not written.
    #[error("{name} is only read here: general registers, RIP and RFLAGS are written")]
    ReadOnly {
        /// The register.
        name: String,
    },
    /// More than one place has that name.
    #[error("{name} is in {count} places: {which}; say one of them")]
    SeveralPlaces {
        /// What was typed.
        name: String,
        /// How many.
        count: usize,
        /// The first of them.
        which: String,
    },
    /// There is no such structure.
    #[error("no structure {name}{near}; `help print` lists those of the contract, `print --types` those of the guest")]
    UnknownStructure {
        /// What was typed.
        name: String,
        /// The nearest names.
        near: String,
    },
    /// The vCPU's page tables lead nowhere.
    #[error("vcpu{vcpu} has nothing mapped at {address:#x}: {why}")]
    NotMapped {
        /// The vCPU.
        vcpu: usize,
        /// The linear address.
        address: u64,
        /// Where the walk ends.
        why: String,
    },
    /// No memory there.
    #[error("no guest memory at physical address {address:#x}")]
    NoMemory {
        /// The guest-physical address.
        address: u64,
    },
    /// A group of registers that was not read.
    #[error("vcpu{vcpu}: {unread}")]
    Unread {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        unread: Unread,
    },
    /// A group of registers that this capture left out.
    #[error("vcpu{vcpu}: {what} were not captured")]
    NotCaptured {
        /// The vCPU.
        vcpu: usize,
        /// Which.
        what: &'static str,
    },
    /// The guest publishes nothing.
    #[error("this guest keeps no contract with the host: it publishes no {what}")]
    NothingPublished {
        /// What was asked for.
        what: &'static str,
    },
    /// The guest's own file cannot be read.
    #[error("the payload in it cannot be read: {0}")]
    Payload(String),
    /// The machine did not do what was asked.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// It is none that could run on.
    #[error("that needs a machine that can run on; this is a dump, which is over")]
    NotLive,
    /// It stands at no step of a trace.
    #[error("that needs a trace: `stallbench debug --trace FILE`")]
    NoTrace,
    /// There is no such step.
    #[error("{asked}: the steps are 1 to {last}, and 0 is the start line")]
    NoStep {
        /// What was asked for.
        asked: String,
        /// The last.
        last: usize,
    },
    /// The machine could not be put at a step.
    #[error("step {step}: {why}")]
    Steps {
        /// Which.
        step: usize,
        /// What went wrong.
        why: String,
    },
    /// Somebody was asked, and said no.
    #[error("nothing was done")]
    Declined,
    /// Nobody can be asked.
    #[error("{question} Nobody can be asked here: say --yes behind the command")]
    Unconfirmed {
        /// What would be asked.
        question: String,
    },
    /// There is nothing to compare a machine with.
    #[error("nothing has changed since the first look")]
    NoThen,
    /// There is no dump of it.
    #[error("this machine is none that can be written as a dump")]
    NoDump,
    /// Another file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the host said.
        source: std::io::Error,
    },
    /// Another file is no dump.
    #[error("{path}: failed to {source}")]
    Dump {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: DumpError,
    },
}

impl From<&ProgramError> for CommandError {
    fn from(error: &ProgramError) -> Self {
        Self::Payload(error.to_string())
    }
}
