//! What can be wrong with a layout. All of it is found before a machine exists.

use std::path::PathBuf;

use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;
use stallbench_state::mtrr::{ADDRESS_SPACE, Invalid, MemoryType, RANGES};
use thiserror::Error;

use super::number::in_words;

/// Why there is no such layout.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any layout.
    #[error("read {}: larger than {most} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// How large it may be.
        most: u64,
    },
    /// The file says something that cannot be.
    #[error("{file}:{line}: {problem}")]
    At {
        /// The file.
        file: String,
        /// Line, from 1 on.
        line: usize,
        /// What.
        problem: Box<LayoutProblem>,
    },
}

/// What is wrong, apart from where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutProblem {
    /// TOML that does not parse, or that has not the shape of a layout.
    #[error("{0}")]
    Syntax(String),
    /// A line that is none of /proc/mtrr.
    #[error("'{0}' is no line of /proc/mtrr, expected 'regNN: base=0x… (…), size=…MB, count=1: TYPE'")]
    NoProcLine(String),
    /// A line that is none of the kernel's log about MTRRs.
    #[error("'{line}' is no {what}, expected '{expected}'")]
    NoLogLine {
        /// The line.
        line: String,
        /// What stands at its place.
        what: &'static str,
        /// How that looks.
        expected: &'static str,
    },
    /// A memory type that there is not.
    #[error("unknown memory type '{word}', expected {}", types())]
    UnknownType {
        /// The word.
        word: String,
    },
    /// A key of `[registers]` that names none.
    #[error("unknown register '{0}', expected default-type, base0 to base7, mask0 to mask7 or fixed-250 to fixed-26f")]
    UnknownRegister(String),
    /// The same thing in two forms.
    #[error("{what} are given twice, here and in line {line}")]
    Twice {
        /// What.
        what: &'static str,
        /// Where else.
        line: usize,
    },
    /// A range of nothing, or of less than a page.
    #[error("range {register}: its size is {}, expected 4 KiB at least", in_words(*size))]
    TooSmall {
        /// The register.
        register: u64,
        /// Its size.
        size: u64,
    },
    /// A size that no mask can say.
    #[error("range {register}: its size {size:#x} ({}) is no power of two", in_words(*size))]
    SizeNotPowerOfTwo {
        /// The register.
        register: u64,
        /// Its size.
        size: u64,
    },
    /// A base that no mask can say.
    #[error("range {register}: its base {base:#x} is no multiple of its size {size:#x} ({})", in_words(*size))]
    Misaligned {
        /// The register.
        register: u64,
        /// Its base.
        base: u64,
        /// Its size.
        size: u64,
    },
    /// A mask with holes.
    #[error("range {register}: its mask {mask:#x} has holes, so that its size is no power of two")]
    Holes {
        /// The register.
        register: u64,
        /// The mask.
        mask: u64,
    },
    /// A register that the machine does not have.
    #[error("range {register}: the machine has {RANGES} variable ranges (VCNT), 0 to {}", RANGES - 1)]
    NoRegister {
        /// The register.
        register: u64,
    },
    /// A register that is written twice.
    #[error("range {register} is in line {line} already")]
    Duplicate {
        /// The register.
        register: u64,
        /// Where else.
        line: usize,
    },
    /// A range beyond what the machine can address.
    #[error(
        "range {register} reaches {last:#x}: the machine has {MAX_PHYS_ADDR_BITS} address bits (MAXPHYADDR), up to {:#x}",
        ADDRESS_SPACE - 1
    )]
    AboveMaxPhysAddr {
        /// The register.
        register: u64,
        /// The last byte of its range.
        last: u64,
    },
    /// Ranges whose types the manual does not let overlap.
    #[error(
        "range {register} ({kind}) and range {other} ({other_kind}, line {line}) overlap from {start:#x} to {last:#x}, which the \
         manual leaves undefined: only uncachable may overlap with anything, and write-through with write-back"
    )]
    UndefinedOverlap {
        /// One register.
        register: usize,
        /// Its type.
        kind: MemoryType,
        /// The other.
        other: usize,
        /// Its type.
        other_kind: MemoryType,
        /// Its line.
        line: usize,
        /// First byte of both.
        start: u64,
        /// Last byte of both.
        last: u64,
    },
    /// A fixed range that no register can say.
    #[error("fixed range {from:#x} to {to:#x}: {why}")]
    Fixed {
        /// First byte.
        from: u64,
        /// Last byte.
        to: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The value of a register that the manual forbids.
    #[error("{0}")]
    Register(Invalid),
    /// MTRRs that are off.
    #[error("default-type {0:#x}: MTRRs are off (E=0), so that all memory is uncachable and no range means anything")]
    Off(u64),
    /// A text that says nothing.
    #[error("there is nothing to program: no range, no fixed range and no default type")]
    Nothing,
}

fn types() -> String {
    MemoryType::ALL.map(MemoryType::word).join(", ")
}
