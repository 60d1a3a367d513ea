//! A rendezvous whose interrupts can come before the count of those that it waits for.
//!
//! ```text
//! initiator: count = N-1; ICR = all but self; wait for count == 0; gate = 1
//! handler:   lock dec count; wait for gate == 1
//! ```
//!
//! By an x2APIC the write to the ICR may complete before the store to the count is visible (SDM 3A 11.12.3). Then a handler takes one off
//! what was there before, the store comes behind it, and what it took off is lost.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::layout::vector;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, boot, cpu, this, wait_until, words as names};

use super::words;
use crate::call;
use crate::case::{case, count_down};

case!(
    UNFENCED,
    "unfenced-rendezvous",
    "the count of those who are to come is stored, and an interrupt to all others is sent behind it, with or without a fence between",
    [APIC, FENCE, INITIATOR],
    meet
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// vCPUs that have still to come.
    count: AtomicU32,
    /// Whether they may go on.
    gate: AtomicU32,
}

pub(super) fn set_handlers() {
    this::set_handler(vector::MEET, came);
}

fn meet() {
    if !this::is_initiator() {
        return;
    }
    let shared = &words().unfenced;
    names::name("count", &shared.count);
    names::name("gate", &shared.gate);
    let others = call::others();
    let were = cpu::disable_interrupts();
    shared.count.store(others.count(), Ordering::Relaxed);
    apic::send_all_but_self(vector::MEET);
    wait_until!("meet", "gather", "count", COUNT, Condition::of(&shared.count, 0).count(others), equal);
    shared.gate.store(1, Ordering::Release);
    cpu::restore_interrupts(were);
}

/// In the interrupt of every other vCPU.
fn came() {
    let shared = &words().unfenced;
    count_down(&shared.count);
    let initiator = Mask::one(boot::knob(&stallbench_abi::knob::INITIATOR) as usize);
    wait_until!("meet", "leave", "gate", GATE, Condition::of(&shared.gate, 1).any(initiator), equal);
}
