//! C33: work_on_cpu() through a queue. Who waits for work waits for all the work before it, and for what that waits for.
//!
//! ```text
//! caller: takes lock L;  work_on_cpu(1, work), which queues it and waits;  gives L back
//! other:  queues work of its own for CPU 1, which takes L
//! worker: runs what is in its inbox, one after the other
//! ```
//!
//! The two works have nothing to do with each other, and the caller knows of no other that takes L.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::lock::SpinLock;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, this, wait_until, words};

use super::is_fixed;
use crate::call::{self, Function};
use crate::case::case;
use crate::root::root;

case!(
    WORK_ON_CPU,
    "work-on-cpu",
    "a caller that holds a lock waits for work on another CPU, where work that takes the lock is before it",
    [CALL, APIC, FIX],
    work_on_cpu_case
);

/// Whose part is whose. The last vCPU queues the work before the caller's; of two vCPUs the worker does that itself.
const CALLER: usize = 0;
const WORKER: usize = 1;

/// Works that the inbox holds.
const WORKS: usize = 2;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// The lock that the caller holds and the other work takes.
    lock: SpinLock,
    /// 1 once the caller holds it.
    locked: AtomicU32,
    /// Works that have been queued: one after the other, so that the inbox needs no lock.
    queued: AtomicU32,
    /// The functions of the works, by their place.
    works: [AtomicU32; WORKS],
    /// Works that have still to be done.
    left: AtomicU32,
}

impl Words {
    pub(super) fn place(&self) {
        let works = if is_fixed() { 1 } else { WORKS as u32 };
        self.left.store(works, Ordering::Relaxed);
    }
}

/// Works, by the number that the inbox holds.
const TAKES_THE_LOCK: u32 = 1;
const ENDS: u32 = 2;

fn work_on_cpu_case() {
    let me = this::vcpu();
    if me == WORKER || me == boot::vcpus() - 1 {
        bring_up::take_part();
    }
    if me == CALLER {
        call_with_the_lock();
    }
    if me == boot::vcpus() - 1 {
        queue_before();
    }
    if me == WORKER {
        work();
    }
}

fn words() -> &'static Words {
    &root().records.worker
}

fn call_with_the_lock() {
    let words = words();
    words::name("left", &words.left);
    words::name("queued", &words.queued);
    words.lock.lock();
    words.locked.store(1, Ordering::Release);
    let before = Condition::of(&words.queued, 1).any(Mask::one(boot::vcpus() - 1));
    wait_until!("caller", "", "work queued before", COUNT, before, equal);
    work_on_cpu();
    words.lock.unlock();
}

/// work_on_cpu(): runs the work on the worker's CPU and waits for its end.
fn work_on_cpu() {
    if is_fixed() {
        // A thread for this work alone: here what interrupts whatever the worker does.
        assert!(call::single(WORKER, Function { run: ends, info: 0 }, true).is_ok());
        return;
    }
    queue(ENDS);
    let words = words();
    // The works are done in order, and this is the last.
    let done = Condition::of(&words.left, 0).any(Mask::one(WORKER));
    wait_until!("work_on_cpu", "", "works not done", COMPLETION, done, equal);
}

fn ends(_info: u64) {}

fn queue(work: u32) {
    let place = words().queued.load(Ordering::Relaxed);
    words().works[place as usize].store(work, Ordering::Relaxed);
    words().queued.store(place + 1, Ordering::Release);
}

/// Somebody else's work, while the caller has the lock.
fn queue_before() {
    let locked = Condition::of(&words().locked, 1).any(Mask::one(CALLER));
    wait_until!("queue_before", "", "lock is held", GATE, locked, equal);
    queue(TAKES_THE_LOCK);
}

/// The worker: one work after the other, in its task, with interrupts on.
fn work() {
    let words = words();
    let works = words.left.load(Ordering::Relaxed);
    for place in 0..works {
        let queuer = if place == 0 { boot::vcpus() - 1 } else { CALLER };
        let empty = Condition::of(&words.queued, place).any(Mask::one(queuer));
        wait_until!("worker", "", "inbox", GATE, empty, different);
        if words.works[place as usize].load(Ordering::Relaxed) == TAKES_THE_LOCK {
            words.lock.lock();
            words.lock.unlock();
        }
        words.left.fetch_sub(1, Ordering::SeqCst);
        this::progress();
    }
}
