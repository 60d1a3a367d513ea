//! Injected faults of the send primitive and of bring-up. What takes effect is recorded, and counted for the host.

use core::sync::atomic::{AtomicU64, Ordering};

use stallbench_abi::event::EventKind;
use stallbench_abi::fault::{ANY_IPI, FAULTS, Fault, FaultKind, FaultState, IPI_MASK};
use stallbench_abi::layout::PAUSE;
use stallbench_abi::pause::{ANY_VCPU, PausePage};

use crate::{boot, event, pause, this};

/// What becomes of an interprocessor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is sent.
    Sent,
    /// It is not.
    Lost,
    /// It is sent twice.
    Doubled,
}

/// Whether any fault of the scenario is about interrupts: then a shorthand goes to its targets one by one.
pub(crate) fn concern_interrupts() -> bool {
    faults().any(|(_, fault)| is_about_interrupts(fault.kind))
}

/// What becomes of an interrupt to `target`; `command` is the low half of the interrupt command register.
pub(crate) fn fate(target: u32, command: u32) -> Fate {
    for (index, fault) in faults() {
        if !is_about_interrupts(fault.kind) || !concerns(fault, target, command) {
            continue;
        }
        let number = word(index, core::mem::offset_of!(FaultState, matched)).fetch_add(1, Ordering::SeqCst) + 1;
        if fault.nth != 0 && fault.nth != number {
            continue;
        }
        took_effect(index, command, u64::from(target));
        match fault.kind {
            FaultKind::DUPLICATE_IPI => return Fate::Doubled,
            FaultKind::DELAY_IPI => defer(index, target, command),
            _ => {}
        }
        return Fate::Lost;
    }
    Fate::Sent
}

/// Whether a vCPU is never to be started.
pub(crate) fn keeps_from_starting(vcpu: usize) -> bool {
    let about = |fault: &Fault| fault.kind == FaultKind::NO_START && fault.to as usize == vcpu;
    let found = faults().find(|(_, fault)| about(fault));
    if let Some((index, _)) = found {
        took_effect(index, 0, vcpu as u64);
    }
    found.is_some()
}

/// The delayed interrupts whose time has come with an arrival at this point: the targets and the low halves of the commands.
pub(crate) fn due(point: u64) -> impl Iterator<Item = (u32, u32)> {
    faults().filter_map(move |(index, fault)| {
        let until = word(index, core::mem::offset_of!(FaultState, until));
        if fault.kind != FaultKind::DELAY_IPI || !pause::counts(&fault.until, point, until) {
            return None;
        }
        let command = deferred(index).swap(0, Ordering::SeqCst);
        (command != 0).then_some(((command >> 32) as u32, command as u32))
    })
}

fn faults() -> impl Iterator<Item = (usize, &'static Fault)> {
    let block = boot::block();
    block.faults.iter().enumerate().take((block.fault_count as usize).min(FAULTS))
}

fn is_about_interrupts(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::DROP_IPI | FaultKind::DUPLICATE_IPI | FaultKind::DELAY_IPI)
}

fn concerns(fault: &Fault, target: u32, command: u32) -> bool {
    let is = |wanted: u32, vcpu: u32| wanted == ANY_VCPU || wanted == vcpu;
    let is_kind = fault.ipi == ANY_IPI || fault.ipi == command & IPI_MASK;
    is_kind && is(fault.from, this::vcpu() as u32) && is(fault.to, target)
}

fn took_effect(index: usize, command: u32, target: u64) {
    word(index, core::mem::offset_of!(FaultState, hits)).fetch_add(1, Ordering::SeqCst);
    event::record(EventKind::FAULT, index as u32, u64::from(command), target);
}

fn defer(index: usize, target: u32, command: u32) {
    deferred(index).store(u64::from(target) << 32 | u64::from(command), Ordering::SeqCst);
}

fn state(index: usize) -> usize {
    core::mem::offset_of!(PausePage, faults) + index * size_of::<FaultState>()
}

fn word(index: usize, offset: usize) -> &'static core::sync::atomic::AtomicU32 {
    pause::word(state(index) + offset)
}

fn deferred(index: usize) -> &'static AtomicU64 {
    let address = PAUSE + (state(index) + core::mem::offset_of!(FaultState, deferred)) as u64;
    // SAFETY: an aligned word of the pause page, which all vCPUs use as an atomic.
    unsafe { &*(address as *const AtomicU64) }
}
