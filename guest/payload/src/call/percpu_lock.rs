//! Linux 2.6.30: "generic-ipi: remove kmalloc()" (8969a5ede0f9). Each CPU has one record for single-target calls and one for
//! multi-target calls, and a flag that says whether it is in use.
//!
//! No allocation, so none can fail. What is left: the lock is given back after the callback, so that a second asynchronous
//! call waits for the callback of the first to end.

use core::sync::atomic::{Ordering, fence};

use stallbench_abi::record::percpu::LOCK;
use stallbench_rt::arena::Held;
use stallbench_rt::list::Link;
use stallbench_rt::mask::Mask;
use stallbench_rt::{arena, cpu, this, wait_until};

use super::inbox::{self, Inbox};
use super::record::{CallMany, CallSingle};
use super::{Call, CallError, arch, online};
use crate::root::root;

/// csd_lock(): waits until the earlier call that uses the record is through.
fn lock_single(record: &CallSingle) {
    wait_until!("csd_lock", "", "flag LOCK", RECORD, record.flag_clear(LOCK), equal);
    take(record);
}

pub(super) fn lock_many(record: &CallMany) {
    wait_until!("csd_lock", "", "flag LOCK", RECORD, record.flag_clear(LOCK), equal);
    take(&record.single);
}

fn take(record: &CallSingle) {
    record.flags.store(LOCK, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// csd_unlock().
pub(super) fn unlock(record: &CallSingle) {
    fence(Ordering::SeqCst);
    record.clear(LOCK);
}

/// smp_call_function_single().
pub(super) fn single(target: usize, call: Call) -> Result<(), CallError> {
    if !online().contains(target) {
        return Err(CallError::Offline);
    }
    if call.wait {
        let record = arena::on_stack::<CallSingle>("csd");
        lock_single(&record);
        record.fill(&call, Some(target));
        inbox::send(target, &record, false);
        wait_until!("call_single", "", "flag LOCK", COMPLETION, record.flag_clear(LOCK), equal);
    } else {
        let record = root().call.single.get(this::vcpu());
        lock_single(record);
        record.fill(&call, Some(target));
        inbox::send(target, record, false);
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
    let record = root().call.many.get(this::vcpu());
    lock_many(record);
    let were = record.lock.lock_and_disable_interrupts();
    record.fill(&call, targets);
    root().call.queue.add_first(record);
    record.lock.unlock();
    cpu::restore_interrupts(were);
    fence(Ordering::SeqCst);
    // The record's own mask, which handlers may have narrowed by now.
    arch::send_call_function(record.mask.get());
    if call.wait {
        wait_until!("call_many", "", "flag LOCK", COMPLETION, record.flag_clear(LOCK), equal);
    }
    Ok(())
}

/// generic_smp_call_function_single_interrupt(). Interrupts are off.
pub(super) fn single_interrupt() {
    let list = Link::new();
    Inbox::own().take_all(&list);
    while !list.is_empty() {
        let record = CallSingle::of(list.next());
        record.link.remove();
        let flags = record.flags.load(Ordering::Relaxed);
        let held = Held::now(record);
        record.work().run();
        if flags & LOCK != 0 {
            held.touch("call_function_single_interrupt");
            unlock(record);
        }
    }
}

/// generic_smp_call_function_interrupt(). Interrupts are off.
pub(super) fn multi_interrupt() {
    let me = this::vcpu();
    fence(Ordering::SeqCst);
    root().call.queue.walk(|record| {
        if claim(record, me) {
            record.single.work().run();
            finish(record, me);
        }
    });
}

/// Takes this vCPU out of the targets: whether it was one.
fn claim(record: &CallMany, me: usize) -> bool {
    record.lock.lock();
    let is_target = record.mask.contains(me);
    if is_target {
        record.mask.remove(me);
    }
    record.lock.unlock();
    is_target
}

fn finish(record: &'static CallMany, me: usize) {
    record.unfinished.remove(me);
    record.lock.lock();
    let refs = record.refs.load(Ordering::Relaxed) - 1;
    record.refs.store(refs, Ordering::Relaxed);
    if refs == 0 {
        root().call.queue.remove(record);
    }
    record.lock.unlock();
    if refs == 0 {
        unlock(&record.single);
    }
}
