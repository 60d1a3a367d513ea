//! What the layers until 2013 queue calls on: an inbox for each CPU, and one list for all multi-target calls.

use core::sync::atomic::{Ordering, fence};

use stallbench_rt::arena::{self, Held};
use stallbench_rt::list::Link;
use stallbench_rt::lock::SpinLock;
use stallbench_rt::this;

use super::arch;
use super::record::{CallMany, CallSingle};
use crate::root::root;

/// `call_single_queue`: the single-target calls for one CPU, oldest first.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Inbox {
    list: Link,
    lock: SpinLock,
}

// SAFETY: atomics; zero until `init`.
unsafe impl arena::Shared for Inbox {}

/// `call_function_queue`: the multi-target calls of all. Changed under the lock, walked without it.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Queue {
    list: Link,
    lock: SpinLock,
}

impl Inbox {
    pub(super) fn init(&self) {
        self.list.init();
    }

    /// This vCPU's.
    pub(super) fn own() -> &'static Self {
        root().call.inboxes.get(this::vcpu())
    }

    /// Whether there is nothing in it; takes no lock.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Moves all that is in it to `list`, under the lock.
    pub(super) fn take_all(&self, list: &Link) {
        self.lock.lock();
        self.list.move_all(list);
        self.lock.unlock();
    }
}

/// Puts a record into the inbox of `target`, and interrupts it only if there was nothing in it: generic_exec_single() but for
/// its wait. `barrier` orders the record before the interrupt (smp_mb()), where the original has it.
pub(super) fn send(target: usize, record: &CallSingle, barrier: bool) {
    record.record_queued(target);
    let inbox = root().call.inboxes.get(target);
    let were = inbox.lock.lock_and_disable_interrupts();
    let was_empty = inbox.list.is_empty();
    inbox.list.add_tail(&record.link);
    inbox.lock.unlock_and_restore_interrupts(were);
    if barrier {
        fence(Ordering::SeqCst);
    }
    if was_empty {
        arch::send_call_function_single(target);
    }
}

impl Queue {
    pub(super) fn init(&self) {
        self.list.init();
    }

    /// Adds a record behind the others (list_add_tail_rcu()).
    pub(super) fn add_last(&self, record: &CallMany) {
        record.record_queued();
        let were = self.lock.lock_and_disable_interrupts();
        self.list.add_tail(&record.single.link);
        self.lock.unlock_and_restore_interrupts(were);
    }

    /// Adds a record before the others: a walker that stands on its earlier use revisits entries rather than missing any.
    /// Interrupts are off.
    pub(super) fn add_first(&self, record: &CallMany) {
        record.record_queued();
        self.add_first_with(record, || ());
    }

    /// The same, with something that is to happen under the lock once the record is on the list.
    pub(super) fn add_first_with(&self, record: &CallMany, under_lock: impl FnOnce()) {
        self.lock.lock();
        self.list.add_head(&record.single.link);
        under_lock();
        self.lock.unlock();
    }

    /// Takes a record out. As in the original this leaves interrupts as the callback left them.
    pub(super) fn remove(&self, record: &CallMany) {
        self.lock.lock();
        record.single.link.remove();
        self.lock.unlock();
    }

    /// Visits every record, without the lock, while others add and remove.
    pub(super) fn walk(&self, mut visit: impl FnMut(&'static CallMany)) {
        let head = core::ptr::from_ref(&self.list) as u64;
        let mut link = self.list.next();
        while link != head {
            let record = CallMany::of(link);
            let held = Held::now(record);
            visit(record);
            held.touch("call_function_interrupt");
            link = record.single.link.next();
        }
    }
}
