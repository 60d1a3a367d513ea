//! C08: a CPU is online before it has a stopper: works for it are done without being run.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, pause_point, this, wait_until, words};

use super::{is_fixed, words};
use crate::call;
use crate::case::case;
use crate::case::mtrr::range;
use crate::mtrr::{Steps, set_mtrr_by};

case!(
    UNSERVED_STOPPER,
    "unserved-stopper",
    "the MTRRs are programmed by works for all vCPUs while the last of them comes online",
    [CALL, APIC, SPIN, MTRR, MTRR_REG, MTRR_BASE, MTRR_SIZE, MTRR_TYPE, FIX],
    unserved_stopper
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// 1 once the last vCPU is online.
    online: AtomicU32,
    /// Works that were run, and works that were only said to be done.
    run: AtomicU32,
    not_run: AtomicU32,
    reserved: AtomicU32,
    /// vCPUs whose stopper is enabled.
    enabled: SharedMask,
}

fn unserved_stopper() {
    if this::vcpu() == 0 {
        return stop_all();
    }
    if this::vcpu() == boot::vcpus() - 1 {
        cpu_up();
    }
}

/// The last vCPU comes online. The fix: its stopper first.
fn cpu_up() {
    bring_up::take_part();
    let shared = &words().unserved_stopper;
    if is_fixed() {
        shared.enabled.insert(this::vcpu());
    }
    shared.online.store(1, Ordering::SeqCst);
    pause_point!("cpu_up/online");
    shared.enabled.insert(this::vcpu());
}

/// stop_machine() for set_mtrr(), as soon as all are online.
fn stop_all() {
    let shared = &words().unserved_stopper;
    words::name("run", &shared.run);
    words::name("not_run", &shared.not_run);
    let last = boot::vcpus() - 1;
    let others = call::others();
    others.without(last).iter().for_each(|vcpu| shared.enabled.insert(vcpu));
    let online = Condition::of(&shared.online, 1).any(Mask::one(last));
    wait_until!("stop_cpus", "", "last vCPU online", GATE, online, equal);
    let mut members = Mask::default();
    for vcpu in others.iter() {
        // cpu_stop_queue_work(): where no stopper is enabled, the work is done at once.
        if shared.enabled.get().contains(vcpu) {
            members.insert(vcpu);
        } else {
            shared.not_run.fetch_add(1, Ordering::SeqCst);
        }
    }
    shared.run.store(members.count(), Ordering::SeqCst);
    set_mtrr_by(range(), Steps { called: members, counted: members, third_handshake: true });
}
