//! The layers that allocate a record for each asynchronous call: 2.6.28, 2.6.29-rc, and the proposal of a RELEASE flag.
//!
//! They differ in what they do without memory. 2.6.28 takes a record on the caller's stack, for all targets at once, and has to
//! wait for its completion, whatever the caller asked for; 2.6.29 goes to the targets one by one, each with a record on the
//! stack, and waits for each. So wait=0 silently becomes wait=1, and a callback that needs its caller never ends. The proposal
//! waits only until the target has copied the record.

use core::sync::atomic::{Ordering, fence};

use stallbench_abi::event::{AllocSite, EventKind, Fallback};
use stallbench_abi::knob::{self, ARCH, CALL, flip};
use stallbench_abi::record::kmalloc::{ALLOC, RELEASE, WAIT};
use stallbench_rt::arena::Held;
use stallbench_rt::list::Link;
use stallbench_rt::mask::Mask;
use stallbench_rt::{arena, boot, event, this, wait_until};

use super::inbox::{self, Inbox};
use super::record::{CallMany, CallSingle};
use super::{Call, CallError, Function, arch, online};
use crate::root::root;
use crate::{flip as flips, pool, rcu};

fn is_2_6_28() -> bool {
    boot::word(&CALL) == knob::call::KMALLOC_2_6_28
}

fn handler_knows_release() -> bool {
    boot::word(&CALL) == knob::call::RELEASE && boot::word(&ARCH) != knob::arch::GENERIC_OLD_HANDLER
}

/// smp_call_function_single(). The test for an offline target is that of 2.6.29; without it the call would be queued for a CPU
/// that never looks.
pub(super) fn single(target: usize, call: Call) -> Result<(), CallError> {
    if !online().contains(target) {
        return Err(CallError::Offline);
    }
    let allocated = if call.wait { None } else { pool::allocate::<CallSingle>(AllocSite::CALL_SINGLE, "csd") };
    match allocated {
        Some(record) => {
            record.flags.store(ALLOC, Ordering::Relaxed);
            exec_single(target, record, &call);
        }
        None => single_on_stack(target, call),
    }
    Ok(())
}

/// Synchronous by right, or for want of memory.
fn single_on_stack(target: usize, call: Call) {
    let record = arena::on_stack::<CallSingle>("csd");
    if !call.wait && boot::word(&CALL) == knob::call::RELEASE {
        event::record(EventKind::FALLBACK, Fallback::STACK_RELEASE.0, call.number, 0);
        record.flags.store(RELEASE, Ordering::Relaxed);
        exec_single(target, &record, &call);
        wait_until!("call_single", "", "flag RELEASE", ACCEPTANCE, record.flag_clear(RELEASE), equal);
        return;
    }
    if !call.wait {
        event::record(EventKind::FALLBACK, Fallback::STACK_SINGLE.0, call.number, 0);
    }
    record.flags.store(WAIT, Ordering::Relaxed);
    exec_single(target, &record, &call);
    wait_until!("call_single", "", "flag WAIT", COMPLETION, record.flag_clear(WAIT), equal);
}

/// generic_exec_single(), without its wait. 2.6.29 moved the barrier from the receiver to the sender.
fn exec_single(target: usize, record: &CallSingle, call: &Call) {
    record.fill(call, Some(target));
    inbox::send(target, record, !is_2_6_28());
}

/// smp_call_function_mask() of 2.6.28, smp_call_function_many() of 2.6.29.
pub(super) fn many(targets: Mask, call: Call) -> Result<(), CallError> {
    match targets.count() {
        0 => return Ok(()),
        1 => return targets.first().map_or(Ok(()), |target| super::single(target, call.function, call.wait)),
        _ => {}
    }
    match pool::allocate::<CallMany>(AllocSite::CALL_MANY, "cfd") {
        Some(record) => {
            let flags = if call.wait { ALLOC | WAIT } else { ALLOC };
            broadcast(record, targets, &call, flags);
            if call.wait {
                wait_for_completion(record);
            }
        }
        None if is_2_6_28() => broadcast_on_stack(targets, call),
        None => serial(targets, call),
    }
    Ok(())
}

fn broadcast(record: &CallMany, targets: Mask, call: &Call, flags: u32) {
    record.single.flags.store(flags, Ordering::Relaxed);
    record.fill(call, targets);
    root().call.queue.add_last(record);
    if is_2_6_28() {
        arch::send_call_function(targets);
    } else {
        fence(Ordering::SeqCst);
        // The record's own mask, which handlers may have narrowed by now; 2.6.28 sends to the caller's copy.
        arch::send_call_function(record.mask.get());
    }
}

fn wait_for_completion(record: &CallMany) {
    wait_until!("call_many", "", "flag WAIT", COMPLETION, record.flag_clear(WAIT), equal);
}

/// 2.6.28 without memory: the caller's wait argument is forced to 1.
fn broadcast_on_stack(targets: Mask, call: Call) {
    event::record(EventKind::FALLBACK, Fallback::STACK_BROADCAST.0, call.number, 0);
    let record = arena::on_stack::<CallMany>("cfd");
    broadcast(&record, targets, &call, WAIT);
    wait_for_completion(&record);
    quiesce(targets, &call);
}

/// smp_call_function_mask_quiesce_stack(): somebody may still walk over the record on the stack. Once each target has run
/// something else, nobody does.
fn quiesce(targets: Mask, call: &Call) {
    let dummy = Call { function: Function { run: quiesced, info: 0 }, ..*call };
    let record = arena::on_stack::<CallSingle>("csd");
    for target in targets.iter() {
        record.flags.store(WAIT, Ordering::Relaxed);
        exec_single(target, &record, &dummy);
        wait_until!("quiesce_stack", "", "flag WAIT", COMPLETION, record.flag_clear(WAIT), equal);
    }
}

fn quiesced(_info: u64) {}

/// 2.6.29 without memory: one target after the other, lowest first.
fn serial(targets: Mask, call: Call) {
    event::record(EventKind::FALLBACK, Fallback::SERIAL.0, call.number, 0);
    for target in targets.iter() {
        // The targets are online: nothing takes them down.
        let _ = super::single(target, call.function, call.wait);
    }
}

/// generic_smp_call_function_single_interrupt(). Interrupts are off.
///
/// 2.6.28 has full barriers here; 2.6.29 only orders dependent reads, for which x86 needs nothing.
pub(super) fn single_interrupt() {
    let inbox = Inbox::own();
    receiver_barrier();
    // The test takes no lock: a record that is just being added is seen here or brings its own interrupt.
    while !inbox.is_empty() {
        let list = Link::new();
        inbox.take_all(&list);
        while !list.is_empty() {
            let record = CallSingle::of(list.next());
            record.link.remove();
            run_single(record);
        }
        receiver_barrier();
    }
}

fn receiver_barrier() {
    if is_2_6_28() {
        fence(Ordering::SeqCst);
    }
}

/// The flags are read before the callback: behind it, a record without WAIT may be gone.
fn run_single(record: &'static CallSingle) {
    let held = Held::now(record);
    let flags = record.flags.load(Ordering::Relaxed);
    let work = record.work();
    if flags & RELEASE != 0 && handler_knows_release() && !flips::is(flip::NO_RELEASE_CLEAR) {
        record.clear(RELEASE);
    }
    work.run();
    if flags & WAIT != 0 {
        held.touch("call_function_single_interrupt");
        record.clear(WAIT);
    } else if flags & ALLOC != 0 {
        pool::free(record.address());
    }
}

/// generic_smp_call_function_interrupt(). Interrupts are off; that is the read side of RCU here, as on the classic one.
pub(super) fn multi_interrupt() {
    let me = this::vcpu();
    root().call.queue.walk(|record| {
        if record.mask.contains(me) {
            run_many(record, me);
        }
    });
}

fn run_many(record: &'static CallMany, me: usize) {
    let held = Held::now(record);
    record.single.work().run();
    held.touch("call_function_interrupt");
    record.unfinished.remove(me);
    record.lock.lock();
    record.mask.remove(me);
    let refs = record.refs.load(Ordering::Relaxed) - 1;
    record.refs.store(refs, Ordering::Relaxed);
    record.lock.unlock();
    if refs != 0 {
        return;
    }
    root().call.queue.remove(record);
    let flags = || record.single.flags.load(Ordering::Relaxed);
    if flags() & WAIT != 0 {
        record.single.clear(WAIT);
        held.touch("call_function_interrupt");
    }
    // Read anew, as in the original: the waiter may be gone by now, and the record on its stack with it. It is why 2.6.28
    // quiesces before it returns.
    if flags() & ALLOC != 0 {
        rcu::call_rcu(record.single.address(), &record.rcu);
    }
}
