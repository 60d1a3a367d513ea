//! What is read of a proper file, what is said about a broken one, and that none does harm.

mod elf;
mod plain;

use object::elf::{PF_R, PF_W};
use proptest::prelude::*;
use stallbench_abi::Plain;
use stallbench_abi::image::{
    CASES_SECTION, Case, EDGES_SECTION, Edge, EdgeKind, RANGES_SECTION, SITES_SECTION, Site, SiteKind, SiteRange,
};
use stallbench_abi::layout::{IMAGE, IMAGE_END, LOW_END, TRAMPOLINE};

use super::{Dynamic, Program, ProgramError, Record};
use elf::{Elf, Header, SITES};

/// The error of a proper file after a change.
fn error(change: impl FnOnce(&mut Elf)) -> ProgramError {
    let mut elf = Elf::proper();
    change(&mut elf);
    Program::parse(elf.bytes()).unwrap_err()
}

fn proper() -> Program {
    Program::parse(Elf::proper().bytes()).unwrap()
}

fn set<T: Plain>(bytes: &mut [u8], index: usize, change: impl FnOnce(&mut T)) {
    let bytes = &mut bytes[index * T::SIZE..];
    let mut record = T::read(bytes).unwrap();
    change(&mut record);
    record.write(bytes).unwrap();
}

#[test]
fn cases_of_a_proper_file_are_found_by_name() {
    let program = proper();
    let (number, case) = program.case("plain").unwrap();
    assert_eq!((number, case.entry), (1, IMAGE + 0x80));
    assert_eq!(program.cases()[0].summary, "what happens in it");
    assert!(program.cases()[0].takes(2) && !program.cases()[0].takes(1) && !program.cases()[0].takes(64));
    assert_eq!(program.case("plai"), None);
}

#[test]
fn sites_of_a_proper_file_are_found_by_descriptor_and_by_code() {
    let program = proper();
    let gate = program.site_at(SITES + 96).unwrap();
    assert_eq!((gate.function.as_str(), gate.step.as_str(), gate.word.as_str()), ("ipi_handler", "B3", "gate"));
    assert_eq!(gate.kind, SiteKind::GATE);
    assert_eq!(program.site_of_rip(IMAGE + 0x2f).unwrap().function, "call_many");
    assert_eq!(program.site_of_rip(IMAGE + 0x30), Some(gate));
    assert_eq!(program.site_of_rip(IMAGE + 0x60), Some(gate));
}

#[test]
fn addresses_beside_a_site_are_in_none() {
    let program = proper();
    for rip in [0, IMAGE + 0x27, IMAGE + 0x38, IMAGE + 0x68, u64::MAX] {
        assert_eq!(program.site_of_rip(rip), None, "{rip:#x}");
    }
    for descriptor in [0, SITES - 1, SITES + 1, SITES + 192, u64::MAX] {
        assert_eq!(program.site_at(descriptor), None, "{descriptor:#x}");
    }
}

#[test]
fn symbols_are_demangled_and_have_their_extent() {
    let program = proper();
    let name = |address| program.symbol(IMAGE + address).map(|(name, offset)| format!("{name}+{offset:#x}"));
    assert_eq!(name(0x20).as_deref(), Some("payload::wait+0x0"));
    assert_eq!(name(0x2f).as_deref(), Some("payload::wait+0xf"));
    assert_eq!(name(0x30), None);
    assert_eq!(name(0x90).as_deref(), Some("stub+0x10"));
    assert_eq!(program.symbol(7), None);
}

#[test]
fn symbols_of_a_damaged_table_are_none() {
    let mut elf = Elf::proper();
    elf.section(".symtab").link = 77;
    assert_eq!(Program::parse(elf.bytes()).unwrap().symbol(IMAGE + 0x20), None);
    elf.section(".symtab").link = 5;
    elf.section(".strtab").bytes.clear();
    assert_eq!(Program::parse(elf.bytes()).unwrap().symbol(IMAGE + 0x20), None);
}

#[test]
fn segments_of_a_proper_file_are_in_order() {
    let mut elf = Elf::proper();
    elf.headers.push(Header::load(5, TRAMPOLINE, vec![0xf4; 16]));
    let program = Program::parse(elf.bytes()).unwrap();
    let addresses: Vec<_> = program.segments().iter().map(|segment| (segment.address, segment.executable)).collect();
    assert_eq!(addresses, [(TRAMPOLINE, true), (IMAGE, true), (SITES, false)]);
    assert_eq!(program.bytes()[program.segments()[0].file.clone()], [0xf4; 16]);
}

#[test]
fn file_of_another_kind_is_named() {
    assert_eq!(Program::parse(&b"#!/bin/sh\n"[..]).unwrap_err(), ProgramError::NotElf);
    assert_eq!(Program::parse(&[][..]).unwrap_err(), ProgramError::NotElf);
    assert_eq!(error(|elf| elf.class = 1), ProgramError::Class { found: 1 });
    assert_eq!(error(|elf| elf.data = 2), ProgramError::ByteOrder { found: 2 });
    assert_eq!(error(|elf| elf.machine = 183), ProgramError::Machine { found: 183 });
    assert_eq!(error(|elf| elf.kind = 3), ProgramError::NotExecutable { found: 3 });
    assert_eq!(error(|elf| elf.headers[2].kind = 3), ProgramError::Dynamic(Dynamic::Interpreter));
    assert_eq!(error(|elf| elf.headers[1].kind = 2), ProgramError::Dynamic(Dynamic::Section));
}

#[test]
fn file_beyond_the_limit_is_refused_unread() {
    let limit = super::file::FILE_LIMIT;
    let expected = ProgramError::FileTooBig { size: limit + 1, limit };
    assert_eq!(Program::parse(vec![0; limit + 1]).unwrap_err(), expected);
    assert_eq!(
        error(|elf| elf.headers.extend(vec![elf.headers[2].clone(); 30])),
        ProgramError::TooManySegments { found: 33, limit: 32 }
    );
}

#[test]
fn version_that_differs_comes_first_and_names_both() {
    let other = error(|elf| {
        elf.headers[2].bytes = elf::note(7);
        elf.headers[0].address = 0;
        elf.sections.clear();
    });
    assert_eq!(other, ProgramError::Version { found: 7, expected: stallbench_abi::VERSION });
    assert_eq!(other.to_string(), "was made for version 7 of the contract, this stallbench has version 2");
}

#[test]
fn note_that_is_missing_or_short_is_named() {
    assert_eq!(error(|elf| drop(elf.headers.remove(2))), ProgramError::NoNote);
    assert_eq!(error(|elf| elf.headers[2].bytes[12] = b'S'), ProgramError::NoNote);
    assert_eq!(error(|elf| elf.headers[2].bytes[8] = 9), ProgramError::NoNote);
    assert_eq!(error(|elf| elf.headers[2].bytes[4] = 4), ProgramError::NoteSize { found: 4, expected: 8 });
}

#[test]
fn segment_out_of_place_is_named() {
    let at = |address, size: u64| {
        error(|elf| {
            elf.headers[1] = Header { memory: size, ..Header::load(4, address, vec![]) };
        })
    };
    for (address, size) in [
        (0, 16),
        (LOW_END - 8, 9),
        (IMAGE - 1, 16),
        (IMAGE_END - 16, 17),
        (IMAGE + 0x2000, IMAGE_END - IMAGE),
        (u64::MAX, 2),
    ] {
        assert_eq!(at(address, size), ProgramError::SegmentOutside { address, size });
    }
    assert_eq!(
        error(|elf| elf.headers[1].physical = 0x9000),
        ProgramError::SegmentMoved { address: SITES, physical: 0x9000 }
    );
}

#[test]
fn segment_with_wrong_sizes_is_named() {
    let sizes = error(|elf| elf.headers[1].memory = 1);
    assert_eq!(sizes, ProgramError::SegmentSizes { address: SITES, file: 192, memory: 1 });
    let mut cut = Elf::proper().bytes();
    // p_offset of the second program header.
    cut[64 + 56 + 8..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = Program::parse(cut).unwrap_err();
    assert!(matches!(error, ProgramError::SegmentTruncated { address: SITES, offset: u64::MAX, .. }), "{error:?}");
}

#[test]
fn segments_that_are_writable_or_collide_are_named() {
    assert_eq!(error(|elf| elf.headers[1].flags = (PF_R | PF_W).0), ProgramError::SegmentWritable { address: SITES });
    let beside = |address| error(|elf| elf.headers[1] = Header::load(4, address, vec![0; 8]));
    let collision = |second| ProgramError::SegmentsOverlap { first: IMAGE, second };
    assert_eq!(beside(IMAGE + 0xff), collision(IMAGE + 0xff));
    assert_eq!(beside(IMAGE + 0xff8), collision(IMAGE + 0xff8));
    assert_eq!(error(|elf| elf.headers.retain(|header| header.kind == 4)), ProgramError::NoSegment);
}

#[test]
fn entry_outside_code_is_named() {
    for entry in [0, IMAGE + 0x100, SITES, u64::MAX] {
        assert_eq!(error(|elf| elf.entry = entry), ProgramError::Entry { entry });
    }
}

#[test]
fn sections_that_are_missing_or_misshapen_are_named() {
    let no_cases = ProgramError::SectionMissing(Record::Case);
    assert_eq!(error(|elf| elf.section(CASES_SECTION).name = ".stallbench.casex"), no_cases);
    assert_eq!(error(|elf| elf.section(CASES_SECTION).bytes.clear()), no_cases);
    assert_eq!(error(|elf| elf.section(CASES_SECTION).kind = 8), ProgramError::SectionOutside(Record::Case));
    assert_eq!(
        error(|elf| elf.section(SITES_SECTION).bytes.push(0)),
        ProgramError::SectionSize { section: Record::Site, size: 193, record_size: 96 }
    );
    assert_eq!(error(|elf| elf.sections.push(elf.sections[2].clone())), ProgramError::SectionTwice(Record::Range));
    assert_eq!(
        error(|elf| elf.section(SITES_SECTION).address = u64::MAX - 100),
        ProgramError::SectionOutside(Record::Site)
    );
}

#[test]
fn program_without_wait_sites_is_proper() {
    let mut elf = Elf::proper();
    elf.sections.retain(|section| ![SITES_SECTION, RANGES_SECTION].contains(&section.name));
    let program = Program::parse(elf.bytes()).unwrap();
    assert_eq!((program.sites().len(), program.ranges().len()), (0, 0));
}

#[test]
fn cases_that_cannot_be_told_apart_or_run_are_named() {
    let case = |change: fn(&mut Case)| error(|elf| set(&mut elf.section(CASES_SECTION).bytes, 1, change));
    assert_eq!(
        case(|case| case.name = stallbench_abi::text::field("set-mtrr")),
        ProgramError::CaseTwice { name: "set-mtrr".into() }
    );
    assert_eq!(case(|case| case.entry = 1), ProgramError::CaseEntry { name: "plain".into(), entry: 1 });
    let name = ProgramError::Text { section: Record::Case, index: 1, field: "name" };
    assert_eq!(case(|case| case.name = [0; 40]), name);
    assert_eq!(case(|case| case.name[1] = b' '), name);
    assert_eq!(case(|case| case.name[1] = 0xff), name);
    assert_eq!(
        case(|case| case.summary[3] = 0x1b),
        ProgramError::Text { section: Record::Case, index: 1, field: "summary" }
    );
}

#[test]
fn wait_sites_that_make_no_sense_are_named() {
    let site = error(|elf| set::<Site>(&mut elf.section(SITES_SECTION).bytes, 0, |site| site.function[0] = 0));
    assert_eq!(site, ProgramError::Text { section: Record::Site, index: 0, field: "function" });
    let range = |change: fn(&mut SiteRange)| error(|elf| set(&mut elf.section(RANGES_SECTION).bytes, 1, change));
    let (start, end) = (IMAGE + 0x28, IMAGE + 0x30);
    assert_eq!(range(|range| range.end = range.start), ProgramError::Range { start, end: start });
    assert_eq!(range(|range| range.start = 0), ProgramError::Range { start: 0, end });
    assert_eq!(range(|range| range.site += 1), ProgramError::RangeSite { start, site: SITES + 1 });
    assert_eq!(range(|range| range.end += 1), ProgramError::RangesOverlap { first: start, second: end });
}

#[test]
fn edges_of_a_procedure_are_found_by_their_kind_and_lie_in_code() {
    let with = |edges: &[Edge]| {
        let mut elf = Elf::proper();
        elf.sections.push(elf::Section::records(EDGES_SECTION, SITES, edges));
        Program::parse(elf.bytes())
    };
    let edge = |address, kind| Edge { address, kind };
    let (entry, exit) = (edge(IMAGE + 0x20, EdgeKind::ENTRY), edge(IMAGE + 0x28, EdgeKind::EXIT));
    let program = with(&[entry, exit, edge(IMAGE, EdgeKind(7))]).unwrap();
    assert_eq!(program.edges(EdgeKind::ENTRY), [IMAGE + 0x20]);
    assert_eq!(program.edges(EdgeKind::EXIT), [IMAGE + 0x28]);
    assert!(Program::parse(Elf::proper().bytes()).unwrap().edges(EdgeKind::ENTRY).is_empty());
    assert_eq!(with(&[entry, edge(0, EdgeKind::EXIT)]).err(), Some(ProgramError::Edge { address: 0 }));
}

#[test]
fn messages_read_as_fragments() {
    let size = ProgramError::SectionSize { section: Record::Case, size: 7, record_size: 256 };
    assert_eq!(size.to_string(), "has a section .stallbench.cases of 7 bytes, no multiple of 256");
    let text = ProgramError::Text { section: Record::Site, index: 3, field: "word" };
    assert_eq!(text.to_string(), "has no proper text in wait site 3 of section .stallbench.sites: word");
    let outside = ProgramError::SegmentOutside { address: IMAGE, size: 0x20_0000 };
    assert!(outside.to_string().contains("too big, or outside 0x8000..0x10000 and 0x100000..0x200000"));
}

/// Asks a program everything.
fn use_up(bytes: Vec<u8>) {
    let Ok(program) = Program::parse(bytes) else { return };
    let addresses = program.segments().iter().flat_map(|segment| [segment.address, segment.end() - 1]);
    for address in addresses.chain(program.ranges().iter().map(|range| range.start)).chain([0, u64::MAX]) {
        let _ = (program.symbol(address), program.site_of_rip(address), program.site_at(address));
    }
    assert!(program.segments().iter().all(|segment| segment.file.end <= program.bytes().len()));
}

proptest! {
    #[test]
    fn hostile_bytes_do_no_harm(at in 0usize..4000, with in any::<[u8; 8]>(), length in 1usize..=8) {
        let mut bytes = Elf::proper().bytes();
        let at = at % bytes.len();
        let end = bytes.len().min(at + length);
        bytes[at..end].copy_from_slice(&with[..end - at]);
        use_up(bytes);
    }

    #[test]
    fn hostile_header_fields_do_no_harm(
        field in 0usize..50,
        value in prop_oneof![any::<u64>(), 0u64..4096, Just(u64::MAX), Just(IMAGE)],
        second in 0usize..50,
    ) {
        // Words of the file header and the program headers, and of the section headers at the end.
        let mut bytes = Elf::proper().bytes();
        let words = bytes.len() / 8;
        for word in [2 + field % 28, words - 1 - second] {
            bytes[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        use_up(bytes);
    }

    #[test]
    fn truncated_file_does_no_harm(keep in 0usize..4000) {
        let mut bytes = Elf::proper().bytes();
        bytes.truncate(keep % bytes.len());
        use_up(bytes);
    }
}
