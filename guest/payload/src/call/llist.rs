//! Today (kernel/smp.c of 2026): lock-free inboxes, records with a type, the interrupt only where an inbox was empty.
//!
//! The receiver runs synchronous records first, people are waiting for them, and unlocks each after its callback; it unlocks
//! asynchronous ones before.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::{self, CSD_DEBUG};
use stallbench_abi::record::percpu::{LOCK, SYNC};
use stallbench_rt::arena::Held;
use stallbench_rt::list::{self, Stack};
use stallbench_rt::mask::Mask;
use stallbench_rt::{arena, boot, pause_point, this, wait_bounded, wait_until};

use super::record::{self, CallSingle};
use super::{Call, CallError, arch, online};
use crate::root::root;

/// Turns after which a call counts as not answered (`smp.csd_lock_timeout`, five seconds in the original).
const CSD_DEBUG_TURNS: u64 = 2000;

/// `call_single_queue`: the calls for one CPU.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Inbox(pub(super) Stack);

// SAFETY: one atomic, valid when zero.
unsafe impl arena::Shared for Inbox {}

impl Inbox {
    /// Half of the address of its newest call, 0 while there is none: for reports.
    pub(super) fn newest(&self) -> &AtomicU32 {
        self.0.low_half()
    }
}

/// The oldest of this vCPU's calls, all of which are taken out; 0 for none.
pub(super) fn take_own() -> u64 {
    root().call.stacks.get(this::vcpu()).0.take_all_in_order()
}

/// Puts a record into the inbox of `target`: whether it was empty.
pub(super) fn add(target: usize, record: &CallSingle) -> bool {
    record.record_queued(target);
    root().call.stacks.get(target).0.push(&record.link)
}

/// csd_lock().
pub(super) fn lock(record: &CallSingle) {
    wait_until!("csd_lock", "", "flag LOCK", RECORD, record.flag_clear(LOCK), equal);
    record.flags.store(record.flags.load(Ordering::Relaxed) | LOCK, Ordering::Relaxed);
    core::sync::atomic::fence(Ordering::Release);
}

/// csd_unlock(): the flags and the type go.
pub(super) fn unlock(record: &CallSingle) {
    record.flags.store(0, Ordering::Release);
}

/// csd_lock_wait(), behind a synchronous call to many.
pub(super) fn wait_for_many(record: &CallSingle) {
    wait_until!("call_many", "", "flag LOCK", COMPLETION, record.flag_clear(LOCK), equal);
}

/// smp_call_function_single().
pub(super) fn single(target: usize, call: Call) -> Result<(), CallError> {
    single_marked(target, call, SYNC)
}

/// smp_call_function_single() of all layers with lock-free inboxes; `synchronous` marks a record whose sender waits.
pub(super) fn single_marked(target: usize, call: Call, synchronous: u32) -> Result<(), CallError> {
    if call.wait {
        let record = arena::on_stack::<CallSingle>("csd");
        record.flags.store(LOCK | synchronous, Ordering::Relaxed);
        exec_single(target, &record, call)?;
        wait_for_single(target, &record);
        return Ok(());
    }
    let record = root().call.single.get(this::vcpu());
    lock(record);
    exec_single(target, record, call)
}

/// csd_lock_wait(), behind a synchronous call to one; with `csd-debug`, as CONFIG_CSD_LOCK_WAIT_DEBUG does it.
fn wait_for_single(target: usize, record: &CallSingle) {
    if boot::word(&CSD_DEBUG) != knob::answer::YES {
        wait_until!("call_single", "", "flag LOCK", COMPLETION, record.flag_clear(LOCK), equal);
        return;
    }
    let answered = || {
        let unlocked = record.flag_clear(LOCK);
        wait_bounded!("call_single", "", "flag LOCK", COMPLETION, unlocked, CSD_DEBUG_TURNS)
    };
    while !answered() {
        // The original asks first whether the target runs any call at all; here one interrupt too many does no harm.
        arch::send_call_function_single(target);
    }
}

/// smp_call_function_single_async(): a record of the caller's own making, which it may not use again before it is unlocked.
pub(super) fn single_async(target: usize, record: &'static CallSingle, call: Call) -> Result<(), CallError> {
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
    let was_empty = add(target, record);
    // An interrupt here whose handler calls the same target finds the inbox not empty.
    pause_point!("generic_exec_single/queued");
    if was_empty {
        arch::send_call_function_single(target);
    }
    Ok(())
}

/// smp_call_function_many_cond(), for the remote targets.
pub(super) fn many(targets: Mask, call: Call) -> Result<(), CallError> {
    let me = this::vcpu();
    let mut interrupt = Mask::default();
    for target in targets.iter() {
        let record = root().call.per_target(me, target);
        lock(record);
        if call.wait {
            record.flags.store(record.flags.load(Ordering::Relaxed) | SYNC, Ordering::Relaxed);
        }
        record.fill(&call, Some(target));
        if add(target, record) {
            interrupt.insert(target);
        }
    }
    match (interrupt.count(), interrupt.first()) {
        (1, Some(target)) => arch::send_call_function_single(target),
        (2.., _) => arch::send_call_function(interrupt),
        _ => {}
    }
    if call.wait {
        for target in targets.iter() {
            wait_for_many(root().call.per_target(me, target));
        }
    }
    Ok(())
}

/// flush_smp_call_function_queue(). Interrupts are off.
pub(super) fn interrupt() {
    let asynchronous = run_synchronous(take_own());
    let mut entry = asynchronous;
    while entry != 0 {
        let next = list::chain_next(entry);
        let record = CallSingle::of(entry);
        let work = record.work();
        unlock(record);
        work.run();
        entry = next;
    }
}

/// Runs the synchronous records of a chain and takes them out of it: what is left.
fn run_synchronous(first: u64) -> u64 {
    let (mut left, mut previous, mut entry) = (first, 0, first);
    while entry != 0 {
        let next = list::chain_next(entry);
        let record = CallSingle::of(entry);
        if record.flags.load(Ordering::Relaxed) & SYNC == 0 {
            previous = entry;
        } else {
            if previous == 0 {
                left = next;
            } else {
                list::chain_set_next(previous, next);
            }
            let held = Held::now(record);
            record.work().run();
            held.touch("call_function_interrupt");
            unlock(record);
        }
        entry = next;
    }
    left
}
