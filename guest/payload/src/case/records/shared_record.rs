//! C12: one record for a CPU, and two that send it.
//!
//! ```text
//! kick:     if the flag was set already: return;  set it
//!           if the record is in use: return;  mark it in use
//!           put it into the inbox of its CPU, with an interrupt if that was empty
//! callback: gives the record back
//! ```
//!
//! The test of the record is no locked step, and needs none if the flag keeps a second sender out for as long as the record is in
//! use. But the flag is also cleared by the idle loop of that CPU, which looks at it whether or not the record has come.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::layout::vector;
use stallbench_rt::list::{self, Link, Stack};
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, boot, pause_point, this, wait_until, words};

use super::{is_fixed, ready};
use crate::case::case;
use crate::root::root;

case!(
    SHARED_RECORD,
    "shared-record",
    "two vCPUs kick a third by its one record, which a flag is to keep for one of them",
    [APIC, FIX],
    shared_record
);

/// Who is kicked, and who kicks it: vCPU 0 and the last.
const FIRST: usize = 0;
const TARGET: usize = 1;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    record: Link,
    /// 1 while the record is in use (`CSD_FLAG_LOCK`).
    lock: AtomicU32,
    /// 1 from a kick on until it has been seen to (`NOHZ_KICK_MASK`).
    kicked: AtomicU32,
    /// The target's inbox.
    inbox: Stack,
    /// Runs of the callback.
    ran: AtomicU32,
}

fn words() -> &'static Words {
    &root().records.shared_record
}

fn shared_record() {
    ready(flush_queue);
    let me = this::vcpu();
    if me == FIRST {
        words::name("kicked", &words().kicked);
        words::name("lock", &words().lock);
        words::name("ran", &words().ran);
    }
    if me == TARGET {
        idle_loop();
    }
    if me == FIRST || me == boot::vcpus() - 1 {
        pause_point!("kick_ilb/begin");
        kick_ilb();
        pause_point!("kick_ilb/end");
    }
}

/// kick_ilb(): makes the target look at the load of others.
fn kick_ilb() {
    let words = words();
    if words.kicked.swap(1, Ordering::SeqCst) != 0 || words.lock.load(Ordering::Acquire) != 0 {
        return;
    }
    pause_point!("call_single_async/tested");
    words.lock.store(1, Ordering::Release);
    if words.inbox.push(&words.record) {
        apic::send(TARGET, vector::NOTIFY);
    }
}

/// The target's idle loop: it sees to a kick without waiting for the record.
fn idle_loop() {
    pause_point!("idle_loop/begin");
    if !is_fixed() {
        words().kicked.store(0, Ordering::SeqCst);
    }
    pause_point!("idle_loop/end");
}

/// flush_smp_call_function_queue().
fn flush_queue() {
    pause_point!("flush_queue/begin");
    let mut entry = words().inbox.take_all_in_order();
    while entry != 0 {
        words().lock.store(0, Ordering::Release);
        callback();
        let next = list::chain_next(entry);
        if next == entry {
            // Put into the inbox twice, it leads to itself: the original runs it again and again. Only who handles the inbox
            // would take it out, and that is this vCPU.
            let itself = Condition::of(list::chain_word(entry), entry as u32).any(Mask::one(TARGET));
            wait_until!("flush_queue", "", "the record behind this one", GATE, itself, different);
        }
        entry = next;
    }
}

/// nohz_csd_func(); where the fix is in it gives the flag back, and nobody else does.
fn callback() {
    words().ran.fetch_add(1, Ordering::SeqCst);
    if is_fixed() {
        words().kicked.store(0, Ordering::SeqCst);
    }
}
