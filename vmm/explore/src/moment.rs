//! A state of the machine as a free machine can go on from it.
//!
//! The way to it is gone once more, without setting back what counts, so that the events of the whole way are there.

use std::time::Duration;

use stallbench_abi::layout::ARENA;
use stallbench_state::apic::LocalApic;
use stallbench_state::dump::DumpedMemory;
use stallbench_state::machine::{Events, MachineState, MpState, VcpuState};

use crate::apic::Apic;
use crate::arena::Arenas;
use crate::devices::{is_xapic, sends};
use crate::local::{Local, Parked};
use crate::stage::Stage;

/// A local APIC's entry for an interrupt of its own that is masked, as after a reset (SDM 3A 11.5.1).
const MASKED: u32 = 1 << 16;
/// Destination format after a reset: flat (SDM 3A 11.6.2.2).
const FLAT: u32 = u32::MAX;

/// A state of the machine, with all of its memory.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The vCPUs.
    pub machine: MachineState,
    /// Guest memory.
    pub memory: DumpedMemory,
}

/// What is parked there, in the machine's memory and as registers. The vCPUs stand there, too.
pub(crate) fn moment(stage: &mut Stage<'_>, locals: &[u32], apics: &[Apic], arenas: &Arenas, arena: u32) -> Moment {
    for (address, word) in arenas.words(arena) {
        write(stage, address, &word.to_le_bytes());
    }
    let mut vcpus = Vec::new();
    for (index, (number, apic)) in locals.iter().zip(apics).enumerate() {
        let local = stage.local(index, *number).clone();
        vcpus.push(vcpu(stage, index, &local, apic));
    }
    let memory = stage.machine().memory().copy();
    Moment { machine: MachineState { vcpus }, memory }
}

fn write(stage: &mut Stage<'_>, address: u64, bytes: &[u8]) {
    let written = stage.machine().write(address, bytes);
    debug_assert!(written && address >= ARENA, "the arena is memory of the host, if not of the guest");
}

fn vcpu(stage: &mut Stage<'_>, index: usize, local: &Local, apic: &Apic) -> VcpuState {
    let mut general = local.processor.general;
    if let Parked::Write { before: Some(before), .. } = local.parked {
        general.rip = before;
    }
    let mut devices = local.devices.clone();
    if let Parked::Write { address, value, before: None, .. } = local.parked
        && is_xapic(address)
        && !sends(address)
    {
        devices.write_xapic(address, value);
    }
    let x2apic = devices.x2apic();
    let machine = stage.machine();
    let mut system = match local.parked {
        Parked::Waits => machine.system_at_reset(index, &local.processor),
        _ => machine.system(index, &local.processor),
    };
    system.apic_base = devices.apic_base;
    let mp_state = match local.parked {
        Parked::Halted => MpState::Halted,
        Parked::Off => MpState::Uninitialized,
        Parked::Waits => MpState::InitReceived,
        _ => MpState::Runnable,
    };
    let lapic = LocalApic {
        x2apic,
        // At most 255 vCPUs.
        id: index as u32,
        tpr: devices.tpr.into(),
        dfr: FLAT,
        svr: devices.svr,
        icr: u64::from(devices.icr_high) << 32,
        irr: apic.irr,
        isr: apic.isr,
        lvt_timer: MASKED,
        lvt_lint0: MASKED,
        lvt_lint1: MASKED,
        lvt_error: MASKED,
        ..LocalApic::default()
    };
    let events = Events {
        nmi_pending: apic.nmi.into(),
        nmi_masked: local.processor.nmi_masked,
        interrupt_shadow: local.processor.shadow,
        ..Events::default()
    };
    VcpuState {
        index,
        registers: Ok(general),
        system: Ok(system),
        apic: Ok(lapic),
        events: Ok(events),
        mp_state: Ok(mp_state),
        mtrr: Some(Ok(devices.mtrrs())),
        msrs: None,
        ran: Duration::ZERO,
    }
}
