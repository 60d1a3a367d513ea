//! C05: set_mtrr() waits for the CPUs of one mask and calls those of another.

use stallbench_rt::mask::Mask;
use stallbench_rt::{boot, this};

use super::is_fixed;
use crate::call;
use crate::case::case;
use crate::case::mtrr::range;
use crate::mtrr::{Steps, set_mtrr_by};

case!(
    TWO_COUNTS,
    "two-counts",
    "set_mtrr() whose initiator counts the vCPUs that are configured, or those that it calls",
    [CALL, APIC, INITIATOR, SPIN, MTRR, MTRR_REG, MTRR_BASE, MTRR_SIZE, MTRR_TYPE, FIX],
    two_counts
);

fn two_counts() {
    if !this::is_initiator() {
        return;
    }
    let online = call::others();
    let counted = if is_fixed() { online } else { configured() };
    set_mtrr_by(range(), Steps { called: online, counted, third_handshake: true });
}

/// All vCPUs that the machine has, but this one: num_booting_cpus() counts those that were told to boot.
fn configured() -> Mask {
    let mut all = Mask::default();
    (0..boot::vcpus()).for_each(|vcpu| all.insert(vcpu));
    all.without(this::vcpu())
}
