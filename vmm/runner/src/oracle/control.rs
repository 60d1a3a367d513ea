//! The bits of the control registers that programming MTRRs changes and gives back: CR0.CD and CR4.PGE, the same on every vCPU at
//! the end of a run.
//!
//! What was saved of another processor and restored here shows in them even where the MTRRs agree.

use stallbench_state::machine::{MachineState, MpState, SystemRegisters, VcpuState};

use crate::outcome::ControlOutcome;

/// Name, bit, and the register that it is in.
type Bit = (&'static str, fn(&SystemRegisters) -> bool);

const BITS: [Bit; 2] = [("CR0.CD", |system| system.cr0 & 1 << 30 != 0), ("CR4.PGE", |system| system.cr4 & 1 << 7 != 0)];

/// Judges the vCPUs that came up of a machine that has come to its end.
pub fn judge(machine: &MachineState) -> ControlOutcome {
    let is_up = |vcpu: &&VcpuState| vcpu.mp_state.as_ref().is_ok_and(|state: &MpState| state.is_up());
    let up: Vec<_> = machine.vcpus.iter().filter(is_up).collect();
    if let Some(unread) = up.iter().find_map(|vcpu| vcpu.system.as_ref().err().map(|unread| (vcpu.index, unread))) {
        return ControlOutcome { consistent: None, problems: vec![format!("vcpu{}: {}", unread.0, unread.1)] };
    }
    let values = up.iter().filter_map(|vcpu| Some((vcpu.index, vcpu.system.as_ref().ok()?)));
    let problems: Vec<_> = BITS.iter().flat_map(|bit| odd_ones(values.clone(), bit)).collect();
    ControlOutcome { consistent: Some(problems.is_empty()), problems }
}

/// Those that differ from the first.
fn odd_ones<'m>(mut vcpus: impl Iterator<Item = (usize, &'m SystemRegisters)>, (name, value): &Bit) -> Vec<String> {
    let Some((of, reference)) = vcpus.next().map(|(vcpu, system)| (vcpu, value(system))) else { return Vec::new() };
    let others = vcpus.map(|(vcpu, system)| (vcpu, value(system))).filter(|(_, here)| *here != reference);
    others
        .map(|(vcpu, here)| {
            format!("vcpu{vcpu}: {name} is {}, in vcpu{of} it is {}", u8::from(here), u8::from(reference))
        })
        .collect()
}

#[cfg(test)]
mod test {
    use core::time::Duration;

    use stallbench_abi::layout::{CR0, CR4};
    use stallbench_state::machine::Unread;

    use super::*;

    fn machine(registers: &[(u64, u64)]) -> MachineState {
        let unread = || Unread { what: "registers".into(), reason: "not needed".into() };
        let vcpu = |(index, &(cr0, cr4)): (usize, &(u64, u64))| VcpuState {
            index,
            registers: Err(unread()),
            system: Ok(SystemRegisters { cr0, cr4, ..SystemRegisters::default() }),
            apic: Err(unread()),
            events: Err(unread()),
            mp_state: Ok(MpState::Halted),
            mtrr: None,
            msrs: None,
            ran: Duration::ZERO,
        };
        MachineState { vcpus: registers.iter().enumerate().map(vcpu).collect() }
    }

    #[test]
    fn vcpu_that_lost_its_global_pages_is_named() {
        let outcome = judge(&machine(&[(CR0, CR4), (CR0, CR4), (CR0, CR4 & !(1 << 7))]));
        assert_eq!(outcome.consistent, Some(false));
        assert_eq!(outcome.problems, ["vcpu2: CR4.PGE is 0, in vcpu0 it is 1"]);
    }

    #[test]
    fn vcpu_whose_caches_stayed_off_is_named() {
        let outcome = judge(&machine(&[(CR0, CR4), (CR0 | 1 << 30, CR4)]));
        assert_eq!(outcome.problems, ["vcpu1: CR0.CD is 1, in vcpu0 it is 0"]);
    }

    #[test]
    fn registers_that_agree_are_consistent_whatever_they_are() {
        for all in [(CR0, CR4), (CR0, CR4 & !(1 << 7))] {
            assert_eq!(judge(&machine(&[all; 3])), ControlOutcome { consistent: Some(true), problems: vec![] });
        }
        let other_bits = [(CR0, CR4), (CR0 | 1 << 3, CR4 | 1 << 9)];
        assert_eq!(judge(&machine(&other_bits)).consistent, Some(true), "task switched, SSE");
    }

    #[test]
    fn vcpu_that_never_came_up_has_no_say() {
        let mut machine = machine(&[(CR0, CR4), (0x6000_0010, 0)]);
        machine.vcpus[1].mp_state = Ok(MpState::Uninitialized);
        assert_eq!(judge(&machine).consistent, Some(true));
    }

    #[test]
    fn registers_that_were_not_read_are_neither() {
        let mut machine = machine(&[(CR0, CR4); 2]);
        machine.vcpus[1].system = Err(Unread { what: "system registers".into(), reason: "EIO".into() });
        let outcome = judge(&machine);
        assert_eq!((outcome.consistent, outcome.problems.len()), (None, 1));
    }
}
