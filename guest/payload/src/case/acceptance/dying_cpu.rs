//! C18: a CPU goes down with a call in its queue, whose interrupt it no longer takes.

use stallbench_rt::{arena, cpu, pause_point, this, words as names};

use super::{PEER, case, count, expect_ok, go_offline, is_fixed, play_dead, revive, words};
use crate::call::{self, Function};

case!(DYING_CPU, "dying-cpu", "one vCPU calls another that goes offline, and waits for it", [CALL, APIC, FIX], run);

fn run() {
    match this::vcpu() {
        0 => call_it(),
        PEER => take_cpu_down(),
        _ => {}
    }
}

fn call_it() {
    names::name("ran", &words().ran);
    pause_point!("caller/begin");
    expect_ok(call::single(PEER, Function { run: count, info: 0 }, true));
    revive();
}

/// take_cpu_down(), and what comes behind it. The fix is to look into the queue once more: smpcfd_dying_cpu().
fn take_cpu_down() {
    let were = cpu::disable_interrupts();
    pause_point!("take_cpu_down/irqs-off");
    go_offline();
    if is_fixed() {
        call::flush_own_queue();
    }
    play_dead();
    arena::root().online.insert(this::vcpu());
    cpu::restore_interrupts(were);
}
