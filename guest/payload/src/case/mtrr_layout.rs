//! Subject `mtrr`: the layout of a real machine, range by range.

use stallbench_abi::knob::INVALID;
use stallbench_abi::programme;
use stallbench_rt::{boot, this};

use super::case;
use crate::mtrr::{mutex, replicate, set_mtrr};

case!(
    MTRR_LAYOUT,
    "mtrr-layout",
    "one vCPU programs a whole memory layout on all: first what all processors replicate, then each range by set_mtrr()",
    [CALL, APIC, FENCE, SPIN, INITIATOR, FLIP, LAYOUT, INVALID, EVENTS],
    layout
);

fn layout() {
    if !this::is_initiator() {
        return;
    }
    let layout = &boot::block().layout;
    mutex().with(|| replicate(&layout.whole));
    for range in layout.ranges.iter().take(layout.count as usize) {
        mutex().with(|| set_mtrr((*range).into()));
    }
    // The kernel's mtrr_add_page() refuses these before set_mtrr(); KVM does not.
    for range in programme::against_the_manual(boot::word(&INVALID)) {
        mutex().with(|| set_mtrr((*range).into()));
    }
}
