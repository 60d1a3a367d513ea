//! call_rcu() and its grace period, after the classic RCU of 2.6.28 (kernel/rcuclassic.c).
//!
//! A batch of callbacks runs once every vCPU that was not idle when the batch began has passed through idle since. There the
//! scheduler's tick drives it; a payload arms no timer, so the idle loop drives it here, and the vCPU that ends a grace period
//! wakes those that have callbacks, by a reschedule interrupt, where Linux would have kept their tick.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use stallbench_abi::event::EventKind;
use stallbench_abi::layout::vector;
use stallbench_rt::arena::{self, SharedArray};
use stallbench_rt::lock::SpinLock;
use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::{apic, boot, cpu, event, this};

use crate::root::root;
use crate::{call, pool};

/// What a record needs to be freed after a grace period: the address of the next such record.
#[derive(Debug)]
#[repr(C)]
pub struct Head {
    next: AtomicU64,
}

/// The state of all vCPUs together (`rcu_ctrlblk`).
#[repr(C)]
pub struct Shared {
    lock: SpinLock,
    /// The batch that waits for its grace period, or the last that did.
    current: AtomicU32,
    /// The last batch whose grace period has ended.
    completed: AtomicU32,
    /// 1 when another batch is wanted.
    next_pending: AtomicU32,
    /// vCPUs that have still to pass through idle.
    owing: SharedMask,
    /// vCPUs that are idle: nobody waits for them (`nohz_cpu_mask`).
    idle: SharedMask,
    /// vCPUs that have callbacks.
    waiting: SharedMask,
    own: SharedArray<Own>,
}

/// The state of one vCPU (`rcu_data`); it alone uses it, with interrupts off.
#[repr(C, align(64))]
struct Own {
    /// Batch that `current` waits for.
    batch: AtomicU32,
    /// Batch that this vCPU has last seen.
    seen: AtomicU32,
    /// 1 when it has still to report that it was idle since.
    owes: AtomicU32,
    /// Records queued since the last batch.
    next: AtomicU64,
    /// Records of the batch that waits.
    current: AtomicU64,
}

// SAFETY: atomics, valid when zero.
unsafe impl arena::Shared for Own {}

impl Shared {
    pub(crate) fn place(&self) {
        self.own.place(boot::vcpus());
    }
}

/// Frees a record of the pool after a grace period; `head` is the record's. A callback may have enabled interrupts, whose
/// handlers queue records too.
pub(crate) fn call_rcu(record: u64, head: &Head) {
    let were = cpu::disable_interrupts();
    let own = root().rcu.own.get(this::vcpu());
    head.next.store(own.next.load(Ordering::Relaxed), Ordering::Relaxed);
    own.next.store(record, Ordering::Relaxed);
    root().rcu.waiting.insert(this::vcpu());
    cpu::restore_interrupts(were);
}

/// This vCPU is not idle, or no longer: from here on it may walk a list, so a grace period waits for it.
pub(crate) fn leave_idle() {
    let rcu = &root().rcu;
    if call::allocates() && rcu.idle.contains(this::vcpu()) {
        rcu.idle.remove(this::vcpu());
    }
}

/// This vCPU is idle, with interrupts off: whether there is more to do before it may halt. A call layer that allocates no record frees
/// none, and has no grace period to wait for.
pub(crate) fn idle() -> bool {
    if !call::allocates() {
        return false;
    }
    let rcu = &root().rcu;
    let own = rcu.own.get(this::vcpu());
    leave_idle();
    let busy = run_batch(rcu, own) | start_batch_if_wanted(rcu, own) | report(rcu, own);
    if busy {
        return true;
    }
    rcu.idle.insert(this::vcpu());
    // Either a batch that begins now sees that this vCPU is idle, or this vCPU sees the batch: both order store and load.
    fence(Ordering::SeqCst);
    rcu.current.load(Ordering::Relaxed) != own.seen.load(Ordering::Relaxed)
}

/// Frees the records whose grace period has ended.
fn run_batch(rcu: &Shared, own: &Own) -> bool {
    let mut record = own.current.load(Ordering::Relaxed);
    if record == 0 || is_before(rcu.completed.load(Ordering::Acquire), own.batch.load(Ordering::Relaxed)) {
        return false;
    }
    own.current.store(0, Ordering::Relaxed);
    if own.next.load(Ordering::Relaxed) == 0 {
        rcu.waiting.remove(this::vcpu());
    }
    while record != 0 {
        let next = call::rcu_head_of(record).next.load(Ordering::Relaxed);
        pool::free(record);
        record = next;
    }
    true
}

/// Makes a batch of the records queued since the last.
fn start_batch_if_wanted(rcu: &Shared, own: &Own) -> bool {
    let queued = own.next.load(Ordering::Relaxed);
    if queued == 0 || own.current.load(Ordering::Relaxed) != 0 {
        return false;
    }
    own.current.store(queued, Ordering::Relaxed);
    own.next.store(0, Ordering::Relaxed);
    rcu.lock.lock();
    own.batch.store(rcu.current.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    rcu.next_pending.store(1, Ordering::Relaxed);
    start_batch(rcu);
    rcu.lock.unlock();
    true
}

/// Begins a grace period if one is wanted and none runs (`rcu_start_batch()`). Under the lock.
fn start_batch(rcu: &Shared) {
    let current = rcu.current.load(Ordering::Relaxed);
    if rcu.next_pending.load(Ordering::Relaxed) == 0 || rcu.completed.load(Ordering::Relaxed) != current {
        return;
    }
    rcu.next_pending.store(0, Ordering::Relaxed);
    rcu.current.store(current + 1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let mut owing = arena::root().online.get();
    for vcpu in rcu.idle.get().iter() {
        owing = owing.without(vcpu);
    }
    rcu.owing.set(owing);
}

/// Reports that this vCPU has been idle in the present grace period (`rcu_check_quiescent_state()`).
fn report(rcu: &Shared, own: &Own) -> bool {
    let current = rcu.current.load(Ordering::Relaxed);
    if own.seen.load(Ordering::Relaxed) != current {
        own.seen.store(current, Ordering::Relaxed);
        own.owes.store(1, Ordering::Relaxed);
        return true;
    }
    if own.owes.load(Ordering::Relaxed) == 0 {
        return false;
    }
    own.owes.store(0, Ordering::Relaxed);
    rcu.lock.lock();
    let ended = current == rcu.current.load(Ordering::Relaxed) && quiet(rcu, current);
    rcu.lock.unlock();
    if ended {
        wake(rcu.waiting.get().without(this::vcpu()));
    }
    true
}

/// Takes this vCPU out of those that owe (`cpu_quiet()`): whether that ended the grace period. Under the lock.
fn quiet(rcu: &Shared, current: u32) -> bool {
    let running = rcu.completed.load(Ordering::Relaxed) != current;
    rcu.owing.remove(this::vcpu());
    if !running || rcu.owing.get() != Mask::default() {
        return false;
    }
    rcu.completed.store(current, Ordering::Release);
    event::record(EventKind::GRACE_PERIOD, 0, u64::from(current), 0);
    start_batch(rcu);
    true
}

fn wake(waiting: Mask) {
    for vcpu in waiting.iter() {
        apic::send(vcpu, vector::RESCHEDULE);
    }
}

fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
