//! The records of calls, and running what they ask for.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use stallbench_abi::event::{EventKind, LIST_OF_ALL};
use stallbench_rt::list::Link;
use stallbench_rt::lock::SpinLock;
use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::wait::Condition;
use stallbench_rt::{arena, event, this};

use super::{Call, Function, with_interrupts_off};
use crate::rcu;

/// `call_single_data`: one function for one target. The link is its first field, so that a link's address is its record's.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct CallSingle {
    pub(super) link: Link,
    function: AtomicU64,
    info: AtomicU64,
    pub(super) flags: AtomicU32,
    /// Who made the call and whom it is for, plus one, and the call's number: instrumentation, no decision reads them.
    caller: AtomicU32,
    target: AtomicU32,
    reserved: AtomicU32,
    number: AtomicU64,
}

// SAFETY: atomics, valid when zero.
unsafe impl arena::Shared for CallSingle {}

/// `call_function_data`: one function for many targets. The single record is its first field.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct CallMany {
    pub(super) single: CallSingle,
    pub(super) lock: SpinLock,
    /// Targets that have still to run it.
    pub(super) refs: AtomicU32,
    /// Targets that have still to look at it.
    pub(super) mask: SharedMask,
    /// Targets that have still to be through with it: instrumentation, no decision reads it.
    pub(super) unfinished: SharedMask,
    pub(super) rcu: rcu::Head,
}

// SAFETY: atomics, valid when zero.
unsafe impl arena::Shared for CallMany {}

/// A function to run, copied out of its record: the record may be gone once somebody was told so.
#[derive(Clone, Copy)]
pub(super) struct Work {
    function: u64,
    info: u64,
    caller: u32,
    number: u64,
}

impl CallSingle {
    /// The record of a link.
    pub(super) fn of(link: u64) -> &'static Self {
        // SAFETY: call layers queue links of records alone, which lie in the arena, whose memory stays mapped for ever.
        unsafe { &*(link as *const Self) }
    }

    /// Address of the record.
    pub(super) fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }

    /// Fills the record in; flags are the layer's.
    pub(super) fn fill(&self, call: &Call, target: Option<usize>) {
        self.function.store(call.function.run as usize as u64, Ordering::Relaxed);
        self.info.store(call.function.info, Ordering::Relaxed);
        self.caller.store(this::vcpu() as u32 + 1, Ordering::Relaxed);
        self.target.store(target.map_or(0, |target| target as u32 + 1), Ordering::Relaxed);
        self.number.store(call.number, Ordering::Relaxed);
    }

    /// Its flags, for reports.
    pub(crate) fn flags(&self) -> &AtomicU32 {
        &self.flags
    }

    /// Number of the call that last filled it in.
    pub(super) fn call_number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// What it asks for.
    pub(super) fn work(&self) -> Work {
        Work {
            function: self.function.load(Ordering::Acquire),
            info: self.info.load(Ordering::Relaxed),
            caller: self.caller.load(Ordering::Relaxed),
            number: self.number.load(Ordering::Relaxed),
        }
    }

    /// Waits for flags of this record to be clear are for its target.
    pub(super) fn flag_clear(&self, flag: u32) -> Condition {
        let target = self.target.load(Ordering::Relaxed);
        let awaits = if target == 0 { Mask::default() } else { Mask::one(target as usize - 1) };
        Condition::of(&self.flags, 0).bits(flag).any(awaits).record(self.address(), self.call_number())
    }

    /// Clears flags, after everything that was done before (smp_wmb(), or a release).
    pub(super) fn clear(&self, flag: u32) {
        self.flags.store(self.flags.load(Ordering::Relaxed) & !flag, Ordering::Release);
    }

    /// Records that it is about to be put on the queue of a vCPU: behind that come the stores that the protocol itself orders.
    pub(super) fn record_queued(&self, target: usize) {
        event::record(EventKind::QUEUE, target as u32, self.address(), self.call_number());
    }
}

impl CallMany {
    /// The record of a link.
    pub(super) fn of(link: u64) -> &'static Self {
        // SAFETY: as for `CallSingle::of`; the list of all holds records of this kind alone.
        unsafe { &*(link as *const Self) }
    }

    /// The flags, and the number of targets that have still to run it, for reports.
    pub(crate) fn flags_and_refs(&self) -> (&AtomicU32, &AtomicU32) {
        (&self.single.flags, &self.refs)
    }

    /// Waits for flags of this record to be clear are for all targets that are not through with it.
    pub(super) fn flag_clear(&self, flag: u32) -> Condition {
        self.single.flag_clear(flag).remaining(&self.unfinished)
    }

    /// Fills the record in for these targets.
    pub(super) fn fill(&self, call: &Call, targets: Mask) {
        self.refs.store(targets.count(), Ordering::Relaxed);
        self.fill_but_refs(call, targets);
    }

    /// Fills the record in, but for the number of targets that have still to run it.
    pub(super) fn fill_but_refs(&self, call: &Call, targets: Mask) {
        self.single.fill(call, None);
        self.mask.set(targets);
        self.unfinished.set(targets);
    }

    /// Records that it is about to be put on the list of all.
    pub(super) fn record_queued(&self) {
        event::record(EventKind::QUEUE, LIST_OF_ALL, self.single.address(), self.single.call_number());
    }
}

impl Work {
    /// Runs it.
    pub(super) fn run(self) {
        event::record(EventKind::CALLBACK, self.caller.wrapping_sub(1), self.number, self.function);
        this::progress();
        // SAFETY: `CallSingle::fill` stored a `fn(u64)`. In a record that is dead it may be anything: then this faults, as the
        // protocol that left it there deserves.
        let run: fn(u64) = unsafe { core::mem::transmute(self.function as usize) };
        run(self.info);
        event::record(EventKind::CALLBACK_END, 0, self.number, 0);
        this::progress();
    }
}

/// Runs a call's function on the caller, with interrupts off, as all layers do for a caller that is its own target.
pub(super) fn run_here(call: Call) {
    let Function { run, info } = call.function;
    let work = Work { function: run as usize as u64, info, caller: this::vcpu() as u32 + 1, number: call.number };
    with_interrupts_off(|| work.run());
}
