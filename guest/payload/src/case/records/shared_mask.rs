//! C27: the cross-CPU call of a hypervisor: one mask for all, and each target clears its bit in it.
//!
//! ```text
//! caller: mask = targets;  interrupt each;  wait for mask == 0
//! target: if my bit is set: run the function;  mask = mask without my bit
//! ```
//!
//! The clearing is a load and a store. A target that clears its bit between the two of another has it set again.

use core::sync::atomic::Ordering;

use stallbench_abi::layout::vector;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, pause_point, this, wait_until, words};

use super::{is_fixed, ready};
use crate::call;
use crate::case::{case, count_down};
use crate::root::root;

case!(
    SHARED_MASK,
    "shared-mask",
    "a call whose targets each clear their bit in one mask, for which the caller waits",
    [APIC, INITIATOR, FIX],
    shared_mask
);

fn shared_mask() {
    ready(kick_notification);
    if !this::is_initiator() {
        return;
    }
    let words = &root().records;
    words::name("mask", &words.shared_mask);
    words::name("left", &words.left);
    words.left.store(call::others().count(), Ordering::Relaxed);
    smp_call_function();
}

/// Interrupts the targets one after the other, and waits until all bits are clear.
fn smp_call_function() {
    let mask = &root().records.shared_mask;
    let targets = call::others();
    mask.store(targets.iter().fold(0, |bits, target| bits | 1 << target), Ordering::SeqCst);
    for target in targets.iter() {
        apic::send(target, vector::NOTIFY);
        pause_point!("smp_call_function/sent");
    }
    // Any target may be the one that stores the last zero: the word is all of theirs.
    let clear = Condition::of(mask, 0).any(targets);
    wait_until!("smp_call_function", "", "smp_call_mask", COMPLETION, clear, equal);
}

/// The handler of the notification (the same name in the original).
fn kick_notification() {
    let mask = &root().records.shared_mask;
    let bit = 1 << this::vcpu();
    if mask.load(Ordering::Acquire) & bit == 0 {
        return;
    }
    count_down(&root().records.left);
    let seen = mask.load(Ordering::Relaxed);
    pause_point!("kick_notification/read");
    if is_fixed() {
        mask.fetch_and(!bit, Ordering::SeqCst);
    } else {
        // bitmap_clear_nolock()
        mask.store(seen & !bit, Ordering::Release);
    }
}
