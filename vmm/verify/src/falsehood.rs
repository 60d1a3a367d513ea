//! What a well formed certificate can be wrong in: the state, the transition, and what does not hold of it.

use core::fmt;

use thiserror::Error;

use crate::shape::names;

/// A certificate is false.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{at}: {wrong}")]
pub struct Falsehood {
    /// Where.
    pub at: At,
    /// How.
    pub wrong: Wrong,
}

/// A place in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// What does not change of a vCPU.
    Vcpu(usize),
    /// The component of these vCPUs.
    Component(Vec<usize>),
    /// A state of the component of these vCPUs, and one of them.
    State {
        /// Its index.
        state: usize,
        /// All vCPUs of the component.
        vcpus: Vec<usize>,
        /// The one that it is about.
        vcpu: usize,
    },
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(vcpu) => write!(f, "vcpu{vcpu}"),
            Self::Component(vcpus) => f.write_str(&names(vcpus)),
            Self::State { state, vcpus, .. } if vcpus.len() == 1 => write!(f, "state {state} of {}", names(vcpus)),
            Self::State { state, vcpus, vcpu } => write!(f, "state {state} of {}, vcpu{vcpu}", names(vcpus)),
        }
    }
}

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Wrong {
    /// There is no state.
    #[error("there is no state that it could be in")]
    NoState,
    /// It runs in a mode that is not checked.
    #[error("it does not execute 64-bit code in ring 0 with four-level paging, and nothing else is checked")]
    Mode,
    /// Its system registers are none.
    #[error("its system registers hold what no processor can")]
    SystemRegisters,
    /// It traps by itself.
    #[error("it traps after each instruction (RFLAGS.TF)")]
    Traps,
    /// An interrupt gets in.
    #[error("vector {0:#x} is deliverable")]
    Vector(u8),
    /// An NMI gets in.
    #[error("an NMI is deliverable")]
    Nmi,
    /// A timer may end it.
    #[error("the timer of its local APIC is not masked (LVT timer {lvt:#x})")]
    Timer {
        /// The timer's entry.
        lvt: u64,
    },
    /// What happens is not listed.
    #[error("no edge says that executing one instruction leads to state {to}")]
    NoEdge {
        /// Where it leads.
        to: usize,
    },
    /// What is listed does not happen.
    #[error("the edge to state {to} does not exist: {because}")]
    NotAnEdge {
        /// Where it leads.
        to: usize,
        /// Why not.
        because: NotAnEdge,
    },
    /// An edge that leaves from nowhere.
    #[error("an edge of vcpu{vcpu} leaves state {from}, which does not exist")]
    EdgeFromNowhere {
        /// Where it leaves.
        from: usize,
        /// Whose it is.
        vcpu: usize,
    },
    /// What happens leads out of the set.
    #[error("executing one instruction leads to rip {rip:#x}, which is no state of the set: {difference}")]
    NotClosed {
        /// Where the vCPU is then.
        rip: u64,
        /// What the nearest state has otherwise.
        difference: String,
    },
    /// Its code cannot be fetched.
    #[error("its code at {linear:#x} is not in the memory of the certificate")]
    Code {
        /// Its address.
        linear: u64,
    },
    /// It accesses what the certificate does not hold.
    #[error("it {access} {size} bytes at {address:#x}, which the certificate does not hold")]
    Foreign {
        /// `reads` or `writes`.
        access: &'static str,
        /// Where.
        address: u64,
        /// How many.
        size: usize,
    },
    /// It reads what others change.
    #[error("{} {} {address:#x}, which vcpu{reader} reads", names(.changers), if .changers.len() == 1 { "changes" } else { "change" })]
    Dependent {
        /// The first byte.
        address: u64,
        /// Whose cells it is in.
        changers: Vec<usize>,
        /// Who reads it.
        reader: usize,
    },
    /// It writes what is only others' to change.
    #[error("it writes {address:#x}, of which {} has states", names(.owners))]
    Intruder {
        /// The first byte.
        address: u64,
        /// Whose cells it is in.
        owners: Vec<usize>,
    },
    /// Memory that changes lies where it cannot be seen who reads it.
    #[error("{address:#x} changes, in a page of {what}: whoever reads it cannot be seen")]
    Unseen {
        /// The first byte.
        address: u64,
        /// What the page holds.
        what: &'static str,
    },
    /// Memory changes that is the same in all states.
    #[error(
        "executing one instruction changes the byte at {address:#x} from {was:#x} to {is:#x}, which is the same in all states"
    )]
    Changes {
        /// Where.
        address: u64,
        /// What it was.
        was: u8,
        /// What it is.
        is: u8,
    },
    /// The processor or the vCPU changes page tables.
    #[error("executing one instruction changes the page tables at {page:#x}")]
    Tables {
        /// The page.
        page: u64,
    },
    /// It has too many page tables.
    #[error("it has more page tables than are checked")]
    ManyTables,
    /// Its local APIC is taken for memory.
    #[error("the memory of the certificate has the page {page:#x}, where its local APIC is")]
    Apic {
        /// The page.
        page: u64,
    },
    /// System registers change.
    #[error("executing one instruction changes {0}")]
    System(&'static str),
    /// A port is accessed.
    #[error("it accesses port {0:#x}")]
    Port(u16),
    /// A model-specific register is accessed.
    #[error("it accesses model-specific register {0:#x}")]
    Msr(u32),
    /// An exception, and no handler that is let run.
    #[error("executing one instruction raises an exception")]
    Raises,
    /// The instruction is none whose result is known by the state.
    #[error("it executes {0}, and what comes of that is not known by the state")]
    Refused(&'static str),
    /// It leaves the guest for another reason.
    #[error("executing one instruction ends in {0}")]
    Exit(String),
    /// It does not come to an end.
    #[error("executing one instruction comes to no end: {accesses} accesses in {seconds} s")]
    Unending {
        /// What it has accessed.
        accesses: usize,
        /// How long it took.
        seconds: u64,
    },
    /// A store may be delayed while something else is read.
    #[error(
        "it stores {size} bytes at {address:#x} without a lock, which vcpus of the set share with other words: the store may be delayed"
    )]
    Delayed {
        /// Where.
        address: u64,
        /// How many.
        size: usize,
    },
    /// Two accesses of an instruction between which another vCPU may come.
    #[error("its access to {address:#x} is not one step for the vcpus that share it")]
    Torn {
        /// Where.
        address: u64,
    },
}

/// Why an edge does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAnEdge {
    /// The vCPU executes nothing in that state.
    #[error("it executes nothing there")]
    ExecutesNothing,
    /// It is not of this component.
    #[error("that is none of these vcpus")]
    NotAMember,
    /// There is no such state.
    #[error("there is no such state")]
    NoState,
    /// Another one is listed.
    #[error("there is another one, and executing one instruction has one result")]
    Second,
    /// It leads elsewhere.
    #[error("executing one instruction leads to state {0}")]
    Elsewhere(usize),
}
