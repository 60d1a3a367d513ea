//! Machines for plain guests, on the real device.

use stallbench_state::apic::LocalApic;
use stallbench_state::machine::{Registers, VcpuState};
use stallbench_state::program::PlainProgram;

use super::*;
use crate::PlainConfig;
use crate::serial::Console;

pub(super) const ENTRY: u64 = 0x10_0000;
const MEMORY: u64 = 4 << 20;

/// jmp to itself.
const SPIN: &[u8] = &[0xeb, 0xfe];
/// mov edx, 0x3f8; mov al, 'a'.
const TO_CONSOLE: &[u8] = &[0xba, 0xf8, 0x03, 0, 0, 0xb0, b'a'];
/// out dx, al; jmp back to it.
const FLOOD: &[u8] = &[0xee, 0xeb, 0xfd];
/// mov edx, 0x3fd; in al, dx; out 0xf4, al.
const LINE_STATUS: &[u8] = &[0xba, 0xfd, 0x03, 0, 0, 0xec, 0xe6, 0xf4];
/// mov eax, 0x12345678; out 0xf4, eax.
const STATUS: &[u8] = &[0xb8, 0x78, 0x56, 0x34, 0x12, 0xe7, 0xf4];
/// out 0xf4, ax; ud2: which never comes.
const STATUS_16: &[u8] = &[0xb8, 0x78, 0x56, 0x34, 0x12, 0x66, 0xe7, 0xf4, 0x0f, 0x0b];

fn plain(host: &HostKvm, vcpus: usize, all_started: bool, code: &[&[u8]]) -> Machine {
    let mut machine = made(host, vcpus, all_started, &[(ENTRY, &code.concat())]);
    machine.start().expect("threads");
    machine
}

/// A machine for an executable of these segments, not started.
pub(super) fn made(host: &HostKvm, vcpus: usize, all_started: bool, segments: &[(u64, &[u8])]) -> Machine {
    let program = PlainProgram::parse(sample::elf(segments)).expect("an executable");
    let config = PlainConfig { vcpus, memory: MEMORY, all_started, turn: Duration::from_micros(500) };
    Machine::plain(host, &config, &program).expect("a machine")
}

fn ended(machine: &Machine) -> Option<u32> {
    match machine.next_event(DEADLINE) {
        Some(MachineEvent::Ended { vcpu: 0, status }) => Some(status),
        _ => None,
    }
}

#[test]
fn each_vcpu_that_is_started_finds_the_documented_state() {
    let Some(host) = host() else { return };
    let machine = plain(&host, 3, true, &[SPIN]);
    poll(&machine, "all run", || machine.entries().iter().all(|entries| *entries > 0));
    for vcpu in capture(&machine, Capture::Control).vcpus {
        let number = vcpu.index as u64;
        let (rsp, rflags) = (MEMORY - number * 0x4000 - 8, 2);
        let expected = Registers { rip: ENTRY, rsp, rflags, rdi: number, rsi: 3, ..Registers::default() };
        assert_eq!((&vcpu.registers, vcpu.mp_state), (&Ok(expected), Ok(MpState::Runnable)), "{number}");
        let system = vcpu.system.expect("system registers");
        assert_eq!((system.cr0, system.cr3, system.cr4), (0x8001_0031, 0x1000, 0xa0));
        assert_eq!((system.efer, system.gdt.base, system.gdt.limit), (0xd00, 0x7000, 23));
        assert_eq!((system.idt.base, system.idt.limit), (0, 0));
        assert_eq!((system.cs.selector, system.ss.selector, system.ds.base), (8, 0x10, 0));
        let LocalApic { id, x2apic, .. } = vcpu.apic.expect("a local apic");
        assert_eq!((u64::from(id), x2apic), (number, false));
    }
}

#[test]
fn parked_processors_wait_for_the_guest_to_start_them() {
    let Some(host) = host() else { return };
    let machine = plain(&host, 3, false, &[SPIN]);
    let states: Vec<_> = capture(&machine, Capture::Control).vcpus.into_iter().map(|vcpu| vcpu.mp_state).collect();
    assert_eq!(states, [Ok(MpState::Runnable), Ok(MpState::Uninitialized), Ok(MpState::Uninitialized)]);
}

#[test]
fn status_is_what_one_access_of_any_size_writes_and_the_vcpu_stays_there() {
    let Some(host) = host() else { return };
    for (code, status) in [(STATUS, 0x1234_5678), (STATUS_16, 0x5678), (LINE_STATUS, 0x60)] {
        let machine = plain(&host, 1, false, &[code]);
        assert_eq!(ended(&machine), Some(status));
        capture(&machine, Capture::Control);
        assert_eq!(machine.next_event(Duration::ZERO), None, "it is over");
    }
}

#[test]
fn console_keeps_every_byte_across_stops() {
    let Some(host) = host() else { return };
    // As long as an access is being completed another one may not get lost: the guest counts on in RCX.
    let count_and_write: &[u8] = &[0xff, 0xc1, 0xee, 0xeb, 0xfb];
    let machine = plain(&host, 1, false, &[TO_CONSOLE, count_and_write]);
    for _ in 0..50 {
        let paused = machine.pause(DEADLINE).expect("it stops");
        let state = paused.capture(Capture::Control);
        let registers = state.vcpus[0].registers.as_ref().expect("registers");
        let Console { bytes, dropped } = machine.console();
        // It may stand between counting and writing.
        let ahead = registers.rcx - (bytes.len() as u64 + dropped);
        assert_eq!(ahead, u64::from(registers.rip == ENTRY + 9), "{registers:x?}");
        assert!(bytes.iter().all(|byte| *byte == b'a'));
    }
}

#[test]
fn flood_of_output_is_bounded_and_the_machine_still_stops() {
    let Some(host) = host() else { return };
    let machine = plain(&host, 1, false, &[TO_CONSOLE, FLOOD]);
    poll(&machine, "more than is kept", || machine.console().dropped > 0);
    machine.pause(DEADLINE).expect("it stops");
    assert_eq!(machine.console().bytes.len(), 64 << 10);
}

#[test]
fn nmi_is_pending_when_it_was_sent_and_taken_when_the_vcpu_goes_on() {
    let Some(host) = host() else { return };
    let machine = plain(&host, 2, true, &[SPIN]);
    poll(&machine, "all run", || machine.entries().iter().all(|entries| *entries > 0));
    let paused = machine.pause(DEADLINE).expect("it stops");
    paused.nmi(1, DEADLINE).expect("it is sent");
    assert!(paused.nmi(2, DEADLINE).is_err());
    let deliverable: Vec<_> = paused.capture(Capture::Control).vcpus.iter().map(VcpuState::deliverable).collect();
    assert_eq!(deliverable, [None, Some(Deliverable::Nmi)]);
    paused.resume();
    // Without an interrupt table it is its end.
    let event = machine.next_event(DEADLINE);
    assert_eq!(event, Some(MachineEvent::Fault { vcpu: 1, fault: Fault::Shutdown }));
}

#[test]
fn guest_without_room_is_refused() {
    let Some(host) = host() else { return };
    let program = PlainProgram::parse(sample::elf(&[(ENTRY, SPIN)])).expect("an executable");
    let refused = |vcpus, memory| {
        let config = PlainConfig { vcpus, memory, all_started: false, turn: Duration::ZERO };
        Machine::plain(&host, &config, &program).expect_err("it is refused")
    };
    assert!(matches!(refused(0, MEMORY), CreateError::Vcpus { asked: 0, .. }));
    assert!(matches!(refused(127, 2 << 20), CreateError::Stacks { vcpus: 127, .. }));
    assert!(matches!(refused(1, 1 << 20), CreateError::Payload(_)));
    assert!(matches!(refused(70, 2 << 20), CreateError::Payload(_)), "a stack lies over it");
}
