//! The ELF file as such: its header and its tables, each within the file.

use std::ops::Range;

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_EXEC, FileHeader64, ProgramHeader64, SectionHeader64,
};
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, SectionHeader};

use super::ProgramError;

/// ELF numbers are little-endian here.
pub(super) const LE: LittleEndian = LittleEndian;
/// Largest file that is read. With full debug information the built-in image has a few hundred KiB.
pub(super) const FILE_LIMIT: usize = 64 << 20;
/// Most program headers.
pub(super) const SEGMENT_LIMIT: usize = 32;
/// Bytes of `e_ident`, by which the kinds of ELF files are told apart.
const IDENT: usize = 16;

/// An ELF file whose tables lie within it.
pub(super) struct File<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) header: &'a FileHeader64<LittleEndian>,
    pub(super) program_headers: &'a [ProgramHeader64<LittleEndian>],
    sections: &'a [SectionHeader64<LittleEndian>],
    section_names: &'a [u8],
}

impl<'a> File<'a> {
    /// Checks the header and finds the tables.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, ProgramError> {
        check_size(bytes)?;
        check_ident(bytes)?;
        let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(damaged("file header"))?;
        check_kind(header)?;
        let program_headers = header.program_headers(LE, bytes).map_err(damaged("program headers"))?;
        if program_headers.len() > SEGMENT_LIMIT {
            return Err(ProgramError::TooManySegments { found: program_headers.len(), limit: SEGMENT_LIMIT });
        }
        let sections = header.section_headers(LE, bytes).map_err(damaged("section headers"))?;
        let section_names = section_names(bytes, header, sections)?;
        Ok(Self { bytes, header, program_headers, sections, section_names })
    }

    /// The sections of that name. Names are compared where they lie, so that a file can't make it take long.
    pub(super) fn sections_named<'n>(
        &self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a SectionHeader64<LittleEndian>> + use<'a, 'n> {
        let names = self.section_names;
        self.sections.iter().filter(move |section| {
            let at = usize::try_from(section.sh_name(LE)).unwrap_or(usize::MAX);
            let found = names.get(at..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
            found.is_some_and(|rest| rest.first() == Some(&0))
        })
    }

    /// The sections.
    pub(super) fn sections(&self) -> &'a [SectionHeader64<LittleEndian>] {
        self.sections
    }
}

fn check_size(bytes: &[u8]) -> Result<(), ProgramError> {
    match bytes.len() {
        size if size > FILE_LIMIT => Err(ProgramError::FileTooBig { size, limit: FILE_LIMIT }),
        _ => Ok(()),
    }
}

/// Tells the kinds of ELF files apart before the header is read: a 32-bit header is shorter.
fn check_ident(bytes: &[u8]) -> Result<(), ProgramError> {
    let Some(ident) = bytes.first_chunk::<IDENT>().filter(|ident| ident.starts_with(&ELFMAG)) else {
        return Err(ProgramError::NotElf);
    };
    if ident[4] != ELFCLASS64.0 {
        return Err(ProgramError::Class { found: ident[4] });
    }
    if ident[5] != ELFDATA2LSB.0 {
        return Err(ProgramError::ByteOrder { found: ident[5] });
    }
    Ok(())
}

fn check_kind(header: &FileHeader64<LittleEndian>) -> Result<(), ProgramError> {
    let (machine, kind) = (header.e_machine(LE), header.e_type(LE));
    if machine != EM_X86_64 {
        return Err(ProgramError::Machine { found: machine.0 });
    }
    if kind != ET_EXEC {
        return Err(ProgramError::NotExecutable { found: kind.0 });
    }
    Ok(())
}

fn section_names<'a>(
    bytes: &'a [u8],
    header: &FileHeader64<LittleEndian>,
    sections: &'a [SectionHeader64<LittleEndian>],
) -> Result<&'a [u8], ProgramError> {
    if sections.is_empty() {
        return Ok(&[]);
    }
    let index = header.section_strings_index(LE, bytes).map_err(damaged("section names"))?;
    let names =
        sections.get(index.0).ok_or(ProgramError::Damaged { what: "section names", reason: "no such section" })?;
    names.data(LE, bytes).map_err(damaged("section names"))
}

/// `size` bytes at `offset`, if all of them lie in the file.
pub(super) fn range(bytes: &[u8], offset: u64, size: u64) -> Option<Range<usize>> {
    let range = usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(size)?).ok()?;
    (range.end <= bytes.len()).then_some(range)
}

/// What to make of an error of the ELF reader.
pub(super) fn damaged(what: &'static str) -> impl Fn(object::read::Error) -> ProgramError {
    move |_| ProgramError::Damaged { what, reason: "it is malformed or does not lie in the file" }
}
