//! C17: a call from an interrupt, on a CPU that is about to send the interrupt of a call to the same target.
//!
//! ```text
//! task:    queues a record for CPU 1, whose inbox was empty: so it owes an interrupt
//! handler:   wait=1: queues another: the inbox is not empty, no interrupt is owed; waits for CPU 1
//!            wait=0: waits for this CPU's own record, which the task has queued
//! task:    would send the interrupt now
//! ```

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::{WAIT, answer};
use stallbench_abi::layout::vector;
use stallbench_rt::{apic, boot, pause_point, this, words};

use super::{is_fixed, ready};
use crate::call::{self, Function};
use crate::case::case;
use crate::root::root;

case!(
    CALL_IN_INTERRUPT,
    "call-in-interrupt",
    "an interrupt whose handler has a call to make, to the target of a call that the task is in",
    [CALL, APIC, WAIT, FIX],
    call_in_interrupt
);

/// Whose part is whose. The interrupt comes from the last vCPU, which is the target where there are two.
const CALLER: usize = 0;
const TARGET: usize = 1;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// Calls that the handler left to the task.
    deferred: AtomicU32,
}

fn call_in_interrupt() {
    ready(interrupt);
    let me = this::vcpu();
    if me == boot::vcpus() - 1 {
        pause_point!("interrupter/begin");
        apic::send(CALLER, vector::NOTIFY);
    }
    if me == CALLER {
        let words = &root().records;
        words::name("left", &words.left);
        words::name("inbox", call::newest(TARGET));
        words.left.store(2, Ordering::Relaxed);
        make_call();
        while words.interrupted_sender.deferred.swap(0, Ordering::SeqCst) != 0 {
            make_call();
        }
    }
}

fn make_call() {
    assert!(call::single(TARGET, Function { run: ends, info: 0 }, boot::word(&WAIT) == answer::YES).is_ok());
}

/// A record that was queued twice leads to itself, and its target never comes out of its handler: it counts no further than to zero,
/// or each round would be another state.
fn ends(_info: u64) {
    let _ = root().records.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
}

/// What interrupts the caller.
fn interrupt() {
    if is_fixed() {
        root().records.interrupted_sender.deferred.store(1, Ordering::SeqCst);
    } else {
        make_call();
    }
}
