//! Loading the image: linux-loader copies its segments; their addresses and permissions are checked here first.

use std::io::Cursor;

use linux_loader::loader::elf::Elf;
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use object::Endianness;
use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use stallbench_abi::layout::{IMAGE, IMAGE_END, LOW_END, PAGE, TRAMPOLINE};
use thiserror::Error;

use super::tables::Access;
use crate::memory::GuestMemory;

/// Where an image may lie.
const WINDOWS: [(u64, u64); 2] = [(TRAMPOLINE, LOW_END), (IMAGE, IMAGE_END)];

/// Why an image cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It is no 64-bit little-endian ELF file, or a broken one.
    #[error("read its elf headers")]
    Headers(#[from] object::Error),
    /// A segment lies where no image may.
    #[error(
        "place its segment {base:#x}..{end:#x}: an image lies in {TRAMPOLINE:#x}..{LOW_END:#x} and {IMAGE:#x}..{IMAGE_END:#x}"
    )]
    Segment {
        /// Its first byte.
        base: u64,
        /// The byte behind its last.
        end: u64,
    },
    /// A segment asks to be writable.
    #[error("map its segment at {base:#x}: an image has no writable data")]
    Writable {
        /// Its first byte.
        base: u64,
    },
    /// The entry point is in no executable segment.
    #[error("enter it at {0:#x}: no executable segment is there")]
    Entry(u64),
    /// linux-loader could not load it.
    #[error("load it")]
    Load(#[source] LoaderError),
}

/// A segment in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    base: u64,
    end: u64,
    pub(super) access: Access,
}

impl Segment {
    /// Code, and data that is only read.
    pub(super) fn code(base: u64, size: u64) -> Self {
        Self { base, end: base + size, access: Access::Execute }
    }

    /// Whether any of it lies in this page.
    pub(super) fn holds(&self, page: u64) -> bool {
        self.base < page + PAGE && page < self.end
    }
}

/// Loads the image; gives its entry point and its segments. What a segment does not fill reads as zeros: the memory is fresh.
pub(super) fn load(memory: &GuestMemory, image: &[u8]) -> Result<(u64, Vec<Segment>), ImageError> {
    let header = FileHeader64::<Endianness>::parse(image)?;
    let endian = header.endian()?;
    let headers = header.program_headers(endian, image)?;
    let loaded = headers.iter().filter(|h| h.p_type(endian) == PT_LOAD && h.p_memsz(endian) > 0);
    let segments: Vec<_> = loaded.map(|h| segment(h, endian)).collect::<Result<_, _>>()?;
    let entry = header.e_entry(endian);
    let executable = |s: &&Segment| s.access == Access::Execute && (s.base..s.end).contains(&entry);
    segments.iter().find(executable).ok_or(ImageError::Entry(entry))?;
    Elf::load(memory.map(), None, &mut Cursor::new(image), None).map_err(ImageError::Load)?;
    Ok((entry, segments))
}

fn segment(header: &ProgramHeader64<Endianness>, endian: Endianness) -> Result<Segment, ImageError> {
    let base = header.p_paddr(endian);
    let end = base.saturating_add(header.p_memsz(endian).max(header.p_filesz(endian)));
    if !WINDOWS.iter().any(|&(from, to)| from <= base && end <= to) {
        return Err(ImageError::Segment { base, end });
    }
    let flags = header.p_flags(endian);
    if flags.contains(PF_W) {
        return Err(ImageError::Writable { base });
    }
    let access = if flags.contains(PF_X) { Access::Execute } else { Access::Read };
    Ok(Segment { base, end, access })
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample;

    fn refused(image: &[u8]) -> ImageError {
        load(&GuestMemory::new(1).expect("memory"), image).expect_err("it is refused")
    }

    #[test]
    fn image_that_is_no_elf_is_refused() {
        assert!(matches!(refused(b"#!/bin/sh"), ImageError::Headers(_)));
        assert!(matches!(refused(&[]), ImageError::Headers(_)));
    }

    #[test]
    fn image_outside_its_windows_is_refused() {
        let beyond = sample::elf(&[(IMAGE_END - 4, &[0xf4; 8])]);
        assert!(matches!(refused(&beyond), ImageError::Segment { end, .. } if end == IMAGE_END + 4));
        assert!(matches!(refused(&sample::elf(&[(u64::MAX - 1, &[0xf4; 8])])), ImageError::Segment { .. }));
    }

    #[test]
    fn image_that_ends_early_is_refused() {
        let mut cut = sample::elf(&[(IMAGE, &[0xf4; 64])]);
        cut.truncate(cut.len() - 32);
        assert!(matches!(refused(&cut), ImageError::Load(_)));
    }

    #[test]
    fn segment_is_loaded_where_it_says() {
        use stallbench_state::memory::Memory;
        let memory = GuestMemory::new(1).expect("memory");
        let (entry, segments) = load(&memory, &sample::elf(&[(IMAGE, &[1, 2, 3, 4])])).expect("a good image");
        assert_eq!((entry, segments.len()), (IMAGE, 1));
        assert_eq!(memory.read_u32(IMAGE), Some(0x0403_0201));
    }
}
