//! What of the file is loaded, and where.

use std::ops::Range;

use object::elf::{PF_W, PF_X, PT_LOAD, ProgramHeader64};
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader};
use stallbench_abi::layout::{IMAGE, IMAGE_END, LOW_END, PAGE, TRAMPOLINE};

use super::file::{File, LE, range};
use super::{ProgramError, notes};

/// A part of the file that is loaded. Nothing in it is writable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address, which is the virtual one too.
    pub address: u64,
    /// Bytes in memory; those that are not in the file are zero.
    pub size: u64,
    /// Where its bytes lie in the file, no more than `size`.
    pub file: Range<usize>,
    /// Whether it is code; else it is data.
    pub executable: bool,
}

impl Segment {
    /// Address behind its last byte.
    pub fn end(&self) -> u64 {
        self.address + self.size
    }

    /// Whether it is code and holds all of `start..end`, which is not empty.
    fn has_code(&self, start: u64, end: u64) -> bool {
        self.executable && self.address <= start && start < end && end <= self.end()
    }
}

/// Whether all of `start..end` is code of one segment, and not empty.
pub(super) fn has_code(segments: &[Segment], start: u64, end: u64) -> bool {
    segments.iter().any(|segment| segment.has_code(start, end))
}

/// Whether an address lies in a segment that is no code.
pub(super) fn has_data(segments: &[Segment], address: u64) -> bool {
    segments.iter().any(|segment| !segment.executable && (segment.address..segment.end()).contains(&address))
}

/// The segments, by ascending address.
pub(super) fn read(file: &File<'_>) -> Result<Vec<Segment>, ProgramError> {
    if let Some(dynamic) = notes::dynamic(file) {
        return Err(ProgramError::Dynamic(dynamic));
    }
    let loaded = file.program_headers.iter().filter(|header| header.p_type(LE) == PT_LOAD && header.p_memsz(LE) > 0);
    let mut segments = loaded.map(|header| segment(file, header)).collect::<Result<Vec<_>, _>>()?;
    segments.sort_by_key(|segment| segment.address);
    match segments.windows(2).find(|pair| collide(&pair[0], &pair[1])) {
        Some(pair) => Err(ProgramError::SegmentsOverlap { first: pair[0].address, second: pair[1].address }),
        None if segments.is_empty() => Err(ProgramError::NoSegment),
        None => Ok(segments),
    }
}

/// The entry point, which lies in code.
pub(super) fn entry(file: &File<'_>, segments: &[Segment]) -> Result<u64, ProgramError> {
    let entry = file.header.e_entry(LE);
    let fits = has_code(segments, entry, entry.saturating_add(1));
    if fits { Ok(entry) } else { Err(ProgramError::Entry { entry }) }
}

fn segment(file: &File<'_>, header: &ProgramHeader64<LittleEndian>) -> Result<Segment, ProgramError> {
    let (address, physical) = (header.p_vaddr(LE), header.p_paddr(LE));
    let (in_file, size) = (header.p_filesz(LE), header.p_memsz(LE));
    let flags = header.p_flags(LE);
    if !may_lie(address, size) {
        return Err(ProgramError::SegmentOutside { address, size });
    }
    if physical != address {
        return Err(ProgramError::SegmentMoved { address, physical });
    }
    if in_file > size {
        return Err(ProgramError::SegmentSizes { address, file: in_file, memory: size });
    }
    if flags.contains(PF_W) {
        return Err(ProgramError::SegmentWritable { address });
    }
    let file = range(file.bytes, header.p_offset(LE), in_file).ok_or(ProgramError::SegmentTruncated {
        address,
        offset: header.p_offset(LE),
        size: in_file,
        file: file.bytes.len() as u64,
    })?;
    Ok(Segment { address, size, file, executable: flags.contains(PF_X) })
}

/// Whether an image may have something there: in its low part, or in the image proper.
fn may_lie(address: u64, size: u64) -> bool {
    let Some(end) = address.checked_add(size) else { return false };
    (address >= TRAMPOLINE && end <= LOW_END) || (address >= IMAGE && end <= IMAGE_END)
}

/// Whether two segments, the first at the lower address, overlap, or would need one page with two permissions.
fn collide(first: &Segment, second: &Segment) -> bool {
    let page_shared = (first.end() - 1) / PAGE == second.address / PAGE;
    second.address < first.end() || (page_shared && first.executable != second.executable)
}
