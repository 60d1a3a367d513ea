//! From a gate to a handler.

use stallbench_abi::event::EventKind;
use stallbench_abi::layout::vector;
use stallbench_abi::vcpu::{ContextKind, Frame};

use crate::{apic, cpu, epitaph, event, this};

/// First vector that is no exception.
const FIRST_INTERRUPT: u8 = 32;

/// What every stub calls, with what it saved.
pub extern "C" fn dispatch(frame: &mut Frame) {
    let vector = frame.vector as u8;
    match vector {
        vector::NMI => nmi(frame),
        0..FIRST_INTERRUPT => epitaph::exception(frame),
        // Nothing to do and nothing to acknowledge (SDM 3A 11.9).
        vector::SPURIOUS => {}
        _ => interrupt(vector, frame),
    }
}

/// An NMI counts itself; a handler that the payload sets comes on top.
fn nmi(frame: &mut Frame) {
    this::enter_context(ContextKind::NMI, vector::NMI, core::ptr::from_ref(frame) as u64);
    frame.rip = cpu::look_again(frame.rip);
    if let Some(handler) = this::handler(vector::NMI) {
        handler();
    }
    this::progress();
    this::leave_context();
}

/// Acknowledges first and handles then, as the x86 handlers of Linux 2.6.28 do (`ack_APIC_irq()` is their first line).
fn interrupt(vector: u8, frame: &Frame) {
    this::enter_context(ContextKind::IRQ, vector, core::ptr::from_ref(frame) as u64);
    event::record(EventKind::IRQ, u32::from(vector), 0, 0);
    apic::end_of_interrupt();
    match this::handler(vector) {
        Some(handler) => handler(),
        None => panic!("no handler for vector {vector:#x}"),
    }
    this::progress();
    this::leave_context();
}
