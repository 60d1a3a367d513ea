//! Controlled machines on the real device, with guests of a few instructions.

use stallbench_abi::boot::{BootBlock, MAGIC};
use stallbench_abi::layout::{ARENA, IMAGE, XAPIC};
use stallbench_state::machine::RFLAGS_IF;

use super::*;
use crate::real_kvm::host;
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
    let host = host()?;
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
fn what_is_recorded_is_done_again_and_a_stop_that_differs_is_seen() {
    let Some(mut machine) = machine(&[AT_ARENA, COPY, HLT]) else { return };
    machine.run(0);
    machine.keep_tables(0);
    let state = machine.state(0).expect("registers");
    let mut tape_of = |answer| {
        machine.record();
        machine.load(0, &state, None);
        let read = machine.run(0);
        machine.answer(0, answer);
        (read, machine.run(0), machine.run(0), machine.recorded())
    };
    let (read, write, halt, tape) = tape_of(7);
    assert_eq!((read, halt, tape.stops()), (Stop::Read { address: ARENA, size: 4 }, Stop::Halted, 3));
    assert_eq!(write, Stop::Write { address: ARENA + 8, size: 4, value: 7 });
    assert!(machine.play(&tape) && machine.play(&tape), "from the state that it loads");
    // An instruction of it is another one now: the store is 4 bytes further on.
    assert!(machine.write(state.general.rip + 4, &[0x0c]));
    assert!(!machine.play(&tape), "it stores elsewhere");
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
                    if machine.host.tells_windows {
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

/// The places, from the beginning of the code on, in front of which a vCPU stands that is stepped until it comes to the last of them.
fn stepped(machine: &mut Controlled, last: u64) -> Vec<u64> {
    let mut places = vec![0];
    while machine.step(0) == Stop::Stepped && places.last() != Some(&last) && places.len() < MOST_ENTRIES {
        places.push(machine.state(0).expect("registers").general.rip - IMAGE);
    }
    // A step at the first touch of a page can end where it began.
    places.dedup();
    places
}

#[test]
fn step_behind_an_access_to_a_control_register_is_no_longer_than_another() {
    /// mov rax, cr0; mov cr0, rax; nop; nop; mov rax, cr4; mov cr4, rax; nop; nop
    const CONTROL: &[u8] =
        &[0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0x90, 0x90, 0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0, 0x90, 0x90];
    let Some(mut machine) = machine(&[CONTROL, HLT]) else { return };
    assert_eq!(stepped(&mut machine, CONTROL.len() as u64), [0, 3, 6, 7, 8, 11, 14, 15, 16]);
}

#[test]
fn what_a_step_leaves_behind_does_not_come_to_the_guest() {
    /// pause; hlt
    const ASIDE: &[u8] = &[0xf3, 0x90, 0xf4];
    let Some(mut machine) = machine(&[AT_ARENA, COPY, HLT, ASIDE]) else { return };
    let pause = IMAGE + [AT_ARENA, COPY, HLT].concat().len() as u64;
    for access in [true, false] {
        let mut stop = machine.step(0);
        while stop == Stop::Stepped || matches!(stop, Stop::Read { .. }) && !access {
            machine.answer(0, 7);
            stop = machine.step(0);
        }
        assert_eq!(matches!(stop, Stop::Read { .. }), access, "{stop:?}");
        machine.keep_tables(0);
        let here = machine.state(0).expect("registers");
        let mut aside = here;
        (aside.general.rip, aside.general.rflags) = (pause, 2);
        machine.settle(0, &aside, &here);
        machine.load(0, &here, None);
        if access {
            assert_eq!(machine.run(0), stop);
            machine.load(0, &here, None);
        }
    }
    assert_eq!(machine.run(0), Stop::Halted);
}

#[test]
fn nmi_is_masked_where_one_is_handled_and_nowhere_else() {
    let code = [AT_ARENA, COPY, HLT];
    let Some(mut machine) = machine(&code) else { return };
    let read = machine.run(0);
    machine.keep_tables(0);
    let state = machine.state(0).expect("registers");
    for nmi_masked in [false, true, false, true] {
        machine.load(0, &ProcessorState { nmi_masked, ..state }, None);
        assert_eq!(machine.run(0), read);
        assert_eq!(machine.state(0).expect("registers").nmi_masked, nmi_masked);
    }
    // One that the same processor of the host enters next.
    let mut other = self::machine(&code).expect("a second machine");
    assert_eq!(other.run(0), read);
    assert!(!other.state(0).expect("registers").nmi_masked);
}
