//! C16: two vCPUs call each other and wait, each with interrupts off.

use stallbench_rt::{bring_up, cpu, pause_point, this, words as names};

use super::{PEER, case, count, expect_ok, is_fixed, words};
use crate::call::{self, Function};

case!(MUTUAL_CALLS, "mutual-calls", "two vCPUs call each other and wait for it", [CALL, APIC, FIX], run);

fn run() {
    let other = match this::vcpu() {
        0 => PEER,
        PEER => 0,
        _ => return,
    };
    bring_up::take_part();
    if this::is_initiator() {
        names::name("ran", &words().ran);
    }
    let were = (!is_fixed()).then(cpu::disable_interrupts);
    pause_point!("call_other/begin");
    expect_ok(call::single(other, Function { run: count, info: 0 }, true));
    if let Some(were) = were {
        cpu::restore_interrupts(were);
    }
}
