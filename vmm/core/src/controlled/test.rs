//! Controlled machines on the real device, with guests of a few instructions.

use stallbench_abi::boot::{BootBlock, MAGIC};
use stallbench_abi::layout::{ARENA, IMAGE, XAPIC};
use stallbench_state::machine::RFLAGS_IF;

use super::*;
use crate::sample;

/// mov esi, ARENA
const AT_ARENA: &[u8] = &[0xbe, 0, 0, 0x40, 0];
/// mov eax, [rsi]; mov [rsi + 8], eax
const COPY: &[u8] = &[0x8b, 0x06, 0x89, 0x46, 0x08];
/// lock inc dword [rsi]
const LOCKED: &[u8] = &[0xf0, 0xff, 0x06];
/// hlt
const HLT: &[u8] = &[0xf4];
/// sti; nop; cli
const WINDOW: &[u8] = &[0xfb, 0x90, 0xfa];
/// pause; jmp back to it. Without the pause Bochs never comes out of it.
const LOOP: &[u8] = &[0xf3, 0x90, 0xeb, 0xfc];

/// A machine of one vCPU with this code, or a loud skip where there is no host; a failure under CI.
fn machine(code: &[&[u8]]) -> Option<Controlled> {
    let host = match HostKvm::open() {
        Ok(host) => host,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let block = BootBlock { magic: MAGIC, version: stallbench_abi::VERSION, vcpus: 1, ..BootBlock::default() };
    let image = sample::elf(&[(IMAGE, &code.concat())]);
    Some(Controlled::new(&host, 1, &image, &block).expect("a machine"))
}

#[test]
fn access_to_the_arena_stops_its_vcpu_and_reads_what_is_answered() {
    let Some(mut machine) = machine(&[AT_ARENA, COPY, HLT]) else { return };
    assert_eq!(machine.run(0), Stop::Read { address: ARENA, size: 4 });
    machine.answer(0, 7);
    assert_eq!(machine.run(0), Stop::Write { address: ARENA + 8, size: 4, value: 7 });
    assert_eq!(machine.run(0), Stop::Halted);
}

#[test]
fn vcpu_that_is_put_back_does_the_same_again() {
    let Some(mut machine) = machine(&[AT_ARENA, COPY, HLT]) else { return };
    let read = machine.run(0);
    // The tables are known since the first stop.
    machine.keep_tables(0);
    let state = machine.state(0).expect("registers");
    for value in [7, 8, 9] {
        machine.answer(0, value);
        assert_eq!(machine.run(0), Stop::Write { address: ARENA + 8, size: 4, value });
        // From the middle of an access, and before one was answered.
        machine.load(0, &state, None);
        assert_eq!(machine.run(0), read);
        assert_eq!(machine.state(0), Ok(state));
        machine.load(0, &state, None);
        assert_eq!(machine.run(0), read);
    }
}

#[test]
fn locked_instruction_reads_and_writes_before_it_is_over() {
    let Some(mut machine) = machine(&[AT_ARENA, LOCKED, HLT]) else { return };
    assert_eq!(machine.run(0), Stop::Read { address: ARENA, size: 4 });
    machine.answer(0, 41);
    assert_eq!(machine.complete(0), Stop::Write { address: ARENA, size: 4, value: 42 });
    assert_eq!(machine.complete(0), Stop::Completed);
    let state = machine.state(0).expect("registers");
    assert_eq!(state.general.rip, IMAGE + (AT_ARENA.len() + LOCKED.len()) as u64, "behind it, and no farther");
}

#[test]
fn local_apic_is_the_callers() {
    /// mov esi, XAPIC; mov eax, [rsi + 0x20]
    const ID: &[u8] = &[0xbe, 0, 0, 0xe0, 0xfe, 0x8b, 0x46, 0x20];
    let Some(mut machine) = machine(&[ID, HLT]) else { return };
    assert_eq!(machine.run(0), Stop::Read { address: XAPIC + 0x20, size: 4 });
    machine.answer(0, 5 << 24);
    assert_eq!(machine.run(0), Stop::Halted);
    assert_eq!(machine.state(0).expect("registers").general.rax, 5 << 24);
}

#[test]
fn register_that_kvm_would_keep_stops_its_vcpu() {
    /// mov ecx, IA32_KERNEL_GS_BASE; mov eax, 7; mov edx, 0; wrmsr; rdmsr
    const SWAPPED: &[u8] = &[0xb9, 2, 1, 0, 0xc0, 0xb8, 7, 0, 0, 0, 0xba, 0, 0, 0, 0, 0x0f, 0x30, 0x0f, 0x32];
    let Some(mut machine) = machine(&[SWAPPED, HLT]) else { return };
    assert_eq!(machine.run(0), Stop::WriteMsr { index: 0xc000_0102, value: 7 });
    assert_eq!(machine.run(0), Stop::ReadMsr { index: 0xc000_0102 });
}

#[test]
fn place_of_one_instruction_at_which_it_can_be_interrupted_is_not_missed() {
    let Some(mut machine) = machine(&[WINDOW, WINDOW, AT_ARENA, COPY]) else { return };
    let mut places = Vec::new();
    loop {
        match machine.get_on(0) {
            Stop::Stepped | Stop::Window => {
                let state = machine.state(0).expect("registers");
                if state.general.rflags & RFLAGS_IF != 0 && !state.shadow {
                    places.push(state.general.rip - IMAGE);
                    // Where the host tells the first of them, it would tell the same for ever.
                    if machine.tells_windows {
                        break;
                    }
                }
            }
            Stop::Read { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(places.iter().find(|place| **place == 2), Some(&2), "behind the nop: {places:?}");
}

#[test]
fn vcpu_that_shares_nothing_does_not_keep_its_caller_for_ever() {
    let Some(mut machine) = machine(&[LOOP]) else { return };
    assert_eq!(machine.run(0), Stop::Endless);
}
