//! Subject `mtrr`: set_mtrr() on top of a call layer.

use stallbench_abi::knob::{self, MTRR, MTRR_BASE, MTRR_REG, MTRR_SAVED, MTRR_SIZE, MTRR_TYPE};
use stallbench_rt::{boot, this};

use super::{case, hold_pool};
use crate::mtrr::generic::{self, Range};
use crate::mtrr::{REPLICATE, name_changes, set_mtrr};

case!(
    SET_MTRR,
    "set-mtrr",
    "one vCPU changes the MTRRs of all: set_mtrr(), whose callback waits for the caller",
    [
        CALL,
        ARCH,
        ALLOC,
        ALLOC_SITE,
        APIC,
        FENCE,
        SPIN,
        INITIATOR,
        FLIP,
        MTRR,
        MTRR_REG,
        MTRR_BASE,
        MTRR_SIZE,
        MTRR_TYPE,
        BOUND,
        MTRR_SKIP,
        GLOBAL_PAGES,
        IRQ_OFF_BUDGET,
        MTRR_SAVED,
        CACHE_LINES,
        SELF_SNOOP
    ],
    set
);

fn set() {
    if !this::is_initiator() {
        return;
    }
    hold_pool();
    if boot::word(&MTRR_SAVED) != knob::mtrr_saved::LOCKED {
        name_changes();
    }
    if boot::word(&MTRR) == knob::mtrr::RANGE {
        set_mtrr(range());
    } else {
        // The initiator's own registers first: the rendezvous replicates them and leaves the initiator as it is.
        this::set_up(generic::set_own_and_save);
        set_mtrr(Range { register: REPLICATE, base: 0, size: 0, memory_type: 0 });
    }
}

/// The range that the scenario asks for.
pub(super) fn range() -> Range {
    Range {
        register: boot::knob(&MTRR_REG) as u32,
        base: boot::knob(&MTRR_BASE),
        size: boot::knob(&MTRR_SIZE),
        memory_type: u64::from(boot::word(&MTRR_TYPE)),
    }
}
