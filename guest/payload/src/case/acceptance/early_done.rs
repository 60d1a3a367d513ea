//! C19: those that are to stop say that they have before they have.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::arena::{Held, Shared};
use stallbench_rt::wait::Condition;
use stallbench_rt::{arena, cpu, pause_point, this, wait_until, words as names};

use super::{case, expect_ok, is_fixed, others};
use crate::call::{self, Function};

case!(
    EARLY_DONE,
    "early-done",
    "one vCPU stops all others and takes back the memory that they used",
    [CALL, APIC, FIX],
    run
);

/// What the stopping vCPUs and their initiator share.
#[repr(C)]
struct Stop {
    /// vCPUs that are still online.
    online: AtomicU32,
    /// 1 when a vCPU has come to its HLT.
    halted: AtomicU32,
}

// SAFETY: atomics, valid when zero.
unsafe impl Shared for Stop {}

/// What the next kernel has in the same memory.
#[repr(C)]
struct Kernel {
    entry: AtomicU32,
    page: AtomicU32,
}

// SAFETY: atomics, valid when zero.
unsafe impl Shared for Kernel {}

fn run() {
    if this::is_initiator() {
        stop_other_cpus();
        kexec();
    }
}

fn stop_other_cpus() {
    let stop = arena::on_stack::<Stop>("stop");
    stop.online.store(others().count(), Ordering::SeqCst);
    expect_ok(call::all(Function { run: stop_this_cpu, info: stop.reference() }, false));
    let stopped = Condition::of(&stop.online, 0).count(others());
    wait_until!("stop_other_cpus", "", "CPUs online", COUNT, stopped, equal);
}

/// The memory of those that have stopped is another's now.
fn kexec() {
    let kernel = arena::on_stack::<Kernel>("kernel");
    kernel.entry.store(1, Ordering::SeqCst);
    names::name("page", &kernel.page);
    pause_point!("kexec/loaded");
}

/// In the interrupt of every other vCPU. The fix is the order of the two.
fn stop_this_cpu(info: u64) {
    // SAFETY: the initiator's record; it keeps it until all have said that they are done.
    let stop = unsafe { Held::<Stop>::of(info) };
    if is_fixed() {
        flush_and_halt(&stop);
        say_done(&stop);
    } else {
        say_done(&stop);
        flush_and_halt(&stop);
    }
}

fn say_done(stop: &Held<Stop>) {
    stop.touch("say_done");
    stop.online.fetch_sub(1, Ordering::SeqCst);
    pause_point!("stop_this_cpu/done");
}

fn flush_and_halt(stop: &Held<Stop>) {
    cpu::write_back_and_invalidate_caches();
    stop.touch("stop_this_cpu");
    stop.halted.store(1, Ordering::SeqCst);
}
