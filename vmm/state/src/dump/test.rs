//! Dumps that come back as they were written, and files that are none.

use std::time::Duration;

use super::*;
use crate::machine::{Group, MpState, Registers, SystemRegisters, Unread, VcpuState};
use crate::memory::Snippet;
use crate::mtrr::MtrrState;

fn vcpu(index: usize) -> VcpuState {
    let unread = || Unread { what: "local apic (KVM_GET_LAPIC)".into(), reason: "Bad address".into() };
    VcpuState {
        index,
        registers: Ok(Registers { rip: 0x10_0000, r15: u64::MAX, ..Registers::default() }),
        system: Ok(SystemRegisters { cr3: 0x1000, ..SystemRegisters::default() }),
        apic: if index == 1 {
            Err(unread())
        } else {
            Ok(crate::apic::LocalApic { icr: 1 << 63, ..Default::default() })
        },
        events: Ok(crate::machine::Events {
            exception: Some(crate::machine::Exception { vector: 14, error: Some(2) }),
            interrupt_injected: Some(0xfb),
            ..Default::default()
        }),
        mp_state: Ok(if index == 2 { MpState::Other(9) } else { MpState::Halted }),
        mtrr: (index == 0).then(|| Ok(MtrrState::at_start())),
        msrs: Some(if index == 0 { Ok(vec![(0x277, 7), (0xc000_0080, 0xd01)]) } else { Err(unread()) }),
        ran: Duration::from_nanos(12_345_678_901),
    }
}

/// A dump with something in each of its parts.
fn dump() -> Dump {
    let live =
        Snippet { base: 0x1000, bytes: (0..0x3000_u32).map(|at| if at < 0x1000 { 0 } else { at as u8 }).collect() };
    let mut memory = DumpedMemory::zeroed([0x0..0x8000, 0x1_0000..0x2_0000]);
    memory.copy(&live, 0x1000..0x4000);
    Dump {
        about: About {
            tool: "0.1.0".into(),
            run: "mtrr/sample@vcpus=3".into(),
            command: "stallbench run 'mtrr/sample@vcpus=3'".into(),
            host: serde_json::json!({ "kernel": "6.18" }),
            result: Some(serde_json::json!({ "verdict": "stall", "wall_ns": u64::MAX })),
        },
        machine: MachineState { vcpus: (0..3).map(vcpu).collect() },
        memory,
        payload: b"\x7fELF, and more".repeat(50),
    }
}

fn written(dump: &Dump) -> Vec<u8> {
    let mut bytes = Vec::new();
    dump.write(&mut bytes).unwrap();
    bytes
}

/// The file with its checksum put right again.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = place(&bytes, note::kind::VERSION).start + 4;
    bytes[at..at + 4].fill(0);
    let sum = crc32fast::hash(&bytes);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Where the content of a note lies.
fn place(bytes: &[u8], kind: u32) -> std::ops::Range<usize> {
    let notes = note::read(bytes, file::notes(bytes).unwrap().unwrap()).unwrap();
    notes.into_iter().find(|note| note.is_own && note.kind == kind).unwrap().content
}

fn error(bytes: &[u8]) -> String {
    Dump::read(bytes).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn dump_comes_back_as_it_was_written() {
    let dump = dump();
    let read = Dump::read(&written(&dump)).unwrap();
    assert_eq!(read.machine, dump.machine);
    assert!(read == dump, "{read:?}");
    let unread: &Group<_> = &read.machine.vcpus[1].apic;
    assert_eq!(unread.as_ref().unwrap_err().to_string(), "local apic (KVM_GET_LAPIC) could not be read: Bad address");
}

#[test]
fn every_prefix_is_refused_in_one_line() {
    let bytes = written(&dump());
    for end in 0..bytes.len() {
        let error = error(&bytes[..end]);
        assert!(!error.contains('\n'), "{end}: {error}");
    }
    assert!(error(&bytes[..bytes.len() / 2]).contains("cut short"), "{}", error(&bytes[..bytes.len() / 2]));
}

#[test]
fn every_flipped_bit_is_told() {
    let mut bytes = written(&dump());
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        assert!(Dump::read(&bytes).is_err(), "bit {bit:#x} at {at:#x}");
        bytes[at] ^= bit;
    }
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(error(&bytes).starts_with("trust the dump: its checksum is 0x"), "{}", error(&bytes));
}

#[test]
fn newer_version_names_both_versions() {
    let mut bytes = written(&dump());
    let at = place(&bytes, note::kind::VERSION).start;
    bytes[at] = VERSION as u8 + 1;
    let error = error(&with_checksum(bytes));
    assert_eq!(error, "read a dump of version 2: this stallbench reads up to version 1, a newer one is needed");
}

#[test]
fn file_of_another_kind_is_named() {
    let core = written(&dump());
    let mut executable = core.clone();
    executable[16] = 2;
    let mut small = core.clone();
    small[4] = 1;
    let mut foreign = core.clone();
    let own: Vec<_> = (0..foreign.len() - 10).filter(|at| foreign[*at..].starts_with(b"stallbench\0")).collect();
    own.into_iter().for_each(|at| foreign[at] = b'S');
    for (bytes, what) in [
        (&b""[..], "an empty file"),
        (b"#!/bin/sh\n", "not an ELF file"),
        (&executable, "an ELF file that is no core"),
        (&small, "an ELF file of another class"),
        (&foreign, "an ELF core without notes of stallbench; gdb may read it"),
    ] {
        assert!(error(bytes).starts_with(&format!("find a dump: {what}")), "{}", error(bytes));
    }
}

#[test]
fn content_that_lies_is_named_by_its_place() {
    let good = written(&dump());
    let memory = place(&good, note::kind::MEMORY);
    let lie = |at: usize, word: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        error(&with_checksum(bytes))
    };
    let lies = [
        (memory.start, u64::MAX - 7, "read the memory: it lies at 0xfffffffffffffff8"),
        (memory.start + 8, 1 << 40, "read the memory: its size is not that of the ranges"),
        (memory.start + 16, 0x9000, "read the memory: the range 0x9000 to 0x8000: expected whole pages"),
        (memory.start + 24, 1 << 63, "read the memory: the range 0x0 to 0x8000000000000000"),
        (memory.start + 56, 0xc000, "read the memory: the run 0x2000 to 0xc000 lies in no range"),
        (place(&good, note::kind::PAYLOAD).start, u64::MAX, "read the payload note: a file of 18446744073709551615"),
        (place(&good, note::kind::VCPU).start, 0, "read the note of vcpu0: expected value"),
        (place(&good, note::kind::ABOUT).start, 0, "read the about note: expected value"),
    ];
    for (at, word, wanted) in lies {
        let found = lie(at, word);
        assert!(found.starts_with(wanted), "{found}, expected {wanted}");
    }
}
