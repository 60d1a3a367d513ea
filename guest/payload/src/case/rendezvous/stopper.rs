//! The stoppers of kernel/stop_machine.c: on each CPU a thread of the highest priority that runs the works of its queue, one
//! after the other in the order they came, and multi_cpu_stop(), the work in which all that got it meet.
//!
//! Here a vCPU that has nothing else to do is its stopper: it serves as many works as the case has for it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use stallbench_rt::arena::{self, SharedArray};
use stallbench_rt::lock::SpinLock;
use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, cpu, this, wait_until};

/// Most works that a queue ever gets.
const WORKS: usize = 4;

/// The stoppers of all vCPUs.
#[repr(C)]
pub(super) struct Shared {
    of: SharedArray<Stopper>,
}

/// `cpu_stopper`.
#[repr(C, align(64))]
pub(super) struct Stopper {
    lock: SpinLock,
    /// Works that it has not taken yet.
    waiting: AtomicU32,
    queued: AtomicU32,
    taken: AtomicU32,
    works: [AtomicU64; WORKS],
}

// SAFETY: atomics, valid when zero.
unsafe impl arena::Shared for Stopper {}

/// `multi_stop_data`: a work in which several vCPUs meet.
#[repr(C)]
pub(super) struct MultiStop {
    /// How many have not come yet.
    pub(super) missing: AtomicU32,
    reserved: AtomicU32,
    /// Who they are.
    absent: SharedMask,
}

impl Shared {
    pub(super) fn place(&self) {
        self.of.place(boot::vcpus());
    }

    /// The stopper of a vCPU.
    pub(super) fn of(&self, vcpu: usize) -> &'static Stopper {
        self.of.get(vcpu)
    }
}

impl Stopper {
    /// Guards the queue.
    pub(super) fn lock(&self) {
        self.lock.lock();
    }

    /// Gives the queue free.
    pub(super) fn unlock(&self) {
        self.lock.unlock();
    }

    /// cpu_stop_queue_work().
    pub(super) fn queue(&self, work: &'static MultiStop) {
        self.lock();
        self.queue_locked(work);
        self.unlock();
    }

    /// __cpu_stop_queue_work(): the queue is locked.
    pub(super) fn queue_locked(&self, work: &'static MultiStop) {
        let slot = self.queued.fetch_add(1, Ordering::Relaxed) as usize;
        self.works[slot % WORKS].store(core::ptr::from_ref(work) as u64, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    fn take(&self) -> &'static MultiStop {
        self.lock();
        let slot = self.taken.fetch_add(1, Ordering::Relaxed) as usize;
        let work = self.works[slot % WORKS].load(Ordering::Relaxed);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.unlock();
        // SAFETY: `queue_locked` stored the address of a static work.
        unsafe { &*(work as *const MultiStop) }
    }
}

/// cpu_stopper_thread() of this vCPU, for so many works of these vCPUs.
pub(super) fn serve(works: u32, from: Mask) {
    let own = super::words().stoppers.of(this::vcpu());
    for _ in 0..works {
        let queued = Condition::of(&own.waiting, 0).any(from);
        wait_until!("cpu_stopper_thread", "", "works", GATE, queued, different);
        own.take().multi_cpu_stop();
    }
}

impl MultiStop {
    /// Says who is to meet.
    pub(super) fn prepare(&self, members: Mask) {
        self.missing.store(members.count(), Ordering::Relaxed);
        self.absent.set(members);
    }

    /// multi_cpu_stop(): interrupts off, and on when all have come.
    fn multi_cpu_stop(&self) {
        let were = cpu::disable_interrupts();
        self.absent.remove(this::vcpu());
        self.missing.fetch_sub(1, Ordering::SeqCst);
        this::progress();
        let all_came = Condition::of(&self.missing, 0).remaining(&self.absent);
        wait_until!("multi_cpu_stop", "", "missing", COUNT, all_came, equal);
        cpu::restore_interrupts(were);
    }
}
