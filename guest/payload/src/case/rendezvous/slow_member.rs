//! C30: one CPU is slow inside stop_machine(), and the watchdog of another fires.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::wait::Condition;
use stallbench_rt::{cpu, pause_point, this, wait_bounded, words};

use super::{is_fixed, words};
use crate::call::{self, Function};
use crate::case::case;

/// Turns of a spin after which the watchdog takes it for a lockup.
const WATCHDOG_TURNS: u64 = 2000;

case!(
    SLOW_MEMBER,
    "slow-member",
    "one vCPU is slow in stop_machine() while the others wait for it, interrupts off, each under its watchdog",
    [CALL, APIC, INITIATOR, SPIN, FIX],
    slow_member
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// `thread_ack`: vCPUs that have still to be through with the present state.
    thread_ack: AtomicU32,
    /// Number plus one of the vCPU whose watchdog fired first.
    blamed: AtomicU32,
}

fn slow_member() {
    if !this::is_initiator() {
        return;
    }
    let shared = &words().slow_member;
    words::name("thread_ack", &shared.thread_ack);
    words::name("blamed", &shared.blamed);
    shared.thread_ack.store(call::online().count(), Ordering::SeqCst);
    assert!(call::all(Function { run: multi_cpu_stop, info: 0 }, false).is_ok());
    multi_cpu_stop(0);
}

/// The last state of multi_cpu_stop(): one vCPU runs the function, all others have nothing to do but to wait until it is through.
fn multi_cpu_stop(_info: u64) {
    let were = cpu::disable_interrupts();
    // Of the one that runs the function, a printk() over a slow serial line.
    pause_point!("multi_cpu_stop/run");
    words().slow_member.thread_ack.fetch_sub(1, Ordering::SeqCst);
    wait_for_all();
    cpu::restore_interrupts(were);
}

/// The spin of multi_cpu_stop(), as long as the watchdog lets it. The fix: touch_nmi_watchdog() in each turn; whoever waits is
/// not the one that is stuck.
fn wait_for_all() {
    let all_through = Condition::of(&words().slow_member.thread_ack, 0).count(call::others());
    while !wait_bounded!("multi_cpu_stop", "", "thread_ack", COUNT, all_through, WATCHDOG_TURNS) {
        if !is_fixed() {
            hard_lockup();
        }
        pause_point!("watchdog/touched");
    }
}

fn hard_lockup() -> ! {
    let me = this::vcpu() as u32;
    let _ = words().slow_member.blamed.compare_exchange(0, me + 1, Ordering::SeqCst, Ordering::SeqCst);
    pause_point!("watchdog/fired");
    panic!("watchdog: hard lockup on vCPU {me}");
}
