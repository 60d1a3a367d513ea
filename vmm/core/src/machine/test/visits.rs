//! Visits: single steps of each vCPU, one after the other.

use stallbench_state::machine::Registers;
use stallbench_state::memory::Memory;

use super::*;
use crate::{StepError, Visited, Visitor};

/// Steps each vCPU that runs this often, and keeps where it was.
#[derive(Debug)]
pub(super) struct Steps {
    count: usize,
    pub(super) seen: Vec<(usize, Vec<Registers>)>,
    pub(super) refused: Vec<(usize, StepError)>,
}

impl Steps {
    pub(super) fn new(count: usize) -> Self {
        Self { count, seen: Vec::new(), refused: Vec::new() }
    }
}

impl Visitor for Steps {
    fn visit(&mut self, vcpu: &mut Visited<'_>) {
        let mut seen = vec![vcpu.registers().expect("registers")];
        for _ in 0..self.count {
            match vcpu.step() {
                Ok(registers) => seen.push(registers),
                Err(error) => {
                    self.refused.push((vcpu.index(), error));
                    break;
                }
            }
        }
        self.seen.push((vcpu.index(), seen));
    }
}

#[test]
fn each_step_is_one_instruction_of_one_vcpu() {
    let Some(host) = host() else { return };
    let machine = started(&host, 2, SPINNING);
    wait_for(&machine, Doorbell::DONE);
    let count = || machine.memory().read_u64(private(0)).expect("the progress word");
    poll(&machine, "both run", || count() > 0 && all_up(&capture(&machine, Capture::Control)));
    let paused = machine.pause(DEADLINE).expect("a pause");
    let before = count();
    let steps = paused.visit(Steps::new(20), DEADLINE).expect("a visit");
    assert_eq!(steps.refused, []);
    assert_eq!(steps.seen.len(), 2);
    let (_, zero) = steps.seen.iter().find(|(vcpu, _)| *vcpu == 0).expect("vcpu 0");
    let (inc, jmp) = (zero[0].rip.min(zero[1].rip), zero[0].rip.max(zero[1].rip));
    assert!(jmp - inc == 3 && zero.windows(2).all(|pair| pair[0].rip != pair[1].rip), "inc [rdi]; jmp");
    assert_eq!(count() - before, 10, "every other step counts");
    drop(paused);
    poll(&machine, "it goes on by itself", || count() > before + 1000);
}

#[test]
fn vcpu_that_is_put_elsewhere_goes_on_there() {
    #[derive(Debug)]
    struct Back(Option<Registers>);
    impl Visitor for Back {
        fn visit(&mut self, vcpu: &mut Visited<'_>) {
            let registers = Registers { rbx: 7, ..vcpu.registers().expect("registers") };
            vcpu.place(&registers).expect("registers are set");
            assert_eq!(vcpu.registers(), Ok(registers));
            self.0 = Some(vcpu.step().expect("a step"));
        }
    }
    let Some(host) = host() else { return };
    let machine = started(&host, 1, SPINNING);
    wait_for(&machine, Doorbell::DONE);
    let paused = machine.pause(DEADLINE).expect("a pause");
    let back = paused.visit(Back(None), DEADLINE).expect("a visit");
    let captured = paused.capture(Capture::Control);
    let now = captured.vcpus[0].registers.as_ref().expect("registers");
    assert_eq!((back.0.as_ref(), now.rbx), (Some(now), 7));
}

#[test]
fn step_that_kills_a_vcpu_is_a_fault_and_the_vcpu_is_stepped_no_more() {
    let Some(host) = host() else { return };
    // Into a page that is not there, with no handler for that.
    let machine = started(&host, 1, &[code::DONE, code::UD2]);
    wait_for(&machine, Doorbell::DONE);
    let paused = machine.pause(DEADLINE).expect("a pause");
    let steps = paused.visit(Steps::new(50), DEADLINE).expect("a visit");
    let died = matches!(steps.refused[..], [(0, StepError::Fault(_) | StepError::NotRunning)]);
    assert!(died, "{:?}", steps.refused);
    let again = paused.visit(Steps::new(1), DEADLINE).expect("a visit");
    assert_eq!(again.refused, [(0, StepError::NotRunning)]);
    assert!(matches!(machine.next_event(DEADLINE), Some(MachineEvent::Fault { vcpu: 0, .. })));
}

#[test]
fn instruction_that_waits_in_the_kernel_ends_the_visit_and_not_the_machine() {
    let Some(host) = host() else { return };
    let machine = started(&host, 1, &[code::DONE, code::HLT]);
    wait_for(&machine, Doorbell::DONE);
    let halted = |machine: &Machine| capture(machine, Capture::Control).vcpus[0].mp_state == Ok(MpState::Halted);
    poll(&machine, "it halts", || halted(&machine));
    let paused = machine.pause(DEADLINE).expect("a pause");
    let late = paused.visit(Steps::new(1), Duration::from_millis(50)).map(|steps| steps.refused);
    assert!(late.is_err(), "{late:?}");
    drop(paused);
    assert!(halted(&machine), "it still can be captured");
}
