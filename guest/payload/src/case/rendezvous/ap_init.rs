//! C29: an application processor gets its MTRRs without a rendezvous.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::INITIATOR;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, this, wait_until, words};

use super::{is_fixed, words};
use crate::case::case;
use crate::mtrr::generic::{self, Range};
use crate::mtrr::{REPLICATE, set_mtrr};

case!(
    AP_INIT,
    "mtrr-ap-init",
    "all vCPUs get the MTRRs of the initiator, each by itself or in one rendezvous",
    [CALL, APIC, INITIATOR, SPIN, MTRR, FIX],
    ap_init
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// 1 once the initiator's registers are saved.
    saved: AtomicU32,
    /// vCPUs that programmed theirs by themselves.
    alone: AtomicU32,
}

fn ap_init() {
    let shared = &words().ap_init;
    if this::is_initiator() {
        words::name("alone", &shared.alone);
        this::set_up(generic::set_own_and_save);
        shared.saved.store(1, Ordering::SeqCst);
    }
    if !is_fixed() {
        mtrr_ap_init();
    } else if this::is_initiator() {
        mtrr_aps_init();
    }
}

/// mtrr_ap_init() as it was: each processor on its way up, with interrupts off and without the others.
fn mtrr_ap_init() {
    if this::is_initiator() {
        return;
    }
    bring_up::take_part();
    let shared = &words().ap_init;
    let initiator = Mask::one(boot::knob(&INITIATOR) as usize);
    wait_until!("mtrr_ap_init", "", "saved", GATE, Condition::of(&shared.saved, 1).any(initiator), equal);
    shared.alone.fetch_add(1, Ordering::SeqCst);
    generic::set_all(false);
}

/// The fix: mtrr_aps_init(), once all are up, in a rendezvous.
fn mtrr_aps_init() {
    set_mtrr(Range { register: REPLICATE, base: 0, size: 0, memory_type: 0 });
}
