//! Caches off outside a rendezvous: no vCPU has CR0.CD set while another one that is up is not inside the rendezvous.
//!
//! SDM 3A 12.11.8 has all processors meet before the first of them turns its caches off; where they share a core, one that is
//! elsewhere runs without caches too (Linux d0af9eed5aa9). CR0 is the machine's, who is inside is what each vCPU publishes. It is
//! looked at whenever the machine stands still, and never in between.

use stallbench_abi::vcpu::{Phase, VcpuPage};
use stallbench_stall::set::VcpuSet;
use stallbench_state::machine::{MachineState, MpState, VcpuState};
use stallbench_state::published::Published;

/// CR0.CD (SDM 3A 2.5).
const CACHE_DISABLE: u64 = 1 << 30;

/// A vCPU whose caches are off, and who is elsewhere meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOff {
    /// The lowest vCPU with CR0.CD set, one that has not come to the rendezvous itself before one that has.
    pub vcpu: usize,
    /// The others that are up and not inside.
    pub outside: VcpuSet,
}

/// Looks at a machine that stands still.
pub fn find(machine: &MachineState, published: &Published) -> Option<CacheOff> {
    let vcpus = || machine.vcpus.iter().zip(&published.vcpus);
    let outside: VcpuSet =
        vcpus().filter(|(vcpu, page)| is_elsewhere(vcpu, page)).map(|(vcpu, _)| vcpu.index).collect();
    let off = vcpus().filter(|(vcpu, page)| is_off(vcpu, page)).map(|(vcpu, _)| vcpu.index);
    let broken = off.map(|vcpu| CacheOff { vcpu, outside: outside.without(vcpu) });
    let mut broken: Vec<_> = broken.filter(|found| !found.outside.is_empty()).collect();
    broken.sort_by_key(|found| !outside.contains(found.vcpu));
    broken.first().copied()
}

/// A vCPU that was never started, or has not come to its runtime, has them off since its reset (SDM 3A 10.1.1).
fn is_off(vcpu: &VcpuState, page: &VcpuPage) -> bool {
    let off = vcpu.system.as_ref().is_ok_and(|system| system.cr0 & CACHE_DISABLE != 0);
    off && is_up(vcpu) && page.phase != Phase::OFF && page.set_up == 0
}

fn is_up(vcpu: &VcpuState) -> bool {
    vcpu.mp_state.as_ref().is_ok_and(|state: &MpState| state.is_up())
}

/// Whether a vCPU is up and has not come to the rendezvous. One on its way up runs nothing yet that caches could harm.
fn is_elsewhere(vcpu: &VcpuState, page: &VcpuPage) -> bool {
    let is_online = matches!(page.phase, Phase::ONLINE | Phase::CASE | Phase::FINISHED);
    is_online && is_up(vcpu) && page.rendezvous == 0
}

impl CacheOff {
    /// What is wrong, a fragment.
    pub fn reason(&self) -> String {
        let (outside, verb) = (self.outside, if self.outside.single().is_some() { "is" } else { "are" });
        format!("its caches are off (CR0.CD=1) while {outside} {verb} not inside the rendezvous")
    }
}

#[cfg(test)]
mod test {
    use core::time::Duration;

    use stallbench_abi::shared::GhostPage;
    use stallbench_state::machine::{SystemRegisters, Unread};

    use super::*;

    /// CR0.CD, and whether it is inside the rendezvous.
    fn find_in(vcpus: &[(bool, bool)], change: impl Fn(usize, &mut VcpuState, &mut VcpuPage)) -> Option<CacheOff> {
        let mut machine = MachineState { vcpus: Vec::new() };
        let mut published = Published { vcpus: Vec::new(), ghost: GhostPage::default() };
        for (index, (off, inside)) in vcpus.iter().enumerate() {
            let mut state = vcpu(index, *off);
            let mut page = VcpuPage { phase: Phase::CASE, rendezvous: u32::from(*inside), ..VcpuPage::default() };
            change(index, &mut state, &mut page);
            machine.vcpus.push(state);
            published.vcpus.push(page);
        }
        find(&machine, &published)
    }

    fn vcpu(index: usize, off: bool) -> VcpuState {
        let unread = || Unread { what: "registers".into(), reason: "not needed".into() };
        VcpuState {
            index,
            registers: Err(unread()),
            system: Ok(SystemRegisters { cr0: if off { CACHE_DISABLE } else { 0 }, ..SystemRegisters::default() }),
            apic: Err(unread()),
            events: Err(unread()),
            mp_state: Ok(MpState::Runnable),
            mtrr: None,
            msrs: None,
            ran: Duration::ZERO,
        }
    }

    fn none(_: usize, _: &mut VcpuState, _: &mut VcpuPage) {}

    #[test]
    fn caches_off_while_another_is_elsewhere_are_found() {
        let found = find_in(&[(false, false), (true, true), (false, false)], none).expect("a breach");
        assert_eq!((found.vcpu, found.outside), (1, [0, 2].into_iter().collect()));
        assert_eq!(found.reason(), "its caches are off (CR0.CD=1) while vcpu0, vcpu2 are not inside the rendezvous");
    }

    #[test]
    fn one_that_never_came_to_the_rendezvous_is_named_before_one_that_did() {
        let found = find_in(&[(true, true), (true, false), (false, false)], none).expect("a breach");
        assert_eq!((found.vcpu, found.outside), (1, [2].into_iter().collect()));
    }

    #[test]
    fn caches_off_with_all_inside_and_caches_on_elsewhere_are_in_order() {
        assert_eq!(find_in(&[(true, true), (true, true), (false, true)], none), None);
        assert_eq!(find_in(&[(false, false), (false, true)], none), None);
        assert_eq!(find_in(&[(true, false)], none), None, "there is nobody else");
    }

    #[test]
    fn vcpu_that_is_not_up_is_not_missed() {
        let down = |mp_state, phase| {
            move |index: usize, state: &mut VcpuState, page: &mut VcpuPage| {
                if index == 1 {
                    (state.mp_state, page.phase) = (Ok(mp_state), phase);
                }
            }
        };
        let both = [(true, true), (false, false)];
        assert_eq!(find_in(&both, down(MpState::Uninitialized, Phase::CASE)), None);
        assert_eq!(find_in(&both, down(MpState::Runnable, Phase::BOOTING)), None);
        assert!(find_in(&both, down(MpState::Halted, Phase::FINISHED)).is_some());
    }

    #[test]
    fn caches_that_are_off_since_a_reset_are_in_order() {
        let reset = |mp_state, phase| {
            move |index: usize, state: &mut VcpuState, page: &mut VcpuPage| {
                if index == 1 {
                    (state.mp_state, page.phase) = (Ok(mp_state), phase);
                }
            }
        };
        let both = [(false, false), (true, false)];
        assert_eq!(find_in(&both, reset(MpState::Uninitialized, Phase::OFF)), None);
        assert_eq!(find_in(&both, reset(MpState::InitReceived, Phase::FINISHED)), None, "an INIT sets them off");
        assert_eq!(find_in(&both, reset(MpState::Runnable, Phase::OFF)), None, "on its way to the runtime");
        assert!(find_in(&both, reset(MpState::Runnable, Phase::BOOTING)).is_some());
    }

    #[test]
    fn what_a_case_sets_up_is_no_protocol() {
        let set_up = |index, _: &mut VcpuState, page: &mut VcpuPage| page.set_up = u32::from(index == 0);
        assert_eq!(find_in(&[(true, false), (false, false)], set_up), None);
    }
}
