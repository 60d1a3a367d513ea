//! What the host does once nothing else in the machine can move: it lets held vCPUs go, and does what a hypervisor does wrong.
//!
//! Each step needs a stop in which no vCPU can move by itself, so the order of what follows does not depend on when it was taken.
//! It is a declared action of the host, marked in every report.

use std::mem::offset_of;

use stallbench_abi::fault::{Fault, FaultKind};
use stallbench_abi::layout::PAUSE;
use stallbench_abi::pause::{Hold, HoldState, PausePage, Release};
use stallbench_abi::vcpu::Phase;
use stallbench_core::{Keep, Machine, Paused};
use stallbench_stall::Analysis;
use stallbench_stall::activity::Activity;
use stallbench_stall::set::VcpuSet;
use stallbench_state::memory::read_plain;

use super::stop::Captured;
use crate::outcome::{FaultOutcome, HoldOutcome, InjectedBy, InjectionOutcome};
use crate::scenario::Injected;

/// The host's part in the holds and faults of a run.
pub(super) struct Quiet<'p> {
    injected: &'p Injected,
    /// vCPUs that are kept out of the guest.
    kept_out: VcpuSet,
    /// Which faults of the host have begun.
    begun: Vec<bool>,
}

impl<'p> Quiet<'p> {
    pub(super) fn new(injected: &'p Injected) -> Self {
        Self { injected, kept_out: VcpuSet::default(), begun: vec![false; injected.faults.len()] }
    }

    /// The vCPUs that the host keeps out of the guest.
    pub(super) fn kept_out(&self) -> VcpuSet {
        self.kept_out
    }

    /// Whether the host has, or may get, anything to do.
    pub(super) fn is_idle(&self) -> bool {
        self.injected.holds.iter().all(|(_, hold)| hold.release != Release::QUIET)
            && self.injected.faults.iter().all(|(_, fault)| !fault.kind.is_of_host())
    }

    /// Whether somebody is held that the host has still to let go: what is stuck before that is not where it all ends.
    pub(super) fn is_due(&self, machine: &Machine) -> bool {
        self.held_until_quiet(&page(machine)).is_some()
    }

    /// Takes the next step if nothing can move: whether it did.
    pub(super) fn step(
        &mut self,
        paused: &Paused<'_>,
        machine: &Machine,
        captured: &Captured,
        analysis: &Analysis<'_>,
    ) -> bool {
        if self.is_idle() || !self.is_quiet(analysis) {
            return false;
        }
        let began = self.begin_faults(paused, captured, analysis);
        let page = page(machine);
        let released = self.release_hold(paused, &page);
        began || released || self.let_in(paused)
    }

    fn is_quiet(&self, analysis: &Analysis<'_>) -> bool {
        let moves = |activity: &Activity<'_>| {
            !matches!(activity, Activity::Waiting(_) | Activity::Idle | Activity::Halted | Activity::Absent(_))
        };
        (0..analysis.vcpus.len()).all(|vcpu| self.kept_out.contains(vcpu) || !moves(&analysis.vcpus[vcpu].activity))
    }

    /// Keeps vCPUs out of the guest that have come to halt in their case.
    fn begin_faults(&mut self, paused: &Paused<'_>, captured: &Captured, analysis: &Analysis<'_>) -> bool {
        let mut any = false;
        for (index, (_, fault)) in self.injected.faults.iter().enumerate() {
            let vcpu = fault.to as usize;
            let keep = match fault.kind {
                FaultKind::KEEP_OUT => Keep::Out,
                FaultKind::LOSE_INIT => Keep::OutWithoutInit,
                _ => continue,
            };
            let halts =
                analysis.vcpus.get(vcpu).is_some_and(|of| matches!(of.activity, Activity::Idle | Activity::Halted));
            let in_case = captured.published.vcpus.get(vcpu).is_some_and(|page| page.phase.0 >= Phase::CASE.0);
            if self.begun[index] || !halts || !in_case {
                continue;
            }
            paused.keep(vcpu, Some(keep));
            self.kept_out.insert(vcpu);
            self.begun[index] = true;
            any = true;
        }
        any
    }

    /// Lets the first go of those that are held until now.
    fn release_hold(&self, paused: &Paused<'_>, page: &PausePage) -> bool {
        self.held_until_quiet(page).is_some_and(|index| paused.write_u32(released(index), 1))
    }

    /// The first hold that holds somebody whom the host is to let go.
    fn held_until_quiet(&self, page: &PausePage) -> Option<usize> {
        let mut holds = self.injected.holds.iter().zip(&page.holds);
        holds.position(|((_, hold), state)| hold.release == Release::QUIET && state.held != 0 && state.released == 0)
    }

    /// Lets a vCPU in that is kept out until now.
    fn let_in(&mut self, paused: &Paused<'_>) -> bool {
        let due = |(index, (_, fault)): &(usize, &(String, Fault))| {
            let ends = fault.kind.is_of_host() && fault.release == Release::QUIET;
            ends && self.begun[*index] && self.kept_out.contains(fault.to as usize)
        };
        let Some((_, (_, fault))) = self.injected.faults.iter().enumerate().find(due) else { return false };
        paused.keep(fault.to as usize, None);
        self.kept_out = self.kept_out.without(fault.to as usize);
        true
    }

    /// What became of the holds and faults.
    pub(super) fn outcome(&self, machine: &Machine) -> InjectionOutcome {
        let page = page(machine);
        let hold = |(index, (text, hold)): (usize, &(String, Hold))| {
            let state = page.holds[index];
            HoldOutcome {
                what: text.clone(),
                vcpu: state.held.checked_sub(1).map(|vcpu| vcpu as usize),
                over: state.released != 0,
                endless: hold.release == Release::NEVER,
            }
        };
        let fault = |(index, (text, fault)): (usize, &(String, Fault))| {
            let hits = match fault.kind {
                FaultKind::KEEP_OUT => u32::from(self.begun[index]),
                FaultKind::LOSE_INIT => u32::from(machine.init_lost(fault.to as usize)),
                _ => page.faults[index].hits,
            };
            let by = if fault.kind.is_of_host() { InjectedBy::Host } else { InjectedBy::Guest };
            FaultOutcome { what: text.clone(), by, hits }
        };
        InjectionOutcome {
            holds: self.injected.holds.iter().enumerate().map(hold).collect(),
            faults: self.injected.faults.iter().enumerate().map(fault).collect(),
        }
    }
}

/// The word that a held vCPU waits for.
pub(crate) fn released(index: usize) -> u64 {
    let offset = offset_of!(PausePage, holds) + index * size_of::<HoldState>() + offset_of!(HoldState, released);
    PAUSE + offset as u64
}

fn page(machine: &Machine) -> PausePage {
    read_plain(machine.memory(), PAUSE).unwrap_or_default()
}
