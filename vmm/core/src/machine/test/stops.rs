//! Stops: breakpoints on instructions and words, of machines that run and stand still again.

use stallbench_abi::layout::{PRIVATE, memory_end};
use stallbench_state::machine::Registers;

use super::plain::{ENTRY, made};
use super::visits::Steps;
use super::*;
use crate::watch::Word;
use crate::{Hit, StepError, StopError, Stops, VcpuError, Visited, Visitor, Watched};

/// inc qword [rdi]; jmp on; pause; jmp back to it. Without `pause` it would stop one of the hosts (docs/hosts.md).
const COUNT: &[u8] = &[0x48, 0xff, 0x07, 0xeb, 0, 0xf3, 0x90, 0xeb, 0xf7];
/// Its `inc` in a guest that only counts, and the `jmp` behind that.
const INC: u64 = IMAGE + code::PROGRESS.len() as u64;
const JMP: u64 = INC + 3;
/// A word of a plain guest.
const WORD: u64 = 0x30_0000;
const COUNTING: &[&[u8]] = &[code::PROGRESS, COUNT];

fn at(instructions: &[u64]) -> Stops {
    Stops { execute: instructions.iter().map(|linear| (*linear, None)).collect(), ..Stops::default() }
}

fn paused_at_start(host: &HostKvm, vcpus: usize, code: &[&[u8]], stops: &Stops) -> Machine {
    let mut machine = machine(host, vcpus, code);
    let paused = machine.start_paused(DEADLINE).expect("threads");
    paused.set_stops(stops).expect("stops");
    drop(paused);
    machine
}

pub(super) fn next_stop(machine: &Machine) -> (usize, Hit) {
    match machine.next_event(DEADLINE) {
        Some(MachineEvent::Stopped { vcpu, at }) => (vcpu, at),
        Some(MachineEvent::Doorbell { .. }) => next_stop(machine),
        other => panic!("no stop: {other:?}"),
    }
}

pub(super) fn go_on(machine: &Machine) {
    machine.pause(DEADLINE).expect("a pause").resume();
}

/// RIP of vCPU 0.
fn rip(state: &MachineState) -> Option<u64> {
    state.vcpus[0].registers.as_ref().ok().map(|registers| registers.rip)
}

fn count(machine: &Machine) -> u64 {
    machine.memory().read_u64(private(0)).expect("the progress word")
}

#[test]
fn machine_that_is_started_paused_has_executed_nothing() {
    let Some(host) = host() else { return };
    let mut machine = machine(&host, 2, COUNTING);
    let paused = machine.start_paused(DEADLINE).expect("threads");
    for _ in 0..3 {
        let state = paused.capture(Capture::Control);
        assert_eq!(rip(&state), Some(IMAGE));
        assert_eq!(state.vcpus[1].mp_state, Ok(MpState::Uninitialized));
    }
    drop(paused);
    poll(&machine, "it goes on", || count(&machine) > 0);
}

#[test]
fn machine_that_is_started_held_executes_nothing_however_late_it_is_paused() {
    let Some(host) = host() else { return };
    let mut machine = machine(&host, 1, COUNTING);
    machine.start_held().expect("threads");
    let held = Instant::now();
    poll(&machine, "long enough for some instructions", || held.elapsed() > Duration::from_millis(50));
    assert_eq!((count(&machine), machine.entries()), (0, vec![0]));
    let paused = machine.pause(DEADLINE).expect("a pause");
    assert_eq!(rip(&paused.capture(Capture::Control)), Some(IMAGE));
    drop(paused);
    poll(&machine, "it goes on", || count(&machine) > 0);
}

#[test]
fn every_turn_of_a_loop_is_one_stop() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[INC]));
    for turn in 0..20 {
        assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: INC }));
        assert_eq!(count(&machine), turn, "the instruction has not been executed");
        go_on(&machine);
    }
}

#[test]
fn stops_side_by_side_are_all_met() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[INC, JMP, IMAGE]));
    for rip in [IMAGE, INC, JMP, INC, JMP, INC] {
        assert_eq!(next_stop(&machine), (0, Hit::Execute { rip }));
        go_on(&machine);
    }
}

#[test]
fn vcpu_stands_at_its_stop_until_that_is_taken_and_the_machine_goes_on() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[JMP]));
    poll_untaken(&machine, || count(&machine) == 1);
    // Pauses of somebody who does not know yet.
    (0..3).for_each(|_| go_on(&machine));
    let paused = machine.pause(DEADLINE).expect("a pause");
    assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: JMP }));
    assert_eq!((rip(&paused.capture(Capture::Control)), count(&machine)), (Some(JMP), 1));
    drop(paused);
    poll_untaken(&machine, || count(&machine) == 2);
}

/// Polls until a condition holds, and takes no event.
fn poll_untaken(machine: &Machine, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "in time");
        machine.enforce_turns();
        thread::yield_now();
    }
}

#[test]
fn stops_that_are_taken_away_hold_nobody() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[JMP]));
    poll_untaken(&machine, || count(&machine) == 1);
    let paused = machine.pause(DEADLINE).expect("a pause");
    paused.set_stops(&Stops::default()).expect("no stops");
    drop(paused);
    poll(&machine, "it counts, and tells nothing", || count(&machine) > 1000);
}

#[test]
fn stop_of_one_vcpu_is_passed_by_the_other() {
    let Some(host) = host() else { return };
    // vCPU 1 counts in real mode, at the start of page 8: inc eax, then a jmp back.
    let jmp = TRAMPOLINE + 2;
    let machine = paused_at_start(
        &host,
        2,
        &[code::APIC, code::INIT, code::SIPI, code::SIPI, code::DONE, code::PROGRESS, COUNT],
        &Stops { execute: vec![(jmp, Some(1)), (jmp, Some(0))], ..Stops::default() },
    );
    for turn in 1..5 {
        let (vcpu, at) = next_stop(&machine);
        assert!(vcpu == 1 && matches!(at, Hit::Execute { .. }), "{vcpu}: {at:?}");
        let state = capture(&machine, Capture::Control);
        assert_eq!(state.vcpus[1].registers.as_ref().map(|registers| registers.rax & 0xff), Ok(turn));
    }
    let before = count(&machine);
    poll_untaken(&machine, || count(&machine) > before + 100);
}

#[test]
fn each_vcpu_stops_by_itself_at_a_stop_of_all() {
    let Some(host) = host() else { return };
    // pause; inc eax; jmp back.
    let spin: &[u8] = &[0xf3, 0x90, 0xff, 0xc0, 0xeb, 0xfa];
    let mut machine = made(&host, 3, true, &[(ENTRY, spin)]);
    machine.start_paused(DEADLINE).expect("threads").set_stops(&at(&[ENTRY + 2])).expect("stops");
    let mut turns = [0; 3];
    while turns.iter().any(|turns| *turns < 5) {
        let (vcpu, at) = next_stop(&machine);
        assert_eq!(at, Hit::Execute { rip: ENTRY + 2 });
        let paused = machine.pause(DEADLINE).expect("a pause");
        let state = &paused.capture(Capture::Control).vcpus[vcpu];
        assert_eq!(state.registers.as_ref().map(|registers| registers.rax), Ok(turns[vcpu]), "{vcpu}");
        turns[vcpu] += 1;
    }
}

#[test]
fn writer_of_a_word_stops_behind_its_write() {
    let Some(host) = host() else { return };
    if !host.watches_writes().expect("an answer") {
        return eprintln!("SKIPPED, breakpoints on words do not fire here");
    }
    let word = Word { linear: PRIVATE, physical: private(0), size: 8 };
    let access = vec![Watched { word, reads: false }];
    // With a stop at the very instruction that writes, and one behind it.
    let stops = Stops { access, ..at(&[INC, JMP]) };
    let machine = paused_at_start(&host, 1, COUNTING, &stops);
    for turn in 1..10 {
        assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: INC }));
        go_on(&machine);
        assert_eq!(next_stop(&machine), (0, Hit::Access { word: 0, behind: JMP }));
        assert_eq!(count(&machine), turn);
        go_on(&machine);
        assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: JMP }));
        go_on(&machine);
    }
}

#[test]
fn halt_at_a_stop_is_passed_and_woken_from() {
    let Some(host) = host() else { return };
    let wakes: &[&[u8]] = &[code::APIC, code::DONE, code::HLT, code::DONE, code::HLT];
    let hlt = IMAGE + (code::APIC.len() + code::DONE.len()) as u64;
    let machine = paused_at_start(&host, 1, wakes, &at(&[hlt]));
    wait_for(&machine, Doorbell::DONE);
    assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: hlt }));
    let paused = machine.pause(DEADLINE).expect("a pause");
    let refused = paused.step(0, DEADLINE).expect_err("it would wait");
    assert!(matches!(refused, VcpuError::Refused { vcpu: 0, why: StepError::Waits }), "{refused}");
    drop(paused);
    poll(&machine, "it halts", || capture(&machine, Capture::Control).vcpus[0].mp_state == Ok(MpState::Halted));
    let state = capture(&machine, Capture::Control);
    assert_eq!(rip(&state), Some(hlt + 1));
}

#[test]
fn halt_with_prefixes_at_a_stop_waits_behind_all_of_it() {
    let Some(host) = host() else { return };
    let halt: &[u8] = &[0x66, 0x2e, 0x48, 0xf4];
    for stepping in [false, true] {
        let machine = paused_at_start(&host, 1, &[halt, code::HLT], &Stops { stepping, ..at(&[IMAGE]) });
        assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: IMAGE }));
        let paused = machine.pause(DEADLINE).expect("a pause");
        let refused = paused.step(0, DEADLINE).expect_err("it would wait");
        assert!(matches!(refused, VcpuError::Refused { why: StepError::Waits, .. }), "{refused}");
        drop(paused);
        poll(&machine, "it halts", || capture(&machine, Capture::Control).vcpus[0].mp_state == Ok(MpState::Halted));
        assert_eq!(rip(&capture(&machine, Capture::Control)), Some(IMAGE + halt.len() as u64));
    }
}

#[test]
fn step_is_one_instruction_and_leaves_a_stop_behind_itself() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[INC]));
    assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: INC }));
    let paused = machine.pause(DEADLINE).expect("a pause");
    for rip in [JMP, INC + 5, INC + 7, INC] {
        assert_eq!(paused.step(0, DEADLINE).map(|registers| registers.rip).expect("a step"), rip);
    }
    assert_eq!(count(&machine), 1);
    drop(paused);
    // It was seen to stand at the stop.
    assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: INC }));
    assert_eq!(count(&machine), 2);
}

#[test]
fn step_over_an_access_does_it_as_the_guest_would() {
    let Some(host) = host() else { return };
    let code: &[&[u8]] = &[code::PROGRESS, code::DONE, code::INPUT, code::EPITAPH];
    let mut machine = machine(&host, 1, code);
    let out = IMAGE + (code::PROGRESS.len() + code::DONE.len()) as u64;
    let paused =
        machine.start_held().and_then(|()| machine.pause(DEADLINE).map_err(StartError::Pause)).expect("a pause");
    // What lies behind them is a stop, and steps stop nowhere.
    paused.set_stops(&at(&[out])).expect("stops");
    let step = || paused.step(0, DEADLINE).expect("a step").rip;
    (0..3).for_each(|_| _ = step());
    assert_eq!(step(), out);
    assert_eq!(machine.next_event(Duration::ZERO), Some(MachineEvent::Doorbell { vcpu: 0, doorbell: Doorbell::DONE }));
    (0..3).for_each(|_| _ = step());
    assert_eq!((count(&machine), machine.ignored_accesses()), (0xffff_ffff, 1));
    (0..3).for_each(|_| _ = step());
    let epitaph = MachineEvent::Doorbell { vcpu: 0, doorbell: Doorbell::EPITAPH };
    assert_eq!(machine.next_event(Duration::ZERO), Some(epitaph));
    let refused = paused.step(0, DEADLINE).expect_err("it is parked");
    assert!(matches!(refused, VcpuError::Refused { why: StepError::NotRunning, .. }), "{refused}");
    assert_eq!(machine.next_event(Duration::ZERO), None);
}

#[test]
fn step_over_an_access_harms_no_vcpu_that_has_no_stops() {
    let Some(host) = host() else { return };
    // mov edi, PRIVATE; mov esi, 0xfed00000; out dx, eax; mov [rsi], eax; inc qword [rdi]; jmp back to the `out`.
    let turn: &[u8] = &[0xbe, 0, 0, 0xd0, 0xfe, 0xef, 0x89, 0x06, 0x48, 0xff, 0x07, 0xeb, 0xf8];
    let [a, b, c, ..] = WORD.to_le_bytes();
    let mut machine = made(&host, 1, true, &[(ENTRY, &[&[0xbf, a, b, c, 0], turn].concat())]);
    let paused =
        machine.start_held().and_then(|()| machine.pause(DEADLINE).map_err(StartError::Pause)).expect("a pause");
    let offsets = [5, 10, 11, 13, 16, 10, 11, 13, 16, 10];
    for offset in offsets {
        assert_eq!(paused.step(0, DEADLINE).map(|registers| registers.rip).expect("a step"), ENTRY + offset);
    }
    assert_eq!((machine.next_event(Duration::ZERO), machine.memory().read_u64(WORD)), (None, Some(2)));
    drop(paused);
    poll(&machine, "it goes on", || machine.memory().read_u64(WORD) > Some(100));
}

#[test]
fn visit_that_steps_comes_past_no_stop_that_was_not_told() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[INC, JMP]));
    for rip in [INC, JMP, INC, JMP] {
        assert_eq!(next_stop(&machine), (0, Hit::Execute { rip }));
        let paused = machine.pause(DEADLINE).expect("a pause");
        let steps = paused.visit(Steps::new(30), DEADLINE).expect("a visit");
        assert_eq!(steps.refused, [(0, StepError::AtStop)]);
        assert_eq!(machine.next_event(Duration::ZERO), None);
    }
}

#[test]
fn visit_that_steps_tells_of_a_word_that_it_changed() {
    let Some(host) = host() else { return };
    let word = Word { linear: PRIVATE, physical: private(0), size: 8 };
    let stepping = !host.watches_writes().expect("an answer");
    let stops = Stops { access: vec![Watched { word, reads: false }], stepping, ..Stops::default() };
    let machine = paused_at_start(&host, 1, COUNTING, &stops);
    for turn in 0..5 {
        let behind = JMP;
        assert_eq!(next_stop(&machine), (0, Hit::Access { word: 0, behind }));
        let paused = machine.pause(DEADLINE).expect("a pause");
        let steps = paused.visit(Steps::new(30), DEADLINE).expect("a visit");
        assert_eq!((steps.refused, count(&machine)), (vec![(0, StepError::AtStop)], 2 * turn + 2));
        paused.resume();
        assert_eq!(next_stop(&machine), (0, Hit::Access { word: 0, behind }));
        go_on(&machine);
    }
}

#[test]
fn what_a_visitor_supposes_is_no_stop_and_nobody_is_blamed_for_it() {
    /// Steps the vCPU through its loop from elsewhere, with other memory, and puts all back.
    #[derive(Debug)]
    struct Supposing(Vec<Result<u64, StepError>>);
    impl Visitor for Supposing {
        fn visit(&mut self, vcpu: &mut Visited<'_>) {
            let before = vcpu.registers().expect("registers");
            assert!(vcpu.write(private(0), &700_u64.to_le_bytes()));
            vcpu.place(&Registers { rip: INC, ..before }).expect("registers are set");
            self.0.extend((0..2).map(|_| vcpu.step().map(|registers| registers.rip)));
            assert_eq!(vcpu.memory().read_u64(private(0)), Some(701));
            vcpu.place(&before).expect("registers are set");
            assert!(vcpu.write(private(0), &1_u64.to_le_bytes()));
        }
    }
    let Some(host) = host() else { return };
    let word = Word { linear: PRIVATE, physical: private(0), size: 8 };
    let stepping = !host.watches_writes().expect("an answer");
    let stops = Stops { access: vec![Watched { word, reads: false }], stepping, ..Stops::default() };
    let machine = paused_at_start(&host, 1, COUNTING, &stops);
    let touched = (0, Hit::Access { word: 0, behind: JMP });
    assert_eq!((next_stop(&machine), count(&machine)), (touched, 1));
    let paused = machine.pause(DEADLINE).expect("a pause");
    let supposed = paused.visit(Supposing(Vec::new()), DEADLINE).expect("a visit");
    assert_eq!(supposed.0, [Ok(JMP), Ok(JMP + 2)]);
    assert_eq!(machine.next_event(Duration::ZERO), None);
    drop(paused);
    assert_eq!((next_stop(&machine), count(&machine)), (touched, 2));
}

#[test]
fn visit_that_steps_passes_a_stop_that_was_told_and_leaves_it_in_force() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[INC]));
    for turn in 0..3 {
        let at = (next_stop(&machine), count(&machine));
        assert_eq!(at.0, (0, Hit::Execute { rip: INC }));
        assert!((7 * turn..=8 * turn).contains(&at.1), "{turn}: {at:?}");
        let paused = machine.pause(DEADLINE).expect("a pause");
        let steps = paused.visit(Steps::new(30), DEADLINE).expect("a visit");
        assert_eq!(steps.seen[0].1.len(), 31);
        assert_eq!(machine.next_event(Duration::ZERO), None);
    }
}

#[test]
fn registers_and_memory_are_what_they_were_set_to() {
    let Some(host) = host() else { return };
    let machine = paused_at_start(&host, 1, COUNTING, &at(&[INC]));
    assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: INC }));
    let paused = machine.pause(DEADLINE).expect("a pause");
    let before = *paused.capture(Capture::Control).vcpus[0].registers.as_ref().expect("registers");
    let changed = Registers { rdi: before.rdi + 8, rbx: 7, ..before };
    paused.set_registers(0, &changed).expect("registers");
    assert_eq!(paused.capture(Capture::Control).vcpus[0].registers, Ok(changed));
    assert!(paused.write(private(0) + 8, &41_u64.to_le_bytes()));
    assert!(!paused.write(u64::MAX - 3, &[1; 8]) && !paused.write(memory_end(1) - 3, &[1; 8]));
    drop(paused);
    assert_eq!(next_stop(&machine), (0, Hit::Execute { rip: INC }));
    assert_eq!((count(&machine), machine.memory().read_u64(private(0) + 8)), (0, Some(42)));
}

#[test]
fn interrupt_is_pending_where_it_is_held_back_and_refused_where_it_cannot_be_taken() {
    let Some(host) = host() else { return };
    let machine = started(&host, 2, &[code::APIC, code::DONE, code::HLT]);
    wait_for(&machine, Doorbell::DONE);
    let paused = machine.pause(DEADLINE).expect("a pause");
    paused.interrupt(0, 0x61).expect("an interrupt");
    let state = paused.capture(Capture::Control);
    assert_eq!(state.vcpus[0].apic.as_ref().ok().and_then(|apic| apic.highest_requested()), Some(0x61));
    assert!(matches!(paused.interrupt(0, 15), Err(VcpuError::Vector(15))));
    assert!(matches!(paused.interrupt(2, 0x61), Err(VcpuError::NoVcpu(2))));
    assert!(matches!(paused.nmi(2, DEADLINE), Err(VcpuError::NoVcpu(2))));
    let none = paused.interrupt(1, 0x61);
    assert!(matches!(none, Err(VcpuError::NotAccepted(1))), "its local apic is not enabled: {none:?}");
}

#[test]
fn stops_of_a_machine_whose_debugging_serves_something_else_are_refused() {
    let Some(host) = host() else { return };
    let mut machine = machine(&host, 1, COUNTING);
    machine.watch(&[Word { linear: PRIVATE, physical: private(0), size: 8 }]).expect("a watch");
    let paused = machine.start_paused(DEADLINE).expect("threads");
    assert!(matches!(paused.set_stops(&at(&[INC])), Err(StopError::Taken(_))));
}
