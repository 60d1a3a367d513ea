//! Dumps: one machine at one moment in one file, with all that is needed to understand it anywhere.
//!
//! Owns the file's layout (docs/dump.md), which is an ELF core, so that gdb opens it too. A file may come from anywhere: nothing
//! in it is believed, and what is wrong is named with the place. Plain data, used from any thread.

mod core_notes;
mod error;
mod file;
mod memory;
mod note;
mod packed;
mod read;
mod segments;
mod table;
#[cfg(test)]
mod test;
mod vcpu;
mod write;

use std::{fmt, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use error::{DumpError, Part};
pub use memory::DumpedMemory;
pub use packed::Packed;

use crate::machine::MachineState;

/// Version of the layout that is written, and the newest that is read.
pub const VERSION: u32 = 1;

/// A machine at one moment, with all that is needed to understand it anywhere.
#[derive(Clone, PartialEq)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

/// What a dump is written from.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// What it is of.
    pub about: &'a About,
    /// All vCPUs, captured in full.
    pub machine: &'a MachineState,
    /// Guest-physical memory.
    pub memory: &'a DumpedMemory,
    /// The guest's own ELF file.
    pub payload: &'a Packed,
}

impl Dump {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`DumpError`] names what is wrong with the file, where, and what was expected.
    pub fn read(bytes: &[u8]) -> Result<Self, DumpError> {
        read::read(bytes)
    }

    /// Writes it as a file.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        let Self { about, machine, memory, payload } = self;
        Parts { about, machine, memory, payload: &Packed::of(payload) }.write(out)
    }
}

impl Parts<'_> {
    /// Writes them as a file.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        write::write(self, out)
    }
}

impl fmt::Debug for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dump")
            .field("about", &self.about)
            .field("vcpus", &self.machine.vcpus.len())
            .field("memory", &self.memory.ranges())
            .field("payload", &self.payload.len())
            .finish_non_exhaustive()
    }
}
