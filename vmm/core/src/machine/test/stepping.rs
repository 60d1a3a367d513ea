//! Words that are watched by steps: who writes them, and what the guest sees of it.

use stallbench_abi::layout::PRIVATE;

use super::plain::{ENTRY, made};
use super::stops::{go_on, next_stop};
use super::*;
use crate::watch::Word;
use crate::{Hit, Stops, Watched};

/// Two words that guests write.
const WORDS: u64 = 0x30_0000;
/// A table of interrupts, what `lidt` reads, and the handler of every vector.
const GATES: u64 = 0x12_0000;
const POINTER: u64 = 0x12_1000;
const HANDLER: u64 = 0x12_2000;
/// Where each vCPU spins, so many bytes apart.
const LOOPS: u64 = ENTRY + 0x100;
const LOOP: u64 = 16;

/// mov ebx, WORDS
const WORDS_IN_RBX: &[u8] = &[0xbb, 0, 0, 0x30, 0];
/// mov eax, edi; shl eax, 4; add eax, LOOPS; jmp rax
const TO_OWN_LOOP: &[u8] = &[0x89, 0xf8, 0xc1, 0xe0, 4, 0x05, 0, 1, 0x10, 0, 0xff, 0xe0];
/// lock inc qword [rbx]; jmp back to it
const INC: &[u8] = &[0xf0, 0x48, 0xff, 0x03, 0xeb, 0xfa];
/// lidt [POINTER]
const LIDT: &[u8] = &[0x0f, 0x01, 0x1c, 0x25, 0, 0x10, 0x12, 0];
/// inc qword [rbx + 8]; jmp back to it
const INC_SECOND: &[u8] = &[0x48, 0xff, 0x43, 8, 0xeb, 0xfa];
/// jmp to itself
const SPIN: &[u8] = &[0xeb, 0xfe];
const STI: &[u8] = &[0xfb];
/// pushfq; pop rax; mov [rbx], rax
const STORE_FLAGS: &[u8] = &[0x9c, 0x58, 0x48, 0x89, 0x03];
/// nop; mov rax, [rsp + 16]; mov [rbx], rax: the flags that the interrupt pushed. EOI; iretq.
const HANDLE: &[u8] =
    &[0x90, 0x48, 0x8b, 0x44, 0x24, 16, 0x48, 0x89, 0x03, 0xc7, 0x86, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0x48, 0xcf];
/// RIP behind the store of the handler.
const HANDLED: u64 = HANDLER + 9;
const TRAP_FLAG: u64 = 1 << 8;

fn stepped(words: &[u64]) -> Stops {
    let watched = |&physical: &u64| Watched { word: Word { linear: physical, physical, size: 8 }, reads: false };
    Stops { access: words.iter().map(watched).collect(), stepping: true, ..Stops::default() }
}

fn word(machine: &Machine, index: u64) -> u64 {
    machine.memory().read_u64(WORDS + 8 * index).expect("guest memory")
}

/// A guest with a handler for vector 0x41, and its stops.
fn with_handler(host: &HostKvm, code: &[&[u8]], stops: &Stops) -> Machine {
    let [a, b, c, ..] = HANDLER.to_le_bytes();
    let gate = [a, b, 8, 0, 0, 0x8e, c, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pointer = [&0xfff_u16.to_le_bytes()[..], &GATES.to_le_bytes()].concat();
    let code = [&[LIDT, code::APIC, WORDS_IN_RBX][..], code].concat().concat();
    let segments = [(ENTRY, &code[..]), (GATES + 0x41 * 16, &gate), (POINTER, &pointer), (HANDLER, HANDLE)];
    held_at_start(made(host, 1, true, &segments), stops)
}

fn held_at_start(mut machine: Machine, stops: &Stops) -> Machine {
    machine.start_paused(DEADLINE).expect("threads").set_stops(stops).expect("stops");
    machine
}

/// A machine whose vCPUs each have a loop, behind the same beginning.
fn looping(host: &HostKvm, loops: &[&[u8]], stops: &Stops) -> Machine {
    let padded = |code: &&[u8]| [code, &[0; LOOP as usize][code.len()..]].concat();
    let code: Vec<u8> = loops.iter().flat_map(padded).collect();
    let segments: [(u64, &[u8]); 2] = [(ENTRY, &[WORDS_IN_RBX, TO_OWN_LOOP].concat()), (LOOPS, &code)];
    held_at_start(made(host, loops.len(), true, &segments), stops)
}

#[test]
fn every_write_is_seen_once_and_its_writer_is_named() {
    let Some(host) = host() else { return };
    let machine = looping(&host, &[INC; 4], &stepped(&[WORDS]));
    let mut writes = [0; 4];
    while writes.iter().any(|writes| *writes < 10) {
        let mut stop = Some(next_stop(&machine));
        let _paused = machine.pause(DEADLINE).expect("a pause");
        while let Some((vcpu, at)) = stop {
            assert_eq!(at, Hit::Access { word: 0, behind: LOOPS + vcpu as u64 * LOOP + 4 });
            writes[vcpu] += 1;
            stop = match machine.next_event(Duration::ZERO) {
                Some(MachineEvent::Stopped { vcpu, at }) => Some((vcpu, at)),
                event => event.map(|event| panic!("{event:?}")),
            };
        }
        assert_eq!(word(&machine, 0), writes.iter().sum::<u64>(), "{writes:?}");
    }
}

#[test]
fn write_is_never_that_of_a_vcpu_that_only_looks_on() {
    let Some(host) = host() else { return };
    let machine = looping(&host, &[INC, SPIN, SPIN], &stepped(&[WORDS]));
    for count in 1..300 {
        assert_eq!(next_stop(&machine), (0, Hit::Access { word: 0, behind: LOOPS + 4 }));
        assert_eq!(word(&machine, 0), count);
        go_on(&machine);
    }
}

/// Whether a handler shows while its vCPU is stepped. Where it runs within one step, words are watched by breakpoints.
fn shows_handlers(host: &HostKvm) -> bool {
    let breakpoints = host.watches_writes().expect("an answer");
    if breakpoints {
        eprintln!("SKIPPED, nothing has to be watched by steps here");
    }
    !breakpoints
}

#[test]
fn interrupts_come_and_the_guest_sees_no_trap_flag_of_the_host() {
    let Some(host) = host().filter(shows_handlers) else { return };
    let machine = with_handler(&host, &[STI, code::SELF_IPI, INC_SECOND], &stepped(&[WORDS]));
    assert_eq!(next_stop(&machine), (0, Hit::Access { word: 0, behind: HANDLED }));
    let flags = word(&machine, 0);
    assert_eq!(flags & (TRAP_FLAG | RFLAGS_IF), RFLAGS_IF, "{flags:#x}");
    machine.pause(DEADLINE).expect("a pause").set_stops(&Stops::default()).expect("none");
    let before = word(&machine, 1);
    poll(&machine, "it goes on", || word(&machine, 1) > before + 1000);
}

#[test]
fn flags_that_are_pushed_have_no_trap_flag_of_the_host() {
    let Some(host) = host() else { return };
    let machine = with_handler(&host, &[STORE_FLAGS, INC_SECOND], &stepped(&[WORDS]));
    next_stop(&machine);
    assert_eq!(word(&machine, 0) & TRAP_FLAG, 0);
}

#[test]
fn vcpu_that_halts_is_woken_and_stepped_on() {
    let Some(host) = host().filter(shows_handlers) else { return };
    let machine = with_handler(&host, &[STI, code::HLT, INC_SECOND], &stepped(&[WORDS, WORDS + 8]));
    poll(&machine, "it halts", || capture(&machine, Capture::Control).vcpus[0].mp_state == Ok(MpState::Halted));
    machine.pause(DEADLINE).expect("a pause").interrupt(0, 0x41).expect("an interrupt");
    assert!(matches!(next_stop(&machine), (0, Hit::Access { word: 0, .. })));
    assert_eq!((word(&machine, 0) & TRAP_FLAG, word(&machine, 1)), (0, 0));
    go_on(&machine);
    assert!(matches!(next_stop(&machine), (0, Hit::Access { word: 1, .. })));
    assert_eq!(word(&machine, 1), 1);
}

#[test]
fn instructions_are_stops_of_a_stepped_machine_too() {
    let Some(host) = host() else { return };
    let inc = ENTRY + WORDS_IN_RBX.len() as u64;
    let stops = Stops { execute: vec![(inc, None), (inc + 4, None)], ..stepped(&[WORDS]) };
    let machine = held_at_start(made(&host, 1, true, &[(ENTRY, &[WORDS_IN_RBX, INC].concat())]), &stops);
    for turn in 0..5 {
        assert_eq!((next_stop(&machine), word(&machine, 0)), ((0, Hit::Execute { rip: inc }), turn));
        go_on(&machine);
        assert_eq!(next_stop(&machine), (0, Hit::Access { word: 0, behind: inc + 4 }));
        go_on(&machine);
        assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: inc + 4 }));
        go_on(&machine);
    }
}

#[test]
fn processors_that_the_guest_starts_are_stepped_from_there_on() {
    let Some(host) = host() else { return };
    let machine = held_at_start(machine(&host, 4, SPINNING), &stepped(&[PRIVATE]));
    wait_for(&machine, Doorbell::DONE);
    for turn in 1..4 {
        let (vcpu, _) = next_stop(&machine);
        let paused = machine.pause(DEADLINE).expect("a pause");
        assert_eq!((vcpu, machine.memory().read_u64(private(0))), (0, Some(turn)));
        if turn == 3 {
            paused.set_stops(&Stops::default()).expect("none");
        }
    }
    poll(&machine, "all come up", || all_up(&capture(&machine, Capture::Control)));
    all_count_on(&machine);
}

#[test]
fn vcpu_that_resets_itself_keeps_no_other_from_its_steps() {
    let Some(host) = host() else { return };
    // mov dword [rsi + 0x310], …: to the local APIC 1; mov dword [rsi + 0x300], …: INIT.
    let init: &[u8] = &[0xc7, 0x86, 0x10, 3, 0, 0, 0, 0, 0, 1, 0xc7, 0x86, 0, 3, 0, 0, 0, 0x45, 0, 0];
    // test edi, edi; jz behind what vCPU 1 does.
    let vcpu_0_skips: &[u8] = &[0x85, 0xff, 0x74, (code::APIC.len() + init.len() + SPIN.len()) as u8];
    let code = [WORDS_IN_RBX, vcpu_0_skips, code::APIC, init, SPIN, INC_SECOND].concat();
    let machine = held_at_start(made(&host, 2, true, &[(ENTRY, &code)]), &stepped(&[WORDS]));
    poll(&machine, "the other goes on", || word(&machine, 1) > 500);
    assert_eq!(capture(&machine, Capture::Control).vcpus[1].mp_state, Ok(MpState::InitReceived));
}

#[test]
fn write_from_outside_is_nobody_s() {
    let Some(host) = host() else { return };
    let machine =
        held_at_start(made(&host, 1, true, &[(ENTRY, &[WORDS_IN_RBX, INC_SECOND].concat())]), &stepped(&[WORDS]));
    poll(&machine, "it counts", || word(&machine, 1) > 0);
    assert!(machine.pause(DEADLINE).expect("a pause").write(WORDS, &[1]));
    let before = word(&machine, 1);
    poll(&machine, "it counts on", || word(&machine, 1) > before + 10);
}
