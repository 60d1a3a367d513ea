//! The local APIC: enabling it, sending interprocessor interrupts, the end of an interrupt.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::event::{EventKind, TO_ALL, TO_ALL_BUT_SELF};
use stallbench_abi::knob;
use stallbench_abi::layout::{XAPIC, vector};

use crate::fault::{self, Fate};
use crate::wait::Condition;
use crate::{boot, cpu, event, this, wait_until};

/// IA32_APIC_BASE (SDM 3A 11.4.4).
const APIC_BASE: u32 = 0x1b;
/// IA32_APIC_BASE.EXTD: x2APIC mode.
const X2APIC_ENABLE: u64 = 1 << 10;
/// First MSR of the x2APIC's registers; register `offset` of the xAPIC is at `offset >> 4` behind it.
const X2APIC_MSRS: u32 = 0x800;

const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const SPURIOUS_APIC_ENABLE: u32 = 1 << 8;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;

/// Interrupt command register, low half (SDM 3A 11.6.1).
mod icr {
    pub(super) const DELIVERY_PENDING: u32 = 1 << 12;
    pub(super) const ASSERT: u32 = 1 << 14;
    pub(super) const NMI: u32 = 0b100 << 8;
    pub(super) const INIT: u32 = 0b101 << 8;
    pub(super) const STARTUP: u32 = 0b110 << 8;
    pub(super) const ALL: u32 = 0b10 << 18;
    pub(super) const ALL_BUT_SELF: u32 = 0b11 << 18;
}

fn is_x2apic() -> bool {
    boot::word(&knob::APIC) == knob::apic::X2APIC
}

fn xapic_register(offset: u32) -> &'static AtomicU32 {
    // SAFETY: the host maps the APIC's page; its registers are aligned 32-bit words that only this processor sees.
    unsafe { &*((XAPIC + u64::from(offset)) as *const AtomicU32) }
}

fn write(offset: u32, value: u32) {
    if is_x2apic() {
        cpu::write_msr(X2APIC_MSRS + (offset >> 4), u64::from(value));
    } else {
        xapic_register(offset).store(value, Ordering::SeqCst);
    }
}

/// Enables the local APIC in the mode that the scenario asks for: fixed interrupts need SVR bit 8 (SDM 3A 11.4.7.2).
pub(crate) fn enable() {
    if is_x2apic() {
        cpu::write_msr(APIC_BASE, cpu::read_msr(APIC_BASE) | X2APIC_ENABLE);
    }
    write(SPURIOUS, SPURIOUS_APIC_ENABLE | u32::from(vector::SPURIOUS));
    this::set_apic_id(cpu::initial_apic_id());
}

/// Ends the interrupt in service.
pub(crate) fn end_of_interrupt() {
    write(EOI, 0);
}

/// Sends a fixed interrupt to one vCPU.
///
/// The event comes behind the write, here and below: recording one is a locked operation, which drains the store buffer, and
/// would do in secret what the fences before the write are there for.
pub fn send(vcpu: usize, vector: u8) {
    transmit(vcpu as u32, icr::ASSERT | u32::from(vector));
    event::record(EventKind::IPI, u32::from(vector), vcpu as u64, 0);
}

/// Sends a fixed interrupt to one vCPU, with a pause point between the two stores that this takes in xAPIC mode. Unless `guarded`,
/// interrupts stay on between them: a handler that sends an interrupt leaves its own destination behind.
pub fn send_in_two_stores(vcpu: usize, vector: u8, guarded: bool) {
    if is_x2apic() {
        return send(vcpu, vector);
    }
    let were = guarded.then(cpu::disable_interrupts);
    xapic_register(ICR_HIGH).store((vcpu as u32) << 24, Ordering::SeqCst);
    crate::pause_point!("send_ipi/destination");
    xapic_register(ICR_LOW).store(icr::ASSERT | u32::from(vector), Ordering::SeqCst);
    event::record(EventKind::IPI, u32::from(vector), vcpu as u64, 0);
    were.into_iter().for_each(cpu::restore_interrupts);
}

/// Sends a fixed interrupt to all vCPUs but this one, by the shorthand.
pub fn send_all_but_self(vector: u8) {
    broadcast(icr::ALL_BUT_SELF, icr::ASSERT | u32::from(vector));
    event::record(EventKind::IPI, u32::from(vector), TO_ALL_BUT_SELF, 0);
}

/// Sends an NMI to all vCPUs, this one included, by the shorthand.
pub fn send_nmi_to_all() {
    broadcast(icr::ALL, icr::ASSERT | icr::NMI);
    event::record(EventKind::IPI, u32::from(vector::NMI), TO_ALL, 0);
}

/// Sends an NMI to one vCPU.
pub fn send_nmi(vcpu: usize) {
    transmit(vcpu as u32, icr::ASSERT | icr::NMI);
    event::record(EventKind::IPI, u32::from(vector::NMI), vcpu as u64, 0);
}

/// Sends INIT to one vCPU.
pub fn send_init(vcpu: usize) {
    transmit(vcpu as u32, icr::ASSERT | icr::INIT);
}

/// Sends a start-up interrupt to one vCPU.
pub fn send_startup(vcpu: usize, vector: u8) {
    transmit(vcpu as u32, icr::ASSERT | icr::STARTUP | u32::from(vector));
}

/// Sends to one vCPU, unless a fault of the scenario has it otherwise.
fn transmit(target: u32, low: u32) {
    match fault::fate(target, low) {
        Fate::Sent => command(target, low),
        Fate::Lost => {}
        Fate::Doubled => {
            command(target, low);
            command(target, low);
        }
    }
}

/// Sends by a shorthand, or to one vCPU after the other where a fault of the scenario may concern one of them.
fn broadcast(shorthand: u32, low: u32) {
    if !fault::concern_interrupts() {
        return command(0, shorthand | low);
    }
    let spares_self = shorthand == icr::ALL_BUT_SELF;
    (0..boot::vcpus()).filter(|&vcpu| !spares_self || vcpu != this::vcpu()).for_each(|vcpu| transmit(vcpu as u32, low));
}

/// Sends the interrupts that were delayed until an arrival at this pause point.
pub(crate) fn release_deferred(point: u64) {
    fault::due(point).for_each(|(target, low)| command(target, low));
}

fn command(destination: u32, low: u32) {
    if is_x2apic() {
        command_x2apic(destination, low);
    } else {
        command_xapic(destination, low);
    }
}

/// One WRMSR. It is not serialising and may pass earlier stores, so data that the target is to see needs the fences before it
/// (SDM 3A 11.12.3).
fn command_x2apic(destination: u32, low: u32) {
    match boot::word(&knob::FENCE) {
        knob::answer::YES => cpu::fence_before_x2apic(),
        knob::MFENCE_ALONE => cpu::fence_stores(),
        _ => {}
    }
    cpu::write_msr(X2APIC_MSRS + (ICR_LOW >> 4), u64::from(destination) << 32 | u64::from(low));
}

/// Two stores that no interrupt may come between: its handler could send one of its own.
fn command_xapic(destination: u32, low: u32) {
    let were = cpu::disable_interrupts();
    let low_half = xapic_register(ICR_LOW);
    if low_half.load(Ordering::SeqCst) & icr::DELIVERY_PENDING != 0 {
        let idle = Condition::of(low_half, 0).bits(icr::DELIVERY_PENDING);
        wait_until!("send_ipi", "", "ICR delivery status", APIC, idle, equal);
    }
    xapic_register(ICR_HIGH).store(destination << 24, Ordering::SeqCst);
    low_half.store(low, Ordering::SeqCst);
    cpu::restore_interrupts(were);
}
