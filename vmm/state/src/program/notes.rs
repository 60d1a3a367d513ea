//! The version note.

use object::elf::{PT_DYNAMIC, PT_INTERP};
use object::read::elf::ProgramHeader;
use stallbench_abi::image::{NOTE_NAME, NOTE_TYPE, Note};
use stallbench_abi::{Plain, VERSION};

use super::file::{File, LE, damaged};
use super::{Dynamic, ProgramError};

/// Refuses a file that was not made for this version of the contract.
pub(super) fn check_version(file: &File<'_>) -> Result<(), ProgramError> {
    match version(file)? {
        Some(VERSION) => Ok(()),
        Some(found) => Err(ProgramError::Version { found, expected: VERSION }),
        // Said before the note is missed: it is what an ordinary program is told.
        None => Err(dynamic(file).map_or(ProgramError::NoNote, ProgramError::Dynamic)),
    }
}

/// Whether a file has the contract's note, of whatever version.
pub(super) fn is_there(file: &File<'_>) -> Result<bool, ProgramError> {
    Ok(version(file)?.is_some())
}

/// What says that the file wants a dynamic loader, if anything does.
pub(super) fn dynamic(file: &File<'_>) -> Option<Dynamic> {
    file.program_headers.iter().find_map(|header| match header.p_type(LE) {
        PT_INTERP => Some(Dynamic::Interpreter),
        PT_DYNAMIC => Some(Dynamic::Section),
        _ => None,
    })
}

fn version(file: &File<'_>) -> Result<Option<u32>, ProgramError> {
    for header in file.program_headers {
        let Some(mut notes) = header.notes(LE, file.bytes).map_err(damaged("notes"))? else { continue };
        while let Some(note) = notes.next().map_err(damaged("notes"))? {
            if note.name() == NOTE_NAME.as_bytes() && note.n_type(LE).0 == NOTE_TYPE {
                return descriptor(note.desc()).map(Some);
            }
        }
    }
    Ok(None)
}

fn descriptor(bytes: &[u8]) -> Result<u32, ProgramError> {
    // A later version may append to the note, never shorten it.
    let note = Note::read(bytes).ok_or(ProgramError::NoteSize { found: bytes.len(), expected: Note::SIZE })?;
    Ok(note.version)
}
