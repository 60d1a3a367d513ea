//! What is read of a plain guest's file, and what is said about one that cannot be run.

use proptest::prelude::*;

use super::elf::{Elf, Header};
use crate::program::{Dynamic, Payload, PlainProgram, ProgramError, Taken};

/// An executable of a page of code and some data, linked high and loaded low, without the contract's note.
fn proper() -> Elf {
    let mut elf = Elf::proper();
    elf.headers.truncate(2);
    let linked = |address: u64| 0xffff_8000_0000_0000 + address;
    elf.headers[0] = Header { address: linked(0x10_0000), ..Header::load(5, 0x10_0000, vec![0x90; 0x100]) };
    elf.headers[1] = Header { memory: 0x1000, ..Header::load(6, 0x20_0000, vec![1, 2, 3]) };
    elf.entry = 0x10_0010;
    elf.section(".symtab").bytes[8..16].copy_from_slice(&linked(0x10_0020).to_le_bytes());
    elf
}

fn parse(elf: &Elf) -> Result<PlainProgram, ProgramError> {
    PlainProgram::parse(elf.bytes())
}

fn error(change: impl FnOnce(&mut Elf)) -> ProgramError {
    let mut elf = proper();
    change(&mut elf);
    parse(&elf).unwrap_err()
}

#[test]
fn file_without_the_note_is_a_plain_guest_and_one_with_it_keeps_the_contract() {
    assert!(matches!(Payload::parse(proper().bytes()), Ok(Payload::Plain(_))));
    assert!(matches!(Payload::parse(Elf::proper().bytes()), Ok(Payload::Contract(_))));
    let mut other = Elf::proper();
    other.headers[2].bytes = super::elf::note(7);
    assert!(matches!(Payload::parse(other.bytes()), Err(ProgramError::Version { found: 7, .. })));
}

#[test]
fn segments_lie_where_they_are_loaded_and_symbols_where_they_are_linked() {
    let program = parse(&proper()).unwrap();
    let segments: Vec<_> = program.segments().iter().map(|segment| (segment.address, segment.size)).collect();
    assert_eq!((program.entry(), segments), (0x10_0010, vec![(0x10_0000, 0x100), (0x20_0000, 0x1000)]));
    assert_eq!(program.bytes()[program.segments()[1].file.clone()], [1, 2, 3]);
    let symbol = |address| program.symbol(address).map(|(name, offset)| format!("{name}+{offset:#x}"));
    assert_eq!(symbol(0xffff_8000_0010_0022).as_deref(), Some("payload::wait+0x2"));
    assert_eq!(symbol(0x10_0022), None);
}

#[test]
fn variables_are_named() {
    let mut elf = proper();
    let symbol = &mut elf.section(".symtab").bytes;
    // STT_OBJECT, STB_GLOBAL.
    symbol[4] = 1 | 1 << 4;
    symbol[8..16].copy_from_slice(&0x20_0002_u64.to_le_bytes());
    let program = parse(&elf).unwrap();
    let object = |address| program.object(address).map(|(name, offset)| format!("{name}+{offset:#x}"));
    assert_eq!(object(0x20_0004).as_deref(), Some("payload::wait+0x2"));
    assert_eq!((object(0x20_0001), program.symbol(0x20_0002)), (None, None));
}

#[test]
fn file_that_cannot_be_run_is_named_with_its_field_and_value() {
    let told = |change: fn(&mut Elf)| error(change).to_string();
    assert_eq!(told(|elf| elf.class = 1), "is an ELF file of class 1 (EI_CLASS; 1 is 32-bit), a guest has 64 bits (2)");
    assert_eq!(told(|elf| elf.machine = 183), "is an ELF file for machine 183 (e_machine), a guest is for x86-64 (62)");
    assert_eq!(
        told(|elf| elf.kind = 3),
        "is an ELF file of type 3 (e_type: shared or position-independent), a guest is a static executable (2)"
    );
    assert_eq!(error(|elf| elf.headers[1].kind = 3), ProgramError::Dynamic(Dynamic::Interpreter));
    assert_eq!(error(|elf| elf.headers[1].kind = 2), ProgramError::Dynamic(Dynamic::Section));
    assert_eq!(error(|elf| elf.headers.iter_mut().for_each(|h| h.kind = 6)), ProgramError::NoSegment);
    assert_eq!(error(|elf| elf.headers.iter_mut().for_each(|h| h.memory = 0)), ProgramError::NoSegment);
    assert_eq!(
        error(|elf| elf.headers[1].physical = 0x10_00ff),
        ProgramError::SegmentsMeet { first: 0x10_0000, second: 0x10_00ff }
    );
    assert_eq!(
        error(|elf| elf.headers[1].memory = 2),
        ProgramError::SegmentSizes { address: 0x20_0000, file: 3, memory: 2 }
    );
    let end = ProgramError::SegmentBeyond { address: u64::MAX, size: 0x1000, memory: u64::MAX };
    assert_eq!(error(|elf| elf.headers[1].physical = u64::MAX), end);
}

#[test]
fn entry_outside_of_code_is_named() {
    for entry in [0, 0x10_0100, 0x20_0000, 0xffff_8000_0010_0000, u64::MAX] {
        assert_eq!(error(|elf| elf.entry = entry), ProgramError::Entry { entry });
    }
}

#[test]
fn guest_has_room_where_nothing_else_lies() {
    let taken = [Taken { what: "this", from: 0, to: 0x8000 }, Taken { what: "that", from: 0x20_1000, to: 0x40_0000 }];
    let room = |at: u64, memory| {
        let mut elf = proper();
        elf.headers[1].physical = at;
        parse(&elf).unwrap().check_room(memory, &taken)
    };
    assert_eq!(room(0x20_0000, 0x40_0000), Ok(()));
    assert_eq!(room(0x8000, 0x40_0000), Ok(()));
    let over = |address, what, from, to| Err(ProgramError::SegmentTaken { address, size: 0x1000, what, from, to });
    assert_eq!(room(0x7fff, 0x40_0000), over(0x7fff, "this", 0, 0x8000));
    assert_eq!(room(0x20_0001, 0x40_0000), over(0x20_0001, "that", 0x20_1000, 0x40_0000));
    let beyond = ProgramError::SegmentBeyond { address: 0x3f_f001, size: 0x1000, memory: 0x40_0000 };
    assert_eq!(room(0x3f_f001, 0x40_0000), Err(beyond));
}

/// Asks whatever it is everything.
fn use_up(bytes: Vec<u8>) {
    let Ok(Payload::Plain(program)) = Payload::parse(bytes) else { return };
    for address in [0, program.entry(), u64::MAX] {
        let _ = program.symbol(address);
    }
    let _ = program.check_room(64 << 20, &[]);
    assert!(program.segments().iter().all(|segment| segment.file.end <= program.bytes().len()));
}

proptest! {
    #[test]
    fn hostile_bytes_do_no_harm(at in 0usize..4000, with in any::<[u8; 8]>(), length in 1usize..=8) {
        let mut bytes = proper().bytes();
        let at = at % bytes.len();
        let end = bytes.len().min(at + length);
        bytes[at..end].copy_from_slice(&with[..end - at]);
        use_up(bytes);
    }

    #[test]
    fn hostile_header_fields_do_no_harm(
        field in 0usize..28,
        value in prop_oneof![any::<u64>(), 0u64..4096, Just(u64::MAX), Just(1 << 20)],
    ) {
        let mut bytes = proper().bytes();
        bytes[(2 + field) * 8..][..8].copy_from_slice(&value.to_le_bytes());
        use_up(bytes);
    }
}
