//! C09: one counter for the barrier in front of a microcode update and for the one behind it.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, cpu, pause_point, this, wait_until, words};

use super::{is_fixed, words};
use crate::call::{self, Function};
use crate::case::case;

case!(
    BOTH_BARRIERS,
    "both-barriers",
    "microcode is loaded on all vCPUs at once, with a barrier before and a barrier behind it",
    [CALL, APIC, INITIATOR, SPIN, FIX],
    both_barriers
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// `late_cpus`; with the fix `late_cpus_in`.
    late_cpus: AtomicU32,
    /// `late_cpus_out`.
    late_cpus_out: AtomicU32,
    /// Updates done.
    updated: AtomicU32,
    reserved: AtomicU32,
}

fn both_barriers() {
    if !this::is_initiator() {
        return;
    }
    let shared = &words().both_barriers;
    words::name("late_cpus", &shared.late_cpus);
    words::name("updated", &shared.updated);
    shared.late_cpus.store(boot::vcpus() as u32, Ordering::SeqCst);
    shared.late_cpus_out.store(boot::vcpus() as u32, Ordering::SeqCst);
    assert!(call::all(Function { run: in_stop_machine, info: 0 }, false).is_ok());
    reload_late();
}

fn in_stop_machine(_info: u64) {
    reload_late();
}

/// __reload_late(). As it was, who leaves counts itself back in, so that the counter is whole for the next update.
fn reload_late() {
    let shared = &words().both_barriers;
    let were = cpu::disable_interrupts();
    shared.late_cpus.fetch_sub(1, Ordering::SeqCst);
    pause_point!("reload_late/entered");
    wait_until!("reload_late", "enter", "late CPUs", COUNT, zero(&shared.late_cpus), equal);
    shared.updated.fetch_add(1, Ordering::SeqCst);
    if is_fixed() {
        shared.late_cpus_out.fetch_sub(1, Ordering::SeqCst);
    } else {
        shared.late_cpus.fetch_add(1, Ordering::SeqCst);
    }
    pause_point!("reload_late/updated");
    if is_fixed() {
        wait_until!("reload_late", "leave", "late CPUs", COUNT, zero(&shared.late_cpus_out), equal);
    }
    cpu::restore_interrupts(were);
}

fn zero(counter: &AtomicU32) -> Condition {
    Condition::of(counter, 0).count(call::others())
}
