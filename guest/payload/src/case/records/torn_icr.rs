//! C26: the two stores that send an interrupt in xAPIC mode, and an interrupt between them that sends one itself.
//!
//! ```text
//! task:     ICR2 = CPU 1
//! handler:     ICR2 = the last CPU, ICR = an answer
//! task:     ICR = the interrupt: to the last CPU
//! ```

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::layout::vector;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, boot, pause_point, this, wait_until, words};

use super::{address_of, is_fixed, ready, say_queued, say_running};
use crate::case::{case, count_down};
use crate::root::root;

case!(
    TORN_ICR,
    "torn-icr",
    "an interrupt is sent by two stores, and another that is answered by an interrupt comes between them",
    [APIC, FIX],
    torn_icr
);

/// Who sends to whom; the last vCPU sends what comes in between.
const SENDER: usize = 0;
const TARGET: usize = 1;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// The number of the call that waits for the target, 0 for none.
    inbox: AtomicU32,
    /// Interrupts that the target took.
    right: AtomicU32,
    /// Interrupts that others took.
    wrong: AtomicU32,
    /// Answers that the last vCPU took.
    answers: AtomicU32,
}

fn torn_icr() {
    this::set_handler(vector::PING, ping);
    ready(notified);
    let me = this::vcpu();
    if me == boot::vcpus() - 1 {
        pause_point!("pinger/begin");
        apic::send(SENDER, vector::PING);
    }
    if me == SENDER {
        call_target();
    }
}

fn call_target() {
    let (left, words) = (&root().records.left, &root().records.torn_icr);
    words::name("right", &words.right);
    words::name("wrong", &words.wrong);
    words::name("answers", &words.answers);
    left.store(1, Ordering::Relaxed);
    let number = say_queued(TARGET, address_of(&words.inbox));
    words.inbox.store(number as u32, Ordering::Release);
    apic::send_in_two_stores(TARGET, vector::NOTIFY, is_fixed());
    let done = Condition::of(left, 0).any(Mask::one(TARGET)).record(address_of(&words.inbox), number);
    wait_until!("call_and_wait", "", "callback not ended", COMPLETION, done, equal);
}

fn notified() {
    let (left, words) = (&root().records.left, &root().records.torn_icr);
    if this::vcpu() != TARGET {
        words.wrong.fetch_add(1, Ordering::SeqCst);
        return;
    }
    words.right.fetch_add(1, Ordering::SeqCst);
    say_running(u64::from(words.inbox.swap(0, Ordering::SeqCst)), || count_down(left));
}

/// The interrupt in between: the sender answers it by one of its own.
fn ping() {
    if this::vcpu() == SENDER {
        apic::send(boot::vcpus() - 1, vector::PING);
    } else {
        root().records.torn_icr.answers.fetch_add(1, Ordering::SeqCst);
    }
}
