//! Linux 2.6.32 to 2.6.38: the multi-target records of 2.6.30 without their lock.
//!
//! A record is used again as soon as its last target has given it back, while other CPUs may still walk over it: so a CPU may
//! come upon a record that is being filled in. What protects it are the order of its stores and the number of references, which
//! is what the fixes of 2011 changed (knob `refs`):
//!
//! | `refs` | the references of a record | |
//! |---|---|---|
//! | `early` | are stored before the lock of the list is taken | 2.6.32 |
//! | `locked` | are stored under it | e6cd1e07a185 |
//! | `checked` | also: there must be any | 723aae25d5cd |

use core::sync::atomic::{Ordering, fence};

use stallbench_abi::knob::{REFS, refs};
use stallbench_abi::record::percpu::LOCK;
use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::{boot, cpu, pause_point, this, wait_until};

use super::percpu_lock::{lock_many, unlock};
use super::record::CallMany;
use super::{Call, CallError, arch, online};
use crate::root::root;

/// smp_call_function_many().
pub(super) fn many(targets: Mask, call: Call) -> Result<(), CallError> {
    match targets.count() {
        0 => Ok(()),
        1 => targets.first().map_or(Ok(()), |target| super::single(target, call.function, call.wait)),
        _ => {
            broadcast(targets, call);
            Ok(())
        }
    }
}

/// smp_call_function_many() with a mask that others change: it is looked at twice, first for the short cuts.
pub(super) fn many_of(mask: &SharedMask, call: Call) -> Result<(), CallError> {
    let targets = || mask.get().and(online()).without(this::vcpu());
    if targets().count() < 2 {
        return many(targets(), call);
    }
    pause_point!("call_many/counted");
    broadcast(targets(), call);
    Ok(())
}

/// smp_call_function_many() behind its short cut for a single target.
pub(super) fn broadcast(targets: Mask, call: Call) {
    let record = root().call.many.get(this::vcpu());
    lock_many(record);
    let count = targets.count();
    record.fill_but_refs(&call, targets);
    match boot::word(&REFS) {
        refs::CHECKED if count == 0 => return unlock(&record.single),
        refs::EARLY => record.refs.store(count, Ordering::Release),
        _ => {}
    }
    pause_point!("call_many/stored");
    if count != 0 {
        record.record_queued();
    }
    let were = cpu::disable_interrupts();
    root().call.queue.add_first_with(record, || {
        if boot::word(&REFS) != refs::EARLY {
            record.refs.store(count, Ordering::Release);
        }
    });
    cpu::restore_interrupts(were);
    pause_point!("call_many/queued");
    fence(Ordering::SeqCst);
    arch::send_call_function(record.mask.get());
    pause_point!("call_many/sent");
    if call.wait {
        wait_until!("call_many", "", "flag LOCK", COMPLETION, record.flag_clear(LOCK), equal);
    }
}

/// generic_smp_call_function_interrupt(). Interrupts are off.
pub(super) fn multi_interrupt() {
    let me = this::vcpu();
    pause_point!("call_function_interrupt/begin");
    fence(Ordering::SeqCst);
    root().call.queue.walk(|record| {
        pause_point!("call_function_interrupt/entry");
        // The bit first, then the references: a record that is being filled in has none yet.
        if record.mask.contains(me) && record.refs.load(Ordering::Acquire) != 0 {
            run(record, me);
        }
    });
    pause_point!("call_function_interrupt/end");
}

fn run(record: &'static CallMany, me: usize) {
    record.single.work().run();
    record.unfinished.remove(me);
    record.mask.remove(me);
    if record.refs.fetch_sub(1, Ordering::SeqCst) == 1 {
        root().call.queue.remove(record);
        unlock(&record.single);
    }
}
