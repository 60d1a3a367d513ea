//! A spin lock whose word says who holds it.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::arena::Shared;
use crate::cpu::{self, InterruptsWere};
use crate::wait::Condition;
use crate::{this, wait_until};

/// A spin lock: 0 when free, else the number of its holder plus one.
#[derive(Debug)]
#[repr(transparent)]
pub struct SpinLock(AtomicU32);

// SAFETY: one atomic, valid when zero.
unsafe impl Shared for SpinLock {}

impl SpinLock {
    /// Takes the lock.
    pub fn lock(&self) {
        while !self.try_lock() {
            self.wait_until_free();
        }
    }

    /// Takes the lock if it is free: whether it was.
    pub fn try_lock(&self) -> bool {
        let me = this::vcpu() as u32 + 1;
        self.0.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// The word of the lock, to be [named](crate::words::name).
    pub fn word(&self) -> &AtomicU32 {
        &self.0
    }

    /// Waits until somebody has given the lock back.
    #[inline(never)]
    pub fn wait_until_free(&self) {
        wait_until!("spin_lock", "", "lock", LOCK, Condition::of(&self.0, 0).holder(), equal);
    }

    /// Gives the lock back.
    pub fn unlock(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Takes the lock with interrupts off.
    pub fn lock_and_disable_interrupts(&self) -> InterruptsWere {
        let were = cpu::disable_interrupts();
        self.lock();
        were
    }

    /// Gives the lock back and leaves interrupts as they were before it.
    pub fn unlock_and_restore_interrupts(&self, were: InterruptsWere) {
        self.unlock();
        cpu::restore_interrupts(were);
    }
}
