//! C20: one CPU takes the crash dump, another panics too and stops it.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::layout::vector;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, boot, bring_up, pause_point, this, wait_until, words};

use super::{is_fixed, words};
use crate::call;
use crate::case::case;

case!(
    KDUMP,
    "kdump",
    "two vCPUs panic: the first takes the dump, the second stops all others by NMI",
    [APIC, SPIN, FIX],
    kdump
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// vCPUs that have set their handler.
    ready: AtomicU32,
    /// `panic_lock`: number plus one of the vCPU that panicked first.
    panic_lock: AtomicU32,
    /// `kexec_mutex`: number plus one of the vCPU that takes the dump.
    kexec_owner: AtomicU32,
    /// vCPUs that were stopped.
    stopped: AtomicU32,
    /// 1 once the dump is taken and the machine starts anew: what everybody else waits for.
    rebooted: AtomicU32,
    reserved: AtomicU32,
}

fn kdump() {
    let shared = &words().kdump;
    this::set_handler(vector::NMI, stop_this_cpu);
    if this::vcpu() == 0 {
        words::name("kexec_owner", &shared.kexec_owner);
        words::name("stopped", &shared.stopped);
        words::name("rebooted", &shared.rebooted);
    }
    shared.ready.fetch_add(1, Ordering::SeqCst);
    if this::vcpu() == 0 || this::vcpu() == boot::vcpus() - 1 {
        bring_up::take_part();
        let all_ready = Condition::of(&shared.ready, boot::vcpus() as u32).count(call::others());
        wait_until!("kdump", "", "vCPUs ready", COUNT, all_ready, equal);
        pause_point!("panic/begin");
        panic();
    }
}

/// panic(). The fix: one CPU alone goes through it, any other stops itself.
fn panic() {
    let shared = &words().kdump;
    if is_fixed() && !take(&shared.panic_lock) {
        return wait_for_reboot(&shared.panic_lock);
    }
    if take(&shared.kexec_owner) {
        return crash_kexec();
    }
    smp_send_stop();
    wait_for_reboot(&shared.kexec_owner);
}

/// Whether this vCPU is the first to ask for it.
fn take(lock: &AtomicU32) -> bool {
    lock.compare_exchange(0, this::vcpu() as u32 + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

/// crash_kexec(): takes the dump, and starts the machine anew.
fn crash_kexec() {
    pause_point!("crash_kexec/dumping");
    words().kdump.rebooted.store(1, Ordering::SeqCst);
}

/// smp_send_stop(), by NMI.
fn smp_send_stop() {
    let others = call::others();
    let shared = &words().kdump;
    others.iter().for_each(apic::send_nmi);
    let stopped = Condition::of(&shared.stopped, others.count()).count(others);
    wait_until!("smp_send_stop", "", "stopped", COUNT, stopped, equal);
}

/// stop_this_cpu(), in an NMI.
fn stop_this_cpu() {
    let shared = &words().kdump;
    shared.stopped.fetch_add(1, Ordering::SeqCst);
    this::progress();
    wait_for_reboot(&shared.kexec_owner);
}

/// A CPU that is stopped does nothing more until who holds the lock starts the machine anew.
fn wait_for_reboot(lock: &AtomicU32) {
    let owner = lock.load(Ordering::SeqCst) as usize - 1;
    let rebooted = Condition::of(&words().kdump.rebooted, 1).any(Mask::one(owner));
    wait_until!("stop_this_cpu", "", "reboot", GATE, rebooted, equal);
}
