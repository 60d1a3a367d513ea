//! C31: a call to a CPU that the hypervisor does not run for a while.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, pause_point, this, wait_bounded, wait_until, words};

use super::{is_fixed, words};
use crate::call::{self, Function};
use crate::case::case;

/// `smp.panic_on_ipistall`, in turns of a spin.
const PANIC_ON_IPISTALL: u64 = 2000;

case!(
    LATE_CALLEE,
    "late-callee",
    "a call to the last vCPU, whose completion is waited for with a limit or with none",
    [CALL, APIC, SPIN, FIX],
    late_callee
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// `CSD_FLAG_LOCK` of the call.
    csd_lock: AtomicU32,
    reserved: AtomicU32,
}

fn late_callee() {
    if this::vcpu() != 0 {
        return;
    }
    let target = boot::vcpus() - 1;
    let lock = &words().late_callee.csd_lock;
    words::name("csd_lock", lock);
    pause_point!("csd_lock_wait/begin");
    lock.store(1, Ordering::SeqCst);
    assert!(call::single(target, Function { run: unlocks, info: 0 }, false).is_ok());
    csd_lock_wait(target, lock);
}

/// csd_lock_wait(). The fix: patience (`panic_on_ipistall=0`); no time tells a callee that is late from one that never comes.
fn csd_lock_wait(target: usize, lock: &AtomicU32) {
    let unlocked = Condition::of(lock, 0).any(Mask::one(target));
    if is_fixed() {
        wait_until!("csd_lock_wait", "", "flag LOCK", COMPLETION, unlocked, equal);
    } else if !wait_bounded!("csd_lock_wait", "", "flag LOCK", COMPLETION, unlocked, PANIC_ON_IPISTALL) {
        panic!("csd: CSD lock of vCPU {target} not released: panic_on_ipistall");
    }
}

/// On the target.
fn unlocks(_info: u64) {
    words().late_callee.csd_lock.store(0, Ordering::SeqCst);
}
