//! C24: the write of an x2APIC's interrupt command register overtakes the stores before it.
//!
//! A WRMSR to it is not serialising (SDM 3A 11.12.3): the interrupt may be sent while the record still lies in the sender's store
//! buffer. No host of this bench shows that by itself. So without the fix the store *is made* behind the write, which is what the
//! others would see, and a hold keeps the sender between the two until the handler has looked.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::layout::vector;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, pause_point, this, wait_until, words};

use super::{address_of, is_fixed, ready, say_queued, say_running};
use crate::case::{case, count_down};
use crate::root::root;

case!(
    ICR_OVERTAKES,
    "icr-overtakes",
    "a call whose interrupt may be seen before its record",
    [APIC, FIX],
    icr_overtakes
);

/// Who calls whom.
const SENDER: usize = 0;
const TARGET: usize = 1;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// The number of the call that waits for the target, 0 for none.
    inbox: AtomicU32,
    /// How often the handler has run.
    handled: AtomicU32,
}

fn icr_overtakes() {
    ready(handler);
    if this::vcpu() != SENDER {
        return;
    }
    let words = &root().records;
    words::name("inbox", &words.overtaken.inbox);
    words::name("handled", &words.overtaken.handled);
    words.left.store(1, Ordering::Relaxed);
    if is_fixed() {
        publish();
        kick();
    } else {
        kick();
        publish();
    }
    let done = Condition::of(&words.left, 0).any(Mask::one(TARGET));
    let done =
        done.record(address_of(&words.overtaken.inbox), u64::from(words.overtaken.inbox.load(Ordering::Relaxed)));
    wait_until!("call_and_wait", "", "callback not ended", COMPLETION, done, equal);
}

fn publish() {
    let inbox = &root().records.overtaken.inbox;
    let number = say_queued(TARGET, address_of(inbox));
    inbox.store(number as u32, Ordering::Release);
}

fn kick() {
    apic::send(TARGET, vector::NOTIFY);
    pause_point!("kick/sent");
}

/// Looks for a call, and leaves if there is none: the next will bring its own interrupt.
fn handler() {
    let words = &root().records;
    words.overtaken.handled.fetch_add(1, Ordering::SeqCst);
    let number = words.overtaken.inbox.swap(0, Ordering::SeqCst);
    if number != 0 {
        say_running(u64::from(number), || count_down(&words.left));
    }
    pause_point!("handler/end");
}
