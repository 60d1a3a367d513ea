//! Machines whose accesses and instructions are told.

use std::sync::Mutex;

use stallbench_state::machine::Registers;

use super::*;
use crate::observe::{Moment, MsrAccess, MsrRange, ObserveError, Observer, Place, Procedure};
use crate::{Hit, StopError, Stops};

const MTRR_BASES: &[MsrRange] = &[MsrRange { first: 0x200, count: 16 }];

/// mov ecx, 0x202; mov eax, 0xd0000001; xor edx, edx; wrmsr.
const WRITE: &[u8] = &[0xb9, 2, 2, 0, 0, 0xb8, 1, 0, 0, 0xd0, 0x31, 0xd2, 0x0f, 0x30];
/// rdmsr.
const READ: &[u8] = &[0x0f, 0x32];
/// mov al, 2; wrmsr: a type that there is not.
const WRITE_BAD: &[u8] = &[0xb0, 2, 0x0f, 0x30];
/// mov rax, cr4; btr rax, 7; mov cr4, rax; wbinvd: PGE off, and caches flushed.
const PROCEDURE: &[u8] = &[0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xf0, 7, 0x0f, 0x22, 0xe0, 0x0f, 0x09];

/// Keeps all that it is told.
#[derive(Debug, Default)]
struct Diary {
    accesses: Mutex<Vec<MsrAccess>>,
    steps: Mutex<Vec<(Place, Moment)>>,
}

impl Diary {
    fn accesses(&self) -> Vec<MsrAccess> {
        self.accesses.lock().expect("no thread panics").clone()
    }

    fn steps(&self) -> Vec<(Place, Moment)> {
        self.steps.lock().expect("no thread panics").clone()
    }
}

impl Observer for Diary {
    fn accessed(&self, access: &MsrAccess, _: &GuestMemory) {
        self.accesses.lock().expect("no thread panics").push(*access);
    }

    fn stepped(&self, moment: &Moment, place: Place, _: &GuestMemory) {
        self.steps.lock().expect("no thread panics").push((place, *moment));
    }
}

fn observed(host: &HostKvm, code: &[&[u8]], procedure: Option<Procedure>) -> (Machine, Arc<Diary>) {
    let diary = Arc::new(Diary::default());
    let mut machine = machine(host, 1, code);
    machine.observe(host, MTRR_BASES, procedure, Arc::clone(&diary) as _).expect("it can be observed");
    machine.start().expect("threads");
    (machine, diary)
}

#[test]
fn access_is_told_with_its_value_and_done_as_if_nobody_looked() {
    let Some(host) = host() else { return };
    for host in [Some(host), super::host().map(HostKvm::without_registers)].into_iter().flatten() {
        let (machine, diary) = observed(&host, &[WRITE, READ, code::DONE, code::HLT], None);
        wait_for(&machine, Doorbell::DONE);
        let (written, read) = (IMAGE + 12, IMAGE + 14);
        let told: Vec<_> =
            diary.accesses().iter().map(|a| (a.moment.registers.rip, a.msr, a.write, a.value, a.refused)).collect();
        let value = 0xd000_0001;
        assert_eq!(told, [(written, 0x202, true, value, false), (read, 0x202, false, value, false)]);
        let moment = diary.accesses()[0].moment;
        assert_eq!((moment.vcpu, moment.number, moment.cr3), (0, 0, cr3(0)));
        assert_eq!((moment.registers.rcx, moment.registers.rax), (0x202, value));
        let mtrr = capture(&machine, Capture::Full).vcpus[0].mtrr.clone();
        assert_eq!(mtrr.and_then(Result::ok).map(|state| state.ranges[1].0), Some(value));
    }
}

#[test]
fn value_that_kvm_refuses_is_told_and_faults_in_the_guest() {
    let Some(host) = host() else { return };
    let (machine, diary) = observed(&host, &[WRITE, WRITE_BAD], None);
    let event = machine.next_event(DEADLINE);
    assert_eq!(event, Some(MachineEvent::Fault { vcpu: 0, fault: Fault::Shutdown }), "no gate for #GP");
    let told: Vec<_> = diary.accesses().iter().map(|a| (a.value, a.refused)).collect();
    assert_eq!(told, [(0xd000_0001, false), (0xd000_0002, true)]);
}

#[test]
fn procedure_is_told_instruction_by_instruction_and_nothing_around_it() {
    let Some(host) = host() else { return };
    let code = [WRITE, PROCEDURE, WRITE, code::DONE, PROCEDURE, code::DONE, code::HLT];
    let entry = IMAGE + WRITE.len() as u64;
    let exit = entry + (PROCEDURE.len() + WRITE.len()) as u64;
    let (machine, diary) = observed(&host, &code, Some(Procedure { entries: vec![entry], exits: vec![exit] }));
    wait_for(&machine, Doorbell::DONE);
    wait_for(&machine, Doorbell::DONE);
    let mut told: Vec<_> = diary.steps().iter().map(|(place, at)| (*place, at.registers.rip - entry, at.cr4)).collect();
    // An instruction can be told twice, at the first touch of its page.
    told.dedup();
    let (on, off) = (told[0].2, told[0].2 & !(1 << 7));
    let inside = |offset, cr4| (Place::Inside, offset, cr4);
    assert_ne!(on, off);
    assert_eq!(told[..5], [(Place::Entry, 0, on), inside(3, on), inside(8, on), inside(11, off), inside(13, off)]);
    assert_eq!(told[5..], [inside(18, off), inside(23, off), inside(25, off), (Place::Exit, 27, off)]);
    assert_eq!(diary.accesses().len(), 2, "accesses are told inside and outside of it");
    let numbers: Vec<_> = diary.steps().iter().map(|(_, moment)| moment.number).collect();
    let within = diary.accesses()[1].moment.number;
    assert!(numbers.is_sorted() && numbers.contains(&(within - 1)) && numbers.contains(&(within + 1)));
}

#[test]
fn stops_go_with_told_accesses_and_not_with_a_stepped_procedure() {
    let Some(host) = host() else { return };
    let read = IMAGE + WRITE.len() as u64;
    let stops = Stops { execute: vec![(read, None)], ..Stops::default() };
    let diary = Arc::new(Diary::default());
    for steps in [false, true] {
        let procedure = Procedure { entries: vec![IMAGE], exits: vec![read] };
        let mut machine = machine(&host, 1, &[WRITE, READ, code::DONE, code::HLT]);
        let procedure = steps.then_some(procedure);
        machine.observe(&host, MTRR_BASES, procedure, Arc::clone(&diary) as _).expect("it can be observed");
        let set = machine.start_paused(DEADLINE).expect("threads").set_stops(&stops);
        assert_eq!(matches!(set, Err(StopError::Taken(_))), steps, "{set:?}");
        if !steps {
            let at = Hit::Execute { rip: read };
            assert_eq!(machine.next_event(DEADLINE), Some(MachineEvent::Stopped { vcpu: 0, at }));
            assert_eq!(diary.accesses().len(), 1);
            machine.pause(DEADLINE).expect("a pause").resume();
        }
        wait_for(&machine, Doorbell::DONE);
    }
    assert_eq!(diary.accesses().len(), 4);
}

#[test]
fn procedure_that_is_entered_again_is_told_again() {
    let Some(host) = host() else { return };
    // mov ebx, 3; entry: nop; nop; exit: nop; dec ebx; jnz entry.
    let body: &[u8] = &[0xbb, 3, 0, 0, 0, 0x90, 0x90, 0x90, 0xff, 0xcb, 0x75, 0xf9];
    let procedure = Procedure { entries: vec![IMAGE + 5], exits: vec![IMAGE + 7] };
    let (machine, diary) = observed(&host, &[body, code::DONE, code::HLT], Some(procedure));
    wait_for(&machine, Doorbell::DONE);
    let count = |wanted| diary.steps().iter().filter(|(place, _)| *place == wanted).count();
    assert_eq!((count(Place::Entry), count(Place::Exit)), (3, 3));
}

#[test]
fn vcpu_that_is_stepped_stands_still_when_it_is_told_to() {
    let Some(host) = host() else { return };
    let counting = IMAGE + code::PROGRESS.len() as u64;
    let procedure = Procedure { entries: vec![counting], exits: vec![] };
    let (machine, diary) = observed(&host, &[code::PROGRESS, code::COUNT], Some(procedure));
    let counted = || machine.memory().read_u64(private(0)).unwrap_or_default();
    for round in 1..20 {
        let before = counted();
        poll(&machine, "it counts", || counted() > before);
        let paused = machine.pause(DEADLINE).expect("it stops");
        let first = paused.capture(Capture::Control).vcpus[0].registers.clone();
        assert_eq!(paused.capture(Capture::Control).vcpus[0].registers, first, "round {round}");
        assert_eq!(first.map(|r: Registers| r.rflags & 1 << 8), Ok(0), "TF is ours");
    }
    // inc and jmp by turns, none left out.
    let rips: Vec<_> = diary.steps().iter().map(|(_, at)| at.registers.rip - counting).collect();
    let wrong = rips.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(wrong <= 2 && rips.iter().all(|rip| [0, 3].contains(rip)), "{wrong} of {}", rips.len());
}

#[test]
fn what_the_host_lacks_or_cannot_do_is_refused_and_named() {
    let Some(host) = host() else { return };
    let observe = |host: &HostKvm, procedure| {
        let mut machine = machine(host, 1, &[code::HLT]);
        machine.observe(host, MTRR_BASES, procedure, Arc::new(Diary::default())).err()
    };
    let many = Procedure { entries: vec![IMAGE; 5], exits: vec![] };
    assert!(matches!(observe(&host, Some(many)), Some(ObserveError::Entries(5))));
    assert!(matches!(observe(&host, Some(Procedure::default())), Some(ObserveError::Entries(0))));
    let bare = host.bare();
    let refused = observe(&bare, None).expect("no filter");
    assert_eq!(refused.to_string(), "see accesses to msrs: kvm lacks x86-user-space-msr, x86-msr-filter");
    let refused = observe(&bare, Some(Procedure { entries: vec![IMAGE], exits: vec![] })).expect("no steps");
    assert_eq!(refused.to_string(), "step a procedure: kvm lacks set-guest-debug");
}
