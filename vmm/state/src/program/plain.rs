//! Plain guests: static executables that keep no contract and were not made for stallbench.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use object::elf::{PF_X, PT_LOAD, ProgramHeader64};
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader};

use super::file::{File, LE, range};
use super::segments::Segment;
use super::symbols::{Symbol, Symbols};
use super::{Program, ProgramError, notes};

/// What a file of the user's turns out to be.
#[derive(Debug)]
pub enum Payload {
    /// A program that keeps the contract.
    Contract(Box<Program>),
    /// Any other static executable.
    Plain(Box<PlainProgram>),
}

impl Payload {
    /// Reads an ELF file: the note of the contract, of whatever version, tells what it is.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ProgramError> {
        let file = File::open(&bytes)?;
        if notes::is_there(&file)? {
            return Ok(Self::Contract(Box::new(Program::parse(Cow::Owned(bytes))?)));
        }
        Ok(Self::Plain(Box::new(PlainProgram::parse(bytes)?)))
    }
}

/// A part of a plain guest that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Guest-physical address (`p_paddr`).
    pub address: u64,
    /// Bytes in memory, at least one; those that are not in the file are zero.
    pub size: u64,
    /// Where its bytes lie in the file, no more than `size`.
    pub file: Range<usize>,
    /// Whether it says that it is code.
    executable: bool,
}

impl Loaded {
    /// Address behind its last byte.
    pub fn end(&self) -> u64 {
        self.address + self.size
    }
}

/// Guest-physical memory that no segment may lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What lies there.
    pub what: &'static str,
    /// Its first byte.
    pub from: u64,
    /// The byte behind its last.
    pub to: u64,
}

/// A plain guest.
pub struct PlainProgram {
    bytes: Vec<u8>,
    entry: u64,
    segments: Vec<Loaded>,
    /// The segments at their virtual addresses, which are those of symbols.
    linked: Vec<Segment>,
    symbols: OnceLock<Symbols>,
}

impl PlainProgram {
    /// Reads an ELF file.
    ///
    /// # Errors
    ///
    /// [`ProgramError`] names what is wrong with the file, and the value found.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ProgramError> {
        let file = File::open(&bytes)?;
        if let Some(dynamic) = notes::dynamic(&file) {
            return Err(ProgramError::Dynamic(dynamic));
        }
        let entry = file.header.e_entry(LE);
        let headers = file.program_headers.iter().filter(|h| h.p_type(LE) == PT_LOAD && h.p_memsz(LE) > 0);
        let mut segments = headers.clone().map(|header| loaded(&file, header)).collect::<Result<Vec<_>, _>>()?;
        let linked = headers.zip(&segments).filter_map(|(header, loaded)| linked(header, loaded)).collect();
        segments.sort_by_key(|segment| segment.address);
        check(&segments, entry)?;
        Ok(Self { bytes, entry, segments, linked, symbols: OnceLock::new() })
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Address at which it is entered.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// What is loaded, by ascending address; at least one, none overlaps another.
    pub fn segments(&self) -> &[Loaded] {
        &self.segments
    }

    /// Refuses a guest that has no room in a machine with that many bytes of memory, some of them taken.
    pub fn check_room(&self, memory: u64, taken: &[Taken]) -> Result<(), ProgramError> {
        for segment in &self.segments {
            let &Loaded { address, size, .. } = segment;
            if segment.end() > memory {
                return Err(ProgramError::SegmentBeyond { address, size, memory });
            }
            if let Some(&Taken { what, from, to }) = taken.iter().find(|t| address < t.to && t.from < segment.end()) {
                return Err(ProgramError::SegmentTaken { address, size, what, from, to });
            }
        }
        Ok(())
    }

    /// The function or label at or before an address, and the offset from it; as [`Program::symbol`].
    pub fn symbol(&self, address: u64) -> Option<(String, u64)> {
        self.table().find(&self.bytes, address)
    }

    /// The functions and labels in code, by ascending virtual address; as [`Program::symbols`].
    pub fn symbols(&self) -> Vec<Symbol> {
        self.table().all(&self.bytes)
    }

    /// The variable or label of data at or before an address, and the offset from it.
    pub fn object(&self, address: u64) -> Option<(String, u64)> {
        self.table().find_object(&self.bytes, address)
    }

    /// The variables and labels of data, by ascending virtual address.
    pub fn objects(&self) -> Vec<Symbol> {
        self.table().objects(&self.bytes)
    }

    fn table(&self) -> &Symbols {
        self.symbols.get_or_init(|| Symbols::read(&self.bytes, &self.linked))
    }
}

impl fmt::Debug for PlainProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainProgram")
            .field("bytes", &self.bytes.len())
            .field("entry", &format_args!("{:#x}", self.entry))
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

fn loaded(file: &File<'_>, header: &ProgramHeader64<LittleEndian>) -> Result<Loaded, ProgramError> {
    let (address, in_file, size) = (header.p_paddr(LE), header.p_filesz(LE), header.p_memsz(LE));
    if address.checked_add(size).is_none() {
        return Err(ProgramError::SegmentBeyond { address, size, memory: u64::MAX });
    }
    if in_file > size {
        return Err(ProgramError::SegmentSizes { address, file: in_file, memory: size });
    }
    let offset = header.p_offset(LE);
    let truncated = ProgramError::SegmentTruncated { address, offset, size: in_file, file: file.bytes.len() as u64 };
    let file = range(file.bytes, offset, in_file).ok_or(truncated)?;
    Ok(Loaded { address, size, file, executable: header.p_flags(LE).contains(PF_X) })
}

/// A segment where it is linked to run; none where that is no range of addresses.
fn linked(header: &ProgramHeader64<LittleEndian>, loaded: &Loaded) -> Option<Segment> {
    let address = header.p_vaddr(LE);
    address.checked_add(loaded.size)?;
    Some(Segment { address, size: loaded.size, file: loaded.file.clone(), executable: loaded.executable })
}

fn check(segments: &[Loaded], entry: u64) -> Result<(), ProgramError> {
    if segments.is_empty() {
        return Err(ProgramError::NoSegment);
    }
    if let Some(pair) = segments.windows(2).find(|pair| pair[1].address < pair[0].end()) {
        return Err(ProgramError::SegmentsMeet { first: pair[0].address, second: pair[1].address });
    }
    // It is entered at that physical address.
    let holds = |segment: &Loaded| segment.executable && (segment.address..segment.end()).contains(&entry);
    if segments.iter().any(holds) { Ok(()) } else { Err(ProgramError::Entry { entry }) }
}
