//! C10: a call to the members of a mask that leave it while the call is being made.

use core::sync::atomic::Ordering;

use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::{bring_up, pause_point, this, words};

use crate::call::{self, Function};
use crate::case::{case, count_down};
use crate::root::root;

case!(
    LIVE_MASK,
    "live-mask",
    "a synchronous call to all of a mask, which another vCPU clears meanwhile",
    [CALL, REFS, APIC],
    live_mask
);

/// Who calls, and who clears the mask.
const CALLER: usize = 0;
const CLEARER: usize = 1;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// CPUs that may have translations of an address space (`mm_cpumask()`): they leave it by themselves.
    users: SharedMask,
}

impl Words {
    /// All use the address space, from before the first of them is up.
    pub(super) fn place(&self) {
        (0..stallbench_rt::boot::vcpus()).for_each(|vcpu| self.users.insert(vcpu));
    }
}

fn live_mask() {
    let words = &root().records;
    match this::vcpu() {
        CALLER => {
            let (flags, refs) = call::own_many(CALLER).flags_and_refs();
            words::name("lock", flags);
            words::name("refs", refs);
            words::name("left", &words.left);
            words.left.store(call::others().count(), Ordering::Relaxed);
            let flush = Function { run: flush_translations, info: 0 };
            assert!(call::many_of(&words.live_mask.users, flush, true).is_ok());
        }
        CLEARER => {
            bring_up::take_part();
            pause_point!("leave_mm/begin");
            words.live_mask.users.set(Mask::default());
            pause_point!("leave_mm/end");
        }
        _ => {}
    }
}

fn flush_translations(_info: u64) {
    count_down(&root().records.left);
}
