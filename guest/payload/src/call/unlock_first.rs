//! Linux 4.1: "smp: Fix smp_call_function_single_async() locking" (8053871d0f7f). A record for each target, lock-free
//! inboxes, and an asynchronous record is unlocked before its callback runs: the callback no longer holds up the next call.
//!
//! Unlike [today](super::llist), records run in the order they came, and a call to many interrupts all its targets.

use core::sync::atomic::Ordering;

use stallbench_abi::record::percpu::SYNCHRONOUS;
use stallbench_rt::arena::Held;
use stallbench_rt::mask::Mask;
use stallbench_rt::{list, this};

use super::llist::{self, add, lock, take_own, unlock, wait_for_many};
use super::record::CallSingle;
use super::{Call, CallError, arch};
use crate::root::root;

/// smp_call_function_single().
pub(super) fn single(target: usize, call: Call) -> Result<(), CallError> {
    llist::single_marked(target, call, SYNCHRONOUS)
}

/// smp_call_function_many().
pub(super) fn many(targets: Mask, call: Call) -> Result<(), CallError> {
    match targets.count() {
        0 => return Ok(()),
        1 => return targets.first().map_or(Ok(()), |target| super::single(target, call.function, call.wait)),
        _ => {}
    }
    let me = this::vcpu();
    for target in targets.iter() {
        let record = root().call.per_target(me, target);
        lock(record);
        if call.wait {
            record.flags.store(record.flags.load(Ordering::Relaxed) | SYNCHRONOUS, Ordering::Relaxed);
        }
        record.fill(&call, Some(target));
        add(target, record);
    }
    arch::send_call_function(targets);
    if call.wait {
        for target in targets.iter() {
            wait_for_many(root().call.per_target(me, target));
        }
    }
    Ok(())
}

/// flush_smp_call_function_queue(). Interrupts are off.
pub(super) fn interrupt() {
    let mut entry = take_own();
    while entry != 0 {
        let next = list::chain_next(entry);
        let record = CallSingle::of(entry);
        let work = record.work();
        if record.flags.load(Ordering::Relaxed) & SYNCHRONOUS == 0 {
            unlock(record);
            work.run();
        } else {
            let held = Held::now(record);
            work.run();
            held.touch("call_function_interrupt");
            unlock(record);
        }
        entry = next;
    }
}
