//! The ELF core as such (System V ABI, chapter 4): its header, its program headers, and where its notes lie.

use std::ops::Range;

use super::error::malformed;
use super::{DumpError, Part};

/// Bytes of the file header.
pub(super) const HEADER: u64 = 64;
/// Bytes of a program header.
pub(super) const PROGRAM_HEADER: u64 = 56;
/// Most program headers: more need another way to count them (`PN_XNUM`).
pub(super) const MOST_HEADERS: usize = 0xfff0;
/// `e_ident`: magic, 64 bits, little-endian, version 1.
const IDENT: [u8; 7] = *b"\x7fELF\x02\x01\x01";
/// `e_type` of a core, `e_machine` of x86-64.
const CORE: u16 = 4;
const X86_64: u16 = 62;
/// `p_type` of what is in memory, and of notes.
pub(super) const LOAD: u32 = 1;
pub(super) const NOTE: u32 = 4;

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProgramHeader {
    pub(super) kind: u32,
    pub(super) offset: u64,
    pub(super) linear: u64,
    pub(super) physical: u64,
    pub(super) size: u64,
}

impl ProgramHeader {
    /// As it lies in the file. Memory can be read, written and executed: who may do what is not told.
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        let (flags, align, in_memory) = if self.kind == LOAD { (7, 4096, self.size) } else { (0, 4, 0) };
        out.extend(self.kind.to_le_bytes());
        out.extend(u32::to_le_bytes(flags));
        for word in [self.offset, self.linear, self.physical, self.size, in_memory, align] {
            out.extend(word.to_le_bytes());
        }
    }
}

/// The header of a core with so many program headers right behind it.
pub(super) fn header(program_headers: u16) -> Vec<u8> {
    let mut out = IDENT.to_vec();
    out.resize(16, 0);
    out.extend(CORE.to_le_bytes());
    out.extend(X86_64.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    for word in [0, HEADER, 0] {
        out.extend(u64::to_le_bytes(word));
    }
    out.extend([0; 4]);
    for half in [HEADER as u16, PROGRAM_HEADER as u16, program_headers, 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    out
}

/// Checks the header and finds the notes; nothing where there are none.
pub(super) fn notes(bytes: &[u8]) -> Result<Option<Range<usize>>, DumpError> {
    check_kind(bytes)?;
    let (Some(offset), Some(size), Some(count)) = (u64_at(bytes, 32), u16_at(bytes, 54), u16_at(bytes, 56)) else {
        return Err(truncated(bytes, Part::Headers, 0, HEADER));
    };
    if u64::from(size) != PROGRAM_HEADER {
        let reason = format!("its program headers have {size} bytes each, expected {PROGRAM_HEADER}");
        return Err(malformed(Part::Headers, reason));
    }
    let all = within(bytes, Part::Headers, offset, u64::from(count) * PROGRAM_HEADER)?;
    let (headers, _) = bytes[all].as_chunks::<{ PROGRAM_HEADER as usize }>();
    let Some(header) = headers.iter().find(|header| u32_at(*header, 0) == Some(NOTE)) else { return Ok(None) };
    let notes = content(bytes, Part::Notes, header)?;
    // A file that is cut short is told as such, before its checksum is looked at.
    headers.iter().try_for_each(|header| content(bytes, Part::Memory, header).map(drop))?;
    Ok(Some(notes))
}

/// What a program header says to lie in the file.
fn content(bytes: &[u8], part: Part, header: &[u8]) -> Result<Range<usize>, DumpError> {
    let (offset, size) = (u64_at(header, 8).unwrap_or_default(), u64_at(header, 32).unwrap_or_default());
    within(bytes, part, offset, size)
}

fn check_kind(bytes: &[u8]) -> Result<(), DumpError> {
    let no_core = |found| Err(DumpError::NoCore { found });
    if bytes.is_empty() {
        return no_core("an empty file");
    }
    if !bytes.starts_with(&IDENT) {
        let known = bytes.len().min(IDENT.len());
        return match bytes[..known] == IDENT[..known] {
            true => Err(truncated(bytes, Part::Headers, 0, HEADER)),
            false if bytes.starts_with(&IDENT[..4]) => no_core("an ELF file of another class or byte order"),
            false => no_core("not an ELF file"),
        };
    }
    match (u16_at(bytes, 16), u16_at(bytes, 18)) {
        (Some(CORE), Some(X86_64)) => Ok(()),
        (Some(CORE), Some(_)) => no_core("an ELF core for another machine"),
        (Some(_), Some(_)) => no_core("an ELF file that is no core"),
        _ => Err(truncated(bytes, Part::Headers, 0, HEADER)),
    }
}

/// `size` bytes at `offset`, all of which have to be in the file.
pub(super) fn within(bytes: &[u8], part: Part, offset: u64, size: u64) -> Result<Range<usize>, DumpError> {
    let end = offset.saturating_add(size);
    match (usize::try_from(offset), usize::try_from(end)) {
        (Ok(start), Ok(stop)) if stop <= bytes.len() => Ok(start..stop),
        _ => Err(truncated(bytes, part, offset, end)),
    }
}

fn truncated(bytes: &[u8], part: Part, offset: u64, end: u64) -> DumpError {
    DumpError::Truncated { part, offset, end, size: bytes.len() as u64 }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

/// A word of 32 bits at that offset.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

/// A word of 64 bits at that offset.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}
