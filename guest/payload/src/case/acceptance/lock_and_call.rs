//! C15: who holds the lock waits for an interrupt to be taken; who is to take it waits for the lock, with interrupts off.

use stallbench_rt::cpu::InterruptsWere;
use stallbench_rt::{bring_up, cpu, pause_point, this, words as names};

use super::{PEER, case, count, expect_ok, is_fixed, words};
use crate::call::{self, Function};

case!(
    LOCK_AND_CALL,
    "lock-and-call",
    "one vCPU holds a lock and waits for a call to all others, another wants the lock with interrupts off",
    [CALL, APIC, FIX],
    run
);

fn run() {
    match this::vcpu() {
        0 => flush_tlb_all(),
        PEER => reader(),
        _ => {}
    }
}

/// Holds the lock until all others have flushed.
fn flush_tlb_all() {
    names::name("lock", words().lock.word());
    words().lock.lock();
    pause_point!("flush_tlb_all/locked");
    expect_ok(call::all(Function { run: count, info: 0 }, true));
    words().lock.unlock();
}

fn reader() {
    bring_up::take_part();
    pause_point!("reader/begin");
    let were = lock_irqsave();
    words().lock.unlock_and_restore_interrupts(were);
}

/// Takes the lock with interrupts off. The fix is what it does while it waits for it.
fn lock_irqsave() -> InterruptsWere {
    let lock = &words().lock;
    let were = cpu::disable_interrupts();
    pause_point!("lock_irqsave/irqs-off");
    if !is_fixed() {
        lock.lock();
        return were;
    }
    while !lock.try_lock() {
        cpu::restore_interrupts(were);
        lock.wait_until_free();
        let _ = cpu::disable_interrupts();
    }
    were
}
