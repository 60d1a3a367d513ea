//! Two vCPUs change MTRRs at once, and the mutex lets one through. Who waits for it is a target of the one that has it.

use stallbench_rt::{boot, bring_up, cpu, pause_point, this, words};

use super::is_fixed;
use crate::case::case;
use crate::case::mtrr::range;
use crate::mtrr::{mutex, set_mtrr};

case!(
    TWO_INITIATORS,
    "two-initiators",
    "two vCPUs call set_mtrr() at once, with interrupts off before they have its mutex, or behind that",
    [CALL, APIC, SPIN, MTRR, MTRR_REG, MTRR_BASE, MTRR_SIZE, MTRR_TYPE, FIX],
    two_initiators
);

fn two_initiators() {
    let me = this::vcpu();
    if me != 0 && me != boot::vcpus() - 1 {
        return;
    }
    if me == 0 {
        words::name("mutex", mutex().word());
    }
    bring_up::take_part();
    bring_up::wait_for_start();
    pause_point!("mtrr_add/begin");
    // The fix is the order of the two: set_mtrr() turns interrupts off by itself once it has called the others.
    let were = if is_fixed() { cpu::InterruptsWere::UNTOUCHED } else { cpu::disable_interrupts() };
    mutex().with(|| set_mtrr(range()));
    cpu::restore_interrupts(were);
}
