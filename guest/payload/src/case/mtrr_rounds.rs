//! Subject `mtrr`: many rendezvous in a row, begun by one vCPU or by several at once.

use stallbench_abi::knob::{INITIATORS, ROUNDS};
use stallbench_abi::programme;
use stallbench_rt::{boot, bring_up, this};

use super::case;
use crate::mtrr::{mutex, replicate, set_mtrr};

case!(
    MTRR_ROUNDS,
    "mtrr-rounds",
    "vCPUs take turns at set_mtrr(), many times; the seed decides what each of them programs",
    [CALL, APIC, FENCE, SPIN, FLIP, INITIATORS, ROUNDS, EVENTS],
    rounds
);

fn rounds() {
    let initiators = (boot::knob(&INITIATORS) as u32).min(boot::vcpus() as u32);
    let me = this::vcpu() as u32;
    if me >= initiators {
        return;
    }
    bring_up::take_part();
    bring_up::wait_for_start();
    let seed = boot::block().seed;
    if me == 0 {
        mutex().with(|| replicate(&programme::whole(seed)));
    }
    for round in 0..boot::knob(&ROUNDS) as u32 {
        mutex().with(|| set_mtrr(programme::range(seed, me, initiators, round).into()));
    }
}
