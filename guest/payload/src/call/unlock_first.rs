//! Linux 4.1: "smp: Fix smp_call_function_single_async() locking" (8053871d0f7f). A record for each target, lock-free
//! inboxes, and an asynchronous record is unlocked before its callback runs: the callback no longer holds up the next call.
//!
//! Unlike [today](super::llist), records run in the order they came, and a call to many interrupts all its targets.

use core::sync::atomic::Ordering;

use stallbench_rt::mask::Mask;
use stallbench_rt::{arena, list, this};

use super::llist::{LOCK, add, lock, take_own, unlock, wait_for_many, wait_for_single};
use super::record::{self, CallSingle};
use super::{Call, CallError, arch, online};
use crate::root::root;

/// Its sender waits for the callback (`CSD_FLAG_SYNCHRONOUS`).
const SYNCHRONOUS: u32 = 2;

/// smp_call_function_single().
pub(super) fn single(target: usize, call: Call) -> Result<(), CallError> {
    if call.wait {
        let record = arena::on_stack::<CallSingle>("csd");
        record.flags.store(LOCK | SYNCHRONOUS, Ordering::Relaxed);
        exec_single(target, &record, call)?;
        wait_for_single(&record);
        return Ok(());
    }
    let record = root().call.single.get(this::vcpu());
    lock(record);
    exec_single(target, record, call)
}

/// generic_exec_single(): a caller that is its own target gives the record back at once.
fn exec_single(target: usize, record: &CallSingle, call: Call) -> Result<(), CallError> {
    if target == this::vcpu() {
        unlock(record);
        record::run_here(call);
        return Ok(());
    }
    if !online().contains(target) {
        unlock(record);
        return Err(CallError::Offline);
    }
    record.fill(&call, Some(target));
    if add(target, record) {
        arch::send_call_function_single(target);
    }
    Ok(())
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
            work.run();
            unlock(record);
        }
        entry = next;
    }
}
