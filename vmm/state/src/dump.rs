//! Dumps: one machine at one moment in one file, with all that is needed to understand it anywhere.
//!
//! Owns the file's layout (docs/dump.md), which is an ELF core, so that gdb opens it too. Plain data, used from any thread.

mod error;
mod memory;

use std::fmt;
use std::io;
use std::ops::Range;

use serde_json::Value;

pub use error::DumpError;
pub use memory::DumpedMemory;

use crate::machine::MachineState;
use crate::memory::Memory;

/// A machine at one moment, with all that is needed to understand it anywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    /// What it is of.
    pub about: About,
    /// All vCPUs, captured in full.
    pub machine: MachineState,
    /// Guest-physical memory; pages of zeros take no room.
    pub memory: DumpedMemory,
    /// The guest's own ELF file.
    pub payload: Vec<u8>,
}

/// What a dump is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    /// Version of stallbench that wrote it.
    pub tool: String,
    /// The run, as `stallbench run` takes its name.
    pub run: String,
    /// The command that repeats it.
    pub command: String,
    /// The host's fingerprint, as in reports: a JSON object.
    pub host: Value,
    /// The result, as a line of a JSON report has it (docs/json.md), where there was one.
    pub result: Option<Value>,
}

/// What a dump is written from.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// What it is of.
    pub about: &'a About,
    /// All vCPUs, captured in full.
    pub machine: &'a MachineState,
    /// Guest-physical memory, standing still.
    pub memory: &'a dyn Memory,
    /// Where there is memory: ascending, none overlaps another.
    pub ranges: &'a [Range<u64>],
    /// The guest's own ELF file.
    pub payload: &'a [u8],
}

impl Dump {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`DumpError`] names what is wrong with the file, where, and what was expected.
    pub fn read(bytes: &[u8]) -> Result<Self, DumpError> {
        let _ = bytes;
        Err(DumpError::NoCore)
    }

    /// Writes it as a file.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        let Self { about, machine, memory, payload } = self;
        Parts { about, machine, memory, ranges: memory.ranges(), payload }.write(out)
    }
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("about", self.about).field("ranges", &self.ranges).finish_non_exhaustive()
    }
}

impl Parts<'_> {
    /// Writes them as a file.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        let _ = out;
        Err(io::ErrorKind::Unsupported.into())
    }
}
