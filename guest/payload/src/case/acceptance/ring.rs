//! C22: a token goes round, by an interrupt from each vCPU to the next, all of which halt in between.
//!
//! The bug is not the guest's, and nothing of it is in here: it is a host that does not wake a vCPU whose interrupt it has.

use core::sync::atomic::Ordering;

use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, pause_point, this, wait_until, words as names};

use super::{case, expect_ok, words};
use crate::call::{self, Function};

case!(RING, "ring", "a token goes round, by an interrupt from each vCPU to the next", [CALL, APIC], run);

fn run() {
    if !this::is_initiator() {
        return;
    }
    names::name("token", &words().token);
    pause_point!("ring/begin");
    pass_on();
    let mine = Condition::of(&words().token, this::vcpu() as u32 + 1).holder();
    wait_until!("ring", "", "token", GATE, mine, equal);
}

/// Gives the token to the next vCPU; an interrupt tells it so. The initiator looks by itself.
fn pass_on() {
    let next = (this::vcpu() + 1) % boot::vcpus();
    words().token.store(next as u32 + 1, Ordering::SeqCst);
    if next != 0 {
        expect_ok(call::single(next, Function { run: take, info: 0 }, false));
    }
}

fn take(_info: u64) {
    pass_on();
}
