//! `mtrr_mutex`: initiators queue up, so that two rendezvous never cross (arch/x86/kernel/cpu/mtrr/main.c).
//!
//! In the original a waiter sleeps. Here it spins with interrupts on, which is what matters: it is a target of the rendezvous of
//! whoever holds the mutex, and has to come to that.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::flip;
use stallbench_rt::wait::Condition;
use stallbench_rt::{this, wait_until};

use crate::flip as flips;

/// A mutex whose word says who holds it: 0 when free, else the number of its holder plus one.
#[derive(Debug)]
#[repr(transparent)]
pub struct Mutex(AtomicU32);

impl Mutex {
    /// The word of the mutex, to be [named](stallbench_rt::words::name).
    pub fn word(&self) -> &AtomicU32 {
        &self.0
    }

    /// Runs `work` with the mutex held.
    pub fn with(&self, work: impl FnOnce()) {
        if flips::is(flip::NO_MUTEX) {
            work();
            return;
        }
        let me = this::vcpu() as u32 + 1;
        while self.0.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait();
        }
        work();
        self.0.store(0, Ordering::Release);
    }

    #[inline(never)]
    fn wait(&self) {
        wait_until!("mutex_lock", "", "mtrr_mutex", LOCK, Condition::of(&self.0, 0).holder(), equal);
    }
}
