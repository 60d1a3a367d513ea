//! What can be wrong with a dump.

use std::fmt;

use thiserror::Error;

use super::VERSION;

/// A part of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The ELF file's header and its program headers.
    Headers,
    /// The notes, as such.
    Notes,
    /// The note with the version and the checksum.
    Version,
    /// The note that says what the dump is of.
    About,
    /// The note of a vCPU.
    Vcpu(usize),
    /// Memory: the note that says where it lies, or its content.
    Memory,
    /// The note with the guest's ELF file.
    Payload,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headers => f.write_str("file header"),
            Self::Notes => f.write_str("notes"),
            Self::Version => f.write_str("version note"),
            Self::About => f.write_str("about note"),
            Self::Vcpu(vcpu) => write!(f, "note of vcpu{vcpu}"),
            Self::Memory => f.write_str("memory"),
            Self::Payload => f.write_str("payload note"),
        }
    }
}

/// Why a file is no dump that can be read; each reads well behind `failed to`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DumpError {
    /// Not an ELF core for x86-64.
    #[error("find a dump: {found}, expected an ELF core for x86-64, as `stallbench run --dump always` writes it")]
    NoCore {
        /// What it is.
        found: &'static str,
    },
    /// A core of somebody else's.
    #[error("find a dump: an ELF core without notes of stallbench; gdb may read it")]
    Foreign,
    /// Written by a later version.
    #[error("read a dump of version {found}: this stallbench reads up to version {VERSION}, a newer one is needed")]
    Newer {
        /// The version found.
        found: u32,
    },
    /// It does not hold what was written.
    #[error(
        "trust the dump: its checksum is {found:#010x}, its content has {computed:#010x}; it is damaged, copy it again"
    )]
    Checksum {
        /// In the version note.
        found: u32,
        /// Of the content.
        computed: u32,
    },
    /// It ends too early.
    #[error(
        "read the {part}: it lies at {offset:#x} to {end:#x}, and the file ends at {size:#x}; it is cut short, copy it again"
    )]
    Truncated {
        /// What is not all there.
        part: Part,
        /// Where it begins in the file.
        offset: u64,
        /// Where it ends.
        end: u64,
        /// The file's size.
        size: u64,
    },
    /// A part is absent.
    #[error("find the {part}: the dump has none")]
    Missing {
        /// Which.
        part: Part,
    },
    /// A part is there twice.
    #[error("read the {part}: the dump has two")]
    Twice {
        /// Which.
        part: Part,
    },
    /// A part is not what it should be.
    #[error("read the {part}: {reason}")]
    Malformed {
        /// Which.
        part: Part,
        /// What was found, and what was expected.
        reason: String,
    },
}

/// A part that is not what it should be.
pub(super) fn malformed(part: Part, reason: impl fmt::Display) -> DumpError {
    DumpError::Malformed { part, reason: reason.to_string() }
}
