//! Reads a dump.

use std::ops::Range;

use crc32fast::Hasher;

use super::error::malformed;
use super::file::{self, u32_at};
use super::note::{self, Note, kind};
use super::{About, Dump, DumpError, Packed, Part, VERSION, table, vcpu};
use crate::machine::MachineState;

/// Reads a file.
pub(super) fn read(bytes: &[u8]) -> Result<Dump, DumpError> {
    let notes = file::notes(bytes)?.ok_or(DumpError::Foreign)?;
    let notes = Notes { bytes, notes: note::read(bytes, notes)? };
    notes.check()?;
    let about: About =
        serde_json::from_slice(notes.one(kind::ABOUT, Part::About)?).map_err(|error| malformed(Part::About, error))?;
    Ok(Dump {
        about,
        machine: notes.machine()?,
        memory: table::read(bytes, notes.one(kind::MEMORY, Part::Memory)?)?,
        payload: Packed::unpack(notes.one(kind::PAYLOAD, Part::Payload)?)?,
    })
}

/// The notes of a file.
struct Notes<'a> {
    bytes: &'a [u8],
    notes: Vec<Note>,
}

impl<'a> Notes<'a> {
    /// Refuses what is not stallbench's, what is damaged, and what is newer.
    fn check(&self) -> Result<(), DumpError> {
        if !self.notes.iter().any(|note| note.is_own) {
            return Err(DumpError::Foreign);
        }
        let place = self.place(kind::VERSION, Part::Version)?;
        let note = &self.bytes[place.clone()];
        let (Some(version), Some(found)) = (u32_at(note, 0), u32_at(note, 4)) else {
            return Err(malformed(Part::Version, format!("it has {} bytes, expected 8 or more", note.len())));
        };
        let computed = sum_without(self.bytes, place.start + 4);
        if found != computed {
            return Err(DumpError::Checksum { found, computed });
        }
        match version {
            1..=VERSION => Ok(()),
            0 => Err(malformed(Part::Version, "it says version 0, and the first is 1")),
            found => Err(DumpError::Newer { found }),
        }
    }

    fn machine(&self) -> Result<MachineState, DumpError> {
        let notes = self.notes.iter().filter(|note| note.is_own && note.kind == kind::VCPU);
        let vcpus = notes.enumerate().map(|(index, note)| vcpu::read(&self.bytes[note.content.clone()], index));
        let vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
        if vcpus.is_empty() { Err(DumpError::Missing { part: Part::Vcpu(0) }) } else { Ok(MachineState { vcpus }) }
    }

    /// The content of the only note of that kind.
    fn one(&self, kind: u32, part: Part) -> Result<&'a [u8], DumpError> {
        self.place(kind, part).map(|place| &self.bytes[place])
    }

    fn place(&self, kind: u32, part: Part) -> Result<Range<usize>, DumpError> {
        let mut found = self.notes.iter().filter(|note| note.is_own && note.kind == kind);
        let note = found.next().ok_or(DumpError::Missing { part })?;
        if found.next().is_some() { Err(DumpError::Twice { part }) } else { Ok(note.content.clone()) }
    }
}

/// The checksum of a file in which the four bytes there, which lie in it, are zero.
fn sum_without(bytes: &[u8], at: usize) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&bytes[..at]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[at + 4..]);
    hasher.finalize()
}
