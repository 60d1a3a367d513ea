//! Writes a dump.
//!
//! ```text
//! file header · program headers · notes · a block of zeros · the memory that is not zero
//! ```

use std::io;

use crc32fast::Hasher;

use super::file::{self, HEADER, LOAD, NOTE, PROGRAM_HEADER, ProgramHeader};
use super::note::{STALLBENCH, append, kind};
use super::segments::{Segment, segments, zero_block};
use super::{Parts, VERSION, core_notes, table, vcpu};
use crate::machine::MachineState;
use crate::memory::Memory;
use crate::paging::{self, Mapping, PAGE};

/// Where the parts of a file lie.
struct Places {
    notes: u64,
    notes_size: u64,
    zeros: u64,
    runs: u64,
}

/// Writes the file: what is before memory in one piece.
pub(super) fn write(parts: &Parts<'_>, out: &mut impl io::Write) -> io::Result<()> {
    let segments = segments(parts.memory, &mapped(parts.machine, parts.memory));
    let (mut notes, checksum) = notes(parts)?;
    let places = places(parts, segments.len(), notes.len());
    append(&mut notes, STALLBENCH, kind::MEMORY, &table::to_note(parts.memory, places.runs));
    let mut head = headers(&segments, &places);
    let checksum = head.len() + checksum;
    head.extend(notes);
    head.resize(places.runs as usize, 0);
    let found = sum(&head, parts);
    head[checksum..checksum + 4].copy_from_slice(&found.to_le_bytes());
    out.write_all(&head)?;
    parts.memory.runs().iter().try_for_each(|run| out.write_all(&run.bytes))?;
    out.flush()
}

/// What vCPU 0 maps, where its tables are of a known kind.
fn mapped(machine: &MachineState, memory: &dyn Memory) -> Vec<Mapping> {
    let system = machine.vcpus.first().and_then(|vcpu| vcpu.system.as_ref().ok());
    let system = system.filter(|system| paging::is_known(system));
    system.map_or_else(Vec::new, |system| paging::mappings(memory, system.cr3))
}

/// All notes but that of memory, and where the checksum lies in them.
fn notes(parts: &Parts<'_>) -> io::Result<(Vec<u8>, usize)> {
    let mut notes = Vec::new();
    core_notes::append_all(&mut notes, &parts.machine.vcpus);
    let version = u64::from(VERSION).to_le_bytes();
    let version = append(&mut notes, STALLBENCH, kind::VERSION, &version);
    append(&mut notes, STALLBENCH, kind::ABOUT, &serde_json::to_vec(parts.about)?);
    for vcpu in &parts.machine.vcpus {
        append(&mut notes, STALLBENCH, kind::VCPU, &vcpu::to_note(vcpu)?);
    }
    append(&mut notes, STALLBENCH, kind::PAYLOAD, &parts.payload.to_note());
    Ok((notes, version + 4))
}

fn places(parts: &Parts<'_>, segments: usize, notes: usize) -> Places {
    let mut memory_note = Vec::new();
    append(&mut memory_note, STALLBENCH, kind::MEMORY, &vec![0; table::size(parts.memory)]);
    let notes_at = HEADER + PROGRAM_HEADER * (segments as u64 + 1);
    let notes_size = (notes + memory_note.len()) as u64;
    let zeros = (notes_at + notes_size).next_multiple_of(PAGE);
    Places { notes: notes_at, notes_size, zeros, runs: zeros + zero_block(parts.memory) }
}

fn headers(segments: &[Segment], places: &Places) -> Vec<u8> {
    // No more of them than 16 bits can count.
    let mut head = file::header(segments.len() as u16 + 1);
    let notes = ProgramHeader { kind: NOTE, offset: places.notes, linear: 0, physical: 0, size: places.notes_size };
    notes.append(&mut head);
    for &Segment { linear, physical, size, run } in segments {
        let offset = run.map_or(places.zeros, |run| places.runs + run);
        ProgramHeader { kind: LOAD, offset, linear, physical, size }.append(&mut head);
    }
    head
}

fn sum(head: &[u8], parts: &Parts<'_>) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(head);
    parts.memory.runs().iter().for_each(|run| hasher.update(&run.bytes));
    hasher.finalize()
}
