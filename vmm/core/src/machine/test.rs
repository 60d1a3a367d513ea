//! Machines on the real device, with guests of a few instructions.

mod observed;
mod plain;
mod stepping;
mod stops;
mod visits;

use std::time::{Duration, Instant};

use stallbench_abi::boot::{BootBlock, MAGIC};
use stallbench_abi::layout::{CODE_SELECTOR, IMAGE, TRAMPOLINE, cr3};
use stallbench_abi::port::Doorbell;
use stallbench_state::machine::{Deliverable, MachineState, MpState, RFLAGS_IF};
use stallbench_state::mtrr::MtrrState;

use super::*;
use crate::event::Fault;
use crate::real_kvm::host;
use crate::sample;
use crate::{Capture, Counts};

/// Long enough for any host; no test waits so long unless it fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// Guests as bytes.
mod code {
    /// mov edi, PRIVATE: the progress word of vCPU 0.
    pub(super) const PROGRESS: &[u8] = &{
        let [a, b, c, d, ..] = stallbench_abi::layout::PRIVATE.to_le_bytes();
        [0xbf, a, b, c, d]
    };
    /// inc qword [rdi]; jmp back to it.
    pub(super) const COUNT: &[u8] = &[0x48, 0xff, 0x07, 0xeb, 0xfb];
    /// mov esi, 0xfee00000; mov dword [rsi + 0xf0], 0x1ff: the local APIC, enabled.
    pub(super) const APIC: &[u8] = &[0xbe, 0, 0, 0xe0, 0xfe, 0xc7, 0x86, 0xf0, 0, 0, 0, 0xff, 0x01, 0, 0];
    /// mov dword [rsi + 0x300], …: INIT, then SIPI with vector 8, to all but self.
    pub(super) const INIT: &[u8] = &[0xc7, 0x86, 0, 3, 0, 0, 0x00, 0x45, 0x0c, 0];
    pub(super) const SIPI: &[u8] = &[0xc7, 0x86, 0, 3, 0, 0, 0x08, 0x46, 0x0c, 0];
    /// mov dword [rsi + 0x300], …: vector 0x41 to self.
    pub(super) const SELF_IPI: &[u8] = &[0xc7, 0x86, 0, 3, 0, 0, 0x41, 0x40, 0x04, 0];
    /// mov edx, 0x5b10; mov eax, 2; out dx, eax: the doorbell DONE.
    pub(super) const DONE: &[u8] = &[0xba, 0x10, 0x5b, 0, 0, 0xb8, 2, 0, 0, 0, 0xef];
    /// The same with EPITAPH.
    pub(super) const EPITAPH: &[u8] = &[0xba, 0x10, 0x5b, 0, 0, 0xb8, 3, 0, 0, 0, 0xef];
    /// out dx, eax; jmp back to it.
    pub(super) const FLOOD: &[u8] = &[0xef, 0xeb, 0xfd];
    /// mov edx, 0x3f8; in eax, dx; mov [rdi], rax.
    pub(super) const INPUT: &[u8] = &[0xba, 0xf8, 0x03, 0, 0, 0xed, 0x48, 0x89, 0x07];
    /// mov esi, 0x400000; mov rcx, -1; mov edx, 0x3f8; rep outsb.
    pub(super) const OUTPUT_STRING: &[u8] =
        &[0xbe, 0, 0, 0x40, 0, 0x48, 0xc7, 0xc1, 0xff, 0xff, 0xff, 0xff, 0xba, 0xf8, 0x03, 0, 0, 0xf3, 0x6e];
    pub(super) const HLT: &[u8] = &[0xf4];
    pub(super) const UD2: &[u8] = &[0x0f, 0x0b];
    /// inc eax; jmp back to it, in real mode.
    pub(super) const COUNT_16: &[u8] = &[0x66, 0x40, 0xeb, 0xfc];
}

fn machine(host: &HostKvm, vcpus: usize, code: &[&[u8]]) -> Machine {
    let image = sample::elf(&[(IMAGE, &code.concat()), (TRAMPOLINE, code::COUNT_16)]);
    let boot = BootBlock { magic: MAGIC, vcpus: vcpus as u32, ..BootBlock::default() };
    Machine::new(host, &MachineConfig::new(vcpus), &image, &boot).expect("a machine")
}

fn started(host: &HostKvm, vcpus: usize, code: &[&[u8]]) -> Machine {
    let mut machine = machine(host, vcpus, code);
    machine.start().expect("threads");
    machine
}

/// All others started, all of them counting.
const SPINNING: &[&[u8]] = &[code::APIC, code::INIT, code::SIPI, code::SIPI, code::DONE, code::PROGRESS, code::COUNT];

fn wait_for(machine: &Machine, doorbell: Doorbell) {
    let event = machine.next_event(DEADLINE);
    assert_eq!(event, Some(MachineEvent::Doorbell { vcpu: 0, doorbell }));
}

/// Polls until a condition holds, taking turns.
fn poll(machine: &Machine, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what} in time");
        assert_eq!(machine.next_event(Duration::from_micros(500)), None, "no event");
        machine.enforce_turns();
    }
}

fn capture(machine: &Machine, what: Capture) -> MachineState {
    machine.pause(DEADLINE).expect("all stop").capture(what)
}

fn all_up(state: &MachineState) -> bool {
    state.vcpus.iter().all(|vcpu| vcpu.mp_state == Ok(MpState::Runnable))
}

/// What each vCPU counts: vCPU 0 in memory, the others in EAX.
fn counts(machine: &Machine, state: &MachineState) -> Vec<u64> {
    let mut progress = [0];
    machine.progress_into(&mut progress);
    let others = state.vcpus[1..].iter().map(|vcpu| vcpu.registers.as_ref().expect("registers").rax);
    std::iter::once(progress[0]).chain(others).collect()
}

#[test]
fn vcpu_that_goes_on_after_a_look_is_counted_as_let_in_once_more() {
    let Some(host) = host() else { return };
    let machine = started(&host, 1, SPINNING);
    wait_for(&machine, Doorbell::DONE);
    let paused = machine.pause(DEADLINE).expect("a pause");
    let before = machine.entries()[0];
    paused.capture(Capture::Full);
    assert_eq!(machine.entries()[0], before, "it stands still");
    paused.resume();
    poll(&machine, "it goes on", || machine.entries()[0] > before);
}

#[test]
fn what_kvm_counts_of_each_vcpu_grows_while_it_runs() {
    let Some(host) = host() else { return };
    let mut machine = machine(&host, 2, &[code::DONE, code::FLOOD]);
    if !machine.keep_statistics(&host).expect("files") {
        return eprintln!("SKIPPED, this host does not say what it counts");
    }
    let exits = |machine: &Machine| {
        let counts = machine.statistics().expect("counts");
        assert_eq!(counts.len(), 2);
        let exits = |counts: &Counts| counts.iter().find(|(name, _)| name == "exits").map(|(_, count)| *count);
        (exits(&counts[0]).expect("exits of vcpu 0"), exits(&counts[1]).expect("exits of vcpu 1"))
    };
    machine.start().expect("threads");
    poll_events(|| exits(&machine).0 > 100);
    let (busy, waiting) = exits(&machine);
    assert!(waiting < busy, "{waiting} < {busy}");
}

/// Polls until a condition holds, whatever events there are.
fn poll_events(mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "in time");
        thread::yield_now();
    }
}

#[test]
fn machine_of_four_starts_and_every_vcpu_runs() {
    let Some(host) = host() else { return };
    let machine = started(&host, 4, SPINNING);
    wait_for(&machine, Doorbell::DONE);
    poll(&machine, "all come up", || all_up(&capture(&machine, Capture::Control)));
    all_count_on(&machine);
    assert!(machine.ran().iter().all(|ran| *ran > Duration::ZERO));
    assert!(machine.entries().iter().all(|entries| *entries > 0));
}

#[test]
fn first_vcpu_starts_as_the_layout_says() {
    let Some(host) = host() else { return };
    let machine = started(&host, 2, &[code::PROGRESS, code::COUNT]);
    poll(&machine, "it counts", || machine.memory().read_u64(private(0)) > Some(0));
    let state = capture(&machine, Capture::Full);
    let system = state.vcpus[0].system.as_ref().expect("system registers");
    assert_eq!((system.cs.selector, system.cr3, system.tr.limit), (CODE_SELECTOR, cr3(0), 103));
    assert_eq!(state.vcpus[0].mtrr, Some(Ok(MtrrState::at_start())));
    assert_eq!(state.vcpus[1].mtrr, Some(Ok(MtrrState::at_start())));
    assert_eq!(state.vcpus[1].mp_state, Ok(MpState::Uninitialized));
    let stack = state.vcpus[0].registers.as_ref().expect("registers").rsp;
    assert_eq!(stack, private(0) + private_area::TASK_STACK_TOP - 8);
}

#[test]
fn host_without_anything_optional_gives_the_same_state() {
    let Some(host) = host() else { return };
    let halted = |host: &HostKvm| {
        let machine = started(host, 2, &[code::APIC, code::DONE, code::HLT]);
        wait_for(&machine, Doorbell::DONE);
        poll(&machine, "it halts", || capture(&machine, Capture::Control).vcpus[0].mp_state == Ok(MpState::Halted));
        capture(&machine, Capture::Full)
    };
    let with_all = halted(&host);
    let with_none = halted(&host.bare());
    for (one, other) in with_all.vcpus.iter().zip(&with_none.vcpus) {
        assert_eq!((&one.registers, &one.system, &one.apic), (&other.registers, &other.system, &other.apic));
        assert_eq!((&one.events, &one.mp_state, &one.mtrr), (&other.events, &other.mp_state, &other.mtrr));
    }
}

#[test]
fn vcpus_that_stand_still_do_not_move() {
    let Some(host) = host() else { return };
    let machine = started(&host, 3, SPINNING);
    wait_for(&machine, Doorbell::DONE);
    let paused = machine.pause(DEADLINE).expect("all stop");
    let (first, second) = (paused.capture(Capture::Control), paused.capture(Capture::Control));
    for (first, second) in first.vcpus.iter().zip(&second.vcpus) {
        assert_eq!((&first.registers, &first.events), (&second.registers, &second.events));
    }
}

/// The stress test of the kick protocol: thousands of pauses of spinning vCPUs, against bursts of turns from another thread. Most
/// come right after a resume, while vCPUs are on their way in; every eighth waits until one of them has got on.
#[test]
fn kick_is_never_lost_in_thousands_of_pauses() {
    const PAUSES: u64 = 2000;
    let Some(host) = host() else { return };
    let machine = started(&host, 4, SPINNING);
    wait_for(&machine, Doorbell::DONE);
    let begun = AtomicU64::new(0);
    thread::scope(|scope| {
        let pausing = scope.spawn(|| {
            for pause in 0..PAUSES {
                begun.fetch_add(1, Ordering::Relaxed);
                pause_once(&machine, pause);
            }
        });
        // A burst for each pause, at any moment of it: without an end they would keep the vCPUs from ever getting on.
        let mut bursts = 0;
        while !pausing.is_finished() {
            if begun.load(Ordering::Relaxed) > bursts {
                machine.seats.iter().for_each(|seat| seat.kick(Requests::TURN));
                bursts += 1;
            }
            thread::yield_now();
        }
    });
    all_count_on(&machine);
    let kicks = machine.kicks();
    assert!(kicks.acknowledged > 0 && kicks.sent >= 4 * PAUSES, "{kicks:?}");
}

fn pause_once(machine: &Machine, pause: u64) {
    let paused = machine.pause(DEADLINE).unwrap_or_else(|late| panic!("pause {pause}: {late}"));
    if pause.is_multiple_of(8) {
        let state = paused.capture(Capture::Control);
        assert!(state.vcpus.iter().all(|vcpu| vcpu.registers.is_ok() && vcpu.apic.is_ok()));
        paused.resume();
        wait_for_progress(machine);
    }
}

fn wait_for_progress(machine: &Machine) {
    let (end, before) = (Instant::now() + DEADLINE, machine.memory().read_u64(private(0)));
    while machine.memory().read_u64(private(0)) == before {
        assert!(Instant::now() < end, "vcpu 0 gets on in time");
        thread::yield_now();
    }
}

fn all_count_on(machine: &Machine) {
    let before = counts(machine, &capture(machine, Capture::Control));
    poll(machine, "all count on", || {
        let now = counts(machine, &capture(machine, Capture::Control));
        now.iter().zip(&before).all(|(now, before)| now != before)
    });
}

#[test]
fn halted_vcpu_holds_what_it_cannot_take() {
    let Some(host) = host() else { return };
    let machine = started(&host, 1, &[code::APIC, code::SELF_IPI, code::DONE, code::HLT]);
    wait_for(&machine, Doorbell::DONE);
    poll(&machine, "it halts", || capture(&machine, Capture::Control).vcpus[0].mp_state == Ok(MpState::Halted));
    let state = &capture(&machine, Capture::Control).vcpus[0];
    assert_eq!(state.apic.as_ref().ok().and_then(|apic| apic.highest_requested()), Some(0x41));
    assert_eq!(state.deliverable(), None, "interrupts are disabled");
    let mut open = state.clone();
    open.registers.as_mut().expect("registers").rflags |= RFLAGS_IF;
    assert_eq!(open.deliverable(), Some(Deliverable::Vector(0x41)));
}

#[test]
fn guest_that_shuts_down_is_told_and_captured() {
    let Some(host) = host() else { return };
    let machine = started(&host, 2, &[code::UD2]);
    let event = machine.next_event(DEADLINE);
    assert_eq!(event, Some(MachineEvent::Fault { vcpu: 0, fault: Fault::Shutdown }));
    assert!(capture(&machine, Capture::Control).vcpus[0].registers.is_ok());
    machine.pause(DEADLINE).expect("all stop").resume();
    assert!(capture(&machine, Capture::Full).vcpus[0].registers.is_ok());
}

#[test]
fn epitaph_parks_its_vcpu() {
    let Some(host) = host() else { return };
    let machine = started(&host, 1, &[code::PROGRESS, code::EPITAPH, code::COUNT]);
    wait_for(&machine, Doorbell::EPITAPH);
    let state = &capture(&machine, Capture::Control).vcpus[0];
    let behind = IMAGE + (code::PROGRESS.len() + code::EPITAPH.len()) as u64;
    assert_eq!(state.registers.as_ref().map(|r| r.rip), Ok(behind), "the access is complete");
    capture(&machine, Capture::Control);
    assert_eq!(machine.memory().read_u64(private(0)), Some(0));
}

#[test]
fn guest_that_floods_doorbells_is_dropped_and_stopped() {
    let Some(host) = host() else { return };
    let machine = started(&host, 1, &[code::DONE, code::FLOOD]);
    let end = Instant::now() + DEADLINE;
    while machine.dropped_doorbells() == 0 {
        assert!(Instant::now() < end, "it floods in time");
        thread::yield_now();
    }
    machine.pause(DEADLINE).expect("it stops").resume();
}

#[test]
fn input_from_nowhere_is_all_ones() {
    let Some(host) = host() else { return };
    let machine = started(&host, 1, &[code::PROGRESS, code::INPUT, code::DONE, code::HLT]);
    wait_for(&machine, Doorbell::DONE);
    assert_eq!(machine.memory().read_u64(private(0)), Some(0xffff_ffff));
    assert_eq!(machine.ignored_accesses(), 1);
}

#[test]
fn guest_that_writes_an_endless_string_is_stopped() {
    let Some(host) = host() else { return };
    let machine = started(&host, 1, &[code::OUTPUT_STRING]);
    let end = Instant::now() + DEADLINE;
    while machine.ignored_accesses() < 10 {
        assert!(Instant::now() < end, "it writes in time");
        thread::yield_now();
    }
    for _ in 0..10 {
        assert!(capture(&machine, Capture::Control).vcpus[0].registers.is_ok());
    }
}

#[test]
fn machine_that_was_never_started_ends() {
    let Some(host) = host() else { return };
    drop(machine(&host, 2, SPINNING));
}

#[test]
fn machine_of_no_or_too_many_vcpus_is_refused() {
    let Some(host) = host() else { return };
    let image = sample::elf(&[(IMAGE, code::HLT)]);
    for vcpus in [0, host.max_vcpus() + 1] {
        let boot = BootBlock { vcpus: vcpus as u32, ..BootBlock::default() };
        let refused = Machine::new(&host, &MachineConfig::new(vcpus), &image, &boot).expect_err("it is refused");
        assert!(matches!(refused, CreateError::Vcpus { .. }), "{refused}");
    }
}
