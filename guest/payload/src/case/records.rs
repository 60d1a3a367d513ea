//! Subject `records`: the records of calls, one file a pattern. What several patterns need stands here.
//!
//! A pattern that is about a call layer uses that layer. One whose protocol the layers do not have brings its own, and says to
//! the event ring what a layer would say: what was queued for whom, and which callback ran.

mod cond;
mod interrupted_sender;
mod live_mask;
mod lost_kick;
mod overtaken;
mod recycled;
mod round_up;
mod shared_mask;
mod shared_record;
mod torn_icr;
mod worker;

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::event::EventKind;
use stallbench_abi::knob::{self, FIX};
use stallbench_abi::layout::vector;
use stallbench_rt::this::Handler;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, event, this, wait_until};

use crate::call;
use crate::root::root;

/// What the patterns of this subject share between vCPUs.
#[repr(C)]
pub struct Words {
    /// vCPUs that are not ready yet.
    missing: AtomicU32,
    /// Callbacks that have still to end.
    left: AtomicU32,
    cond: cond::Words,
    interrupted_sender: interrupted_sender::Words,
    live_mask: live_mask::Words,
    lost_kick: lost_kick::Words,
    overtaken: overtaken::Words,
    recycled: recycled::Words,
    round_up: round_up::Words,
    shared_record: shared_record::Words,
    torn_icr: torn_icr::Words,
    /// `smp_call_mask`: targets that have still to run the function.
    shared_mask: AtomicU32,
    worker: worker::Words,
}

impl Words {
    pub(crate) fn place(&self) {
        self.missing.store(boot::vcpus() as u32, Ordering::Relaxed);
        self.worker.place();
        self.live_mask.place();
        self.recycled.place();
        self.round_up.place();
    }
}

/// Whether the pattern's fix is in.
fn is_fixed() -> bool {
    boot::word(&FIX) == knob::answer::YES
}

/// Sets this vCPU's handler of the notification of a pattern's own protocol, and waits until all have theirs.
fn ready(handler: Handler) {
    this::set_handler(vector::NOTIFY, handler);
    bring_up::take_part();
    let missing = &root().records.missing;
    super::count_down(missing);
    wait_until!("ready", "", "vCPUs not ready", COUNT, Condition::of(missing, 0).count(call::others()), equal);
}

/// Says that a record of a pattern's own protocol is about to be queued: the number of its call.
fn say_queued(target: usize, record: u64) -> u64 {
    let number = event::next_call();
    event::record(EventKind::QUEUE, target as u32, record, number);
    number
}

/// Says that the callback of such a call runs, around it.
fn say_running(number: u64, callback: impl FnOnce()) {
    event::record(EventKind::CALLBACK, 0, number, 0);
    this::progress();
    callback();
    event::record(EventKind::CALLBACK_END, 0, number, 0);
}

fn address_of<T>(object: &T) -> u64 {
    core::ptr::from_ref(object) as u64
}
