//! Why a file is no program of the contract.

use std::fmt;

use stallbench_abi::image::{CASES_SECTION, EDGES_SECTION, RANGES_SECTION, SITES_SECTION};
use stallbench_abi::layout::{IMAGE, IMAGE_END, LOW_END, TRAMPOLINE};
use stallbench_abi::pause::POINTS_SECTION;
use thiserror::Error;

/// Why a file is no program of the contract. Each message is a fragment that reads well after "the payload …".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The file is larger than any that is read.
    #[error("is too big: {size} bytes, the limit is {limit}")]
    FileTooBig {
        /// Bytes of the file.
        size: usize,
        /// Most that are read.
        limit: usize,
    },
    /// It does not start as an ELF file does.
    #[error("is no ELF file")]
    NotElf,
    /// An ELF file of another class: of 32 bits.
    #[error("is an ELF file of class {found} (EI_CLASS; 1 is 32-bit), a guest has 64 bits (2)")]
    Class {
        /// `EI_CLASS`.
        found: u8,
    },
    /// A big-endian ELF file, or one of an unknown order.
    #[error("is an ELF file of byte order {found} (EI_DATA; 2 is big-endian), a guest is little-endian (1)")]
    ByteOrder {
        /// `EI_DATA`.
        found: u8,
    },
    /// An ELF file for another processor.
    #[error("is an ELF file for machine {found} (e_machine), a guest is for x86-64 (62)")]
    Machine {
        /// `e_machine`.
        found: u16,
    },
    /// An object file, shared library, position-independent program or core dump.
    #[error("is an ELF file of type {found} (e_type: {name}), a guest is a static executable (2)", name = type_name(*.found))]
    NotExecutable {
        /// `e_type`.
        found: u16,
    },
    /// It wants a dynamic loader.
    #[error("wants a dynamic loader ({0}), a guest is static")]
    Dynamic(Dynamic),
    /// A table of the file lies outside it, or has entries of another size.
    #[error("is damaged: {what}: {reason}")]
    Damaged {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More program headers than a payload has a use for.
    #[error("has {found} program headers, the limit is {limit}")]
    TooManySegments {
        /// How many there are.
        found: usize,
        /// Most that are read.
        limit: usize,
    },
    /// It has no note of the contract.
    #[error("was not made for stallbench: it has no {name} note", name = stallbench_abi::image::NOTE_NAME)]
    NoNote,
    /// The note is too short for what it must hold.
    #[error("has a {name} note of {found} bytes, it must have {expected}", name = stallbench_abi::image::NOTE_NAME)]
    NoteSize {
        /// Bytes of its descriptor.
        found: usize,
        /// Bytes that it must have.
        expected: usize,
    },
    /// It was made for another version of the contract.
    #[error("was made for version {found} of the contract, this stallbench has version {expected}")]
    Version {
        /// The payload's version.
        found: u32,
        /// The host's.
        expected: u32,
    },
    /// Nothing of it is loaded.
    #[error("has no loadable segment")]
    NoSegment,
    /// A segment does not lie where an image may lie: it is too big, or elsewhere.
    #[error(
        "has a segment at {address:#x}, {size:#x} bytes: too big, or outside {TRAMPOLINE:#x}..{LOW_END:#x} and {IMAGE:#x}..{IMAGE_END:#x}"
    )]
    SegmentOutside {
        /// Its address.
        address: u64,
        /// Its size in memory.
        size: u64,
    },
    /// A segment is to be loaded elsewhere than it runs.
    #[error("has a segment at {address:#x} that is to be loaded at {physical:#x}: in a guest they are the same")]
    SegmentMoved {
        /// `p_vaddr`.
        address: u64,
        /// `p_paddr`.
        physical: u64,
    },
    /// A segment has more bytes in the file than in memory.
    #[error("has a segment at {address:#x} with {file:#x} bytes in the file and {memory:#x} in memory")]
    SegmentSizes {
        /// Its address.
        address: u64,
        /// `p_filesz`.
        file: u64,
        /// `p_memsz`.
        memory: u64,
    },
    /// The bytes of a segment lie outside the file.
    #[error(
        "is cut short: the segment at {address:#x} has its bytes at {offset:#x}, {size:#x} of them, in a file of {file:#x}"
    )]
    SegmentTruncated {
        /// Its address.
        address: u64,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        size: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// A segment is writable.
    #[error("has a writable segment at {address:#x}: an image has no writable data, what changes lies in the arena")]
    SegmentWritable {
        /// Its address.
        address: u64,
    },
    /// Two segments overlap, or have different permissions and a page in common.
    #[error("has segments at {first:#x} and {second:#x} that overlap or share a page with different permissions")]
    SegmentsOverlap {
        /// Address of the first.
        first: u64,
        /// Address of the second.
        second: u64,
    },
    /// Two segments of a plain guest overlap in memory.
    #[error("has segments at {first:#x} and {second:#x} (p_paddr) that overlap")]
    SegmentsMeet {
        /// Address of the first.
        first: u64,
        /// Address of the second.
        second: u64,
    },
    /// A segment of a plain guest does not lie in its memory.
    #[error(
        "has a segment at {address:#x} (p_paddr), {size:#x} bytes (p_memsz): it does not fit in {memory:#x} bytes of memory"
    )]
    SegmentBeyond {
        /// `p_paddr`.
        address: u64,
        /// `p_memsz`.
        size: u64,
        /// Bytes of memory.
        memory: u64,
    },
    /// A segment of a plain guest lies where something else does.
    #[error(
        "has a segment at {address:#x} (p_paddr), {size:#x} bytes (p_memsz): it overlaps {what}, {from:#x}..{to:#x}"
    )]
    SegmentTaken {
        /// `p_paddr`.
        address: u64,
        /// `p_memsz`.
        size: u64,
        /// What lies there.
        what: &'static str,
        /// Its first byte.
        from: u64,
        /// The byte behind its last.
        to: u64,
    },
    /// The entry point lies in no code.
    #[error("starts at {entry:#x} (e_entry), where it has no code")]
    Entry {
        /// `e_entry`.
        entry: u64,
    },
    /// A section that must be there is missing.
    #[error("has no section {name}", name = section_name(*.0))]
    SectionMissing(Record),
    /// A section is there twice.
    #[error("has two sections {name}", name = section_name(*.0))]
    SectionTwice(Record),
    /// A section does not lie in the file.
    #[error("has a section {name} whose bytes are not in the file", name = section_name(*.0))]
    SectionOutside(Record),
    /// A section is no whole number of records.
    #[error("has a section {name} of {size} bytes, no multiple of {record_size}", name = section_name(*.section))]
    SectionSize {
        /// Which.
        section: Record,
        /// Bytes in it.
        size: usize,
        /// Bytes of a record.
        record_size: usize,
    },
    /// A text in a record has characters that do not print, or is no UTF-8, or is missing.
    #[error("has no proper text in {what} {index} of section {name}: {field}", what = .section, name = section_name(*.section))]
    Text {
        /// In which section.
        section: Record,
        /// Number of the record.
        index: usize,
        /// The field.
        field: &'static str,
    },
    /// Two cases have one name.
    #[error("has two cases with the name {name}")]
    CaseTwice {
        /// The name.
        name: String,
    },
    /// Two pause points have one name.
    #[error("has two pause points with the name {name}")]
    PointTwice {
        /// The name.
        name: String,
    },
    /// A case starts where there is no code.
    #[error("has a case {name} that starts at {entry:#x}, where it has no code")]
    CaseEntry {
        /// Its name.
        name: String,
        /// Its entry.
        entry: u64,
    },
    /// The code of a wait site is empty or lies in no code.
    #[error("has a wait site with code at {start:#x}..{end:#x}, where it has no code")]
    Range {
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
    },
    /// The codes of two wait sites overlap.
    #[error("has wait sites whose code overlaps, at {first:#x} and {second:#x}")]
    RangesOverlap {
        /// Start of the first.
        first: u64,
        /// Start of the second.
        second: u64,
    },
    /// The code of a wait site names a descriptor that is none.
    #[error("has wait-site code at {start:#x} whose descriptor {site:#x} is none")]
    RangeSite {
        /// First byte of the code.
        start: u64,
        /// What it names.
        site: u64,
    },
    /// An edge of the procedure that programs MTRRs lies in no code.
    #[error("has an edge of its mtrr procedure at {address:#x}, where it has no code")]
    Edge {
        /// Its address.
        address: u64,
    },
}

/// What says that a file wants a dynamic loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dynamic {
    /// It names an interpreter.
    Interpreter,
    /// It has a dynamic section.
    Section,
}

impl fmt::Display for Dynamic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interpreter => "PT_INTERP",
            Self::Section => "PT_DYNAMIC",
        })
    }
}

/// A kind of record that a program keeps in a section of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// [`stallbench_abi::image::Case`].
    Case,
    /// [`stallbench_abi::image::Site`].
    Site,
    /// [`stallbench_abi::image::SiteRange`].
    Range,
    /// [`stallbench_abi::pause::Point`].
    Point,
    /// [`stallbench_abi::image::Edge`].
    Edge,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Case => "case",
            Self::Site => "wait site",
            Self::Range => "code range",
            Self::Point => "pause point",
            Self::Edge => "edge",
        })
    }
}

/// The section that holds such records.
pub(super) fn section_name(record: Record) -> &'static str {
    match record {
        Record::Case => CASES_SECTION,
        Record::Site => SITES_SECTION,
        Record::Range => RANGES_SECTION,
        Record::Point => POINTS_SECTION,
        Record::Edge => EDGES_SECTION,
    }
}

fn type_name(e_type: u16) -> &'static str {
    match e_type {
        1 => "object file",
        3 => "shared or position-independent",
        4 => "core dump",
        _ => "unknown",
    }
}
