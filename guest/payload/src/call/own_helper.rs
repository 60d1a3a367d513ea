//! An architecture with an smp_call_function() of its own, as all had before the generic helpers and some still in 2009: one
//! global call record, which lies on the caller's stack, and two counters (x86 until 2.6.26).
//!
//! The caller always waits until every target has `started`, that is, has read the record; only wait=1 waits until they have
//! `finished`. Nothing is allocated, so wait=0 keeps its promise — as long as every target takes the interrupt.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use stallbench_abi::knob::BOUND;
use stallbench_rt::arena::Held;
use stallbench_rt::lock::SpinLock;
use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::wait::Condition;
use stallbench_rt::{arena, boot, this, wait_bounded, wait_until};

use super::record::CallSingle;
use super::{Call, CallError, arch};
use crate::root::root;

/// What the vCPUs share: a pointer to the record, and the lock that makes it one call at a time.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Shared {
    lock: SpinLock,
    call_data: AtomicU64,
}

/// `call_data_struct`.
#[derive(Debug)]
#[repr(C)]
struct CallData {
    single: CallSingle,
    /// Targets that have still to read the record: the original counts up to their number, a count down to zero says the same.
    to_start: AtomicU32,
    /// Targets that have still to end the callback.
    to_finish: AtomicU32,
    wait: AtomicU32,
    reserved: AtomicU32,
    /// Who they are: instrumentation, no decision reads it.
    not_started: SharedMask,
    not_finished: SharedMask,
}

// SAFETY: atomics, valid when zero.
unsafe impl arena::Shared for CallData {}

/// smp_call_function() for these targets.
pub(super) fn many(targets: Mask, call: Call) -> Result<(), CallError> {
    if targets == Mask::default() {
        return Ok(());
    }
    let shared = &root().call.own_helper;
    shared.lock.lock();
    let data = arena::on_stack::<CallData>("calldata");
    data.single.fill(&call, targets.first().filter(|_| targets.count() == 1));
    data.to_start.store(targets.count(), Ordering::Relaxed);
    data.to_finish.store(targets.count(), Ordering::Relaxed);
    data.not_started.set(targets);
    data.not_finished.set(targets);
    data.wait.store(u32::from(call.wait), Ordering::Relaxed);
    shared.call_data.store(data.reference(), Ordering::Relaxed);
    fence(Ordering::SeqCst);
    arch::send_call_function(targets);
    let started = wait_for_start(&data);
    if started && call.wait {
        let finished = Condition::of(&data.to_finish, 0).remaining(&data.not_finished);
        let finished = finished.record(data.single.address(), call.number);
        wait_until!("call_many", "", "targets not finished", COMPLETION, finished, equal);
    }
    shared.lock.unlock();
    if started { Ok(()) } else { Err(CallError::TimedOut) }
}

/// Waits until each target has read the record, or until the bound is reached, where there is one.
fn wait_for_start(data: &CallData) -> bool {
    let started = Condition::of(&data.to_start, 0).remaining(&data.not_started);
    let started = started.record(data.single.address(), data.single.call_number());
    let bound = boot::knob(&BOUND);
    if bound != 0 {
        return wait_bounded!("call_many", "", "targets not started", ACCEPTANCE, started, bound);
    }
    wait_until!("call_many", "", "targets not started", ACCEPTANCE, started, equal);
    true
}

/// smp_call_function_interrupt(). Interrupts are off.
pub(super) fn interrupt() {
    // SAFETY: the caller holds the lock and its record until every target has started; a target that comes later reads what
    // the original would read: memory of the arena that may be somebody else's by then.
    let data = unsafe { Held::<CallData>::of(root().call.own_helper.call_data.load(Ordering::Acquire)) };
    data.touch("call_function_interrupt");
    let work = data.single.work();
    let wait = data.wait.load(Ordering::Relaxed) != 0;
    let me = this::vcpu();
    data.not_started.remove(me);
    data.to_start.fetch_sub(1, Ordering::SeqCst);
    // From here on the record is gone unless its caller waits.
    work.run();
    if wait {
        data.touch("call_function_interrupt");
        data.not_finished.remove(me);
        data.to_finish.fetch_sub(1, Ordering::SeqCst);
    }
}
