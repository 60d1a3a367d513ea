//! C18: a CPU goes down with a call in its queue, whose interrupt it no longer takes.

use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{arena, bring_up, cpu, pause_point, this, wait_until, words as names};

use super::{PEER, case, count, go_offline, is_fixed, play_dead, revive, words};
use crate::call::{self, CallError, Function};

case!(DYING_CPU, "dying-cpu", "one vCPU calls another that goes offline, and waits for it", [CALL, APIC, FIX], run);

fn run() {
    match this::vcpu() {
        0 => call_it(),
        PEER => take_cpu_down(),
        _ => {}
    }
}

/// One that is offline by now is not called, and nobody waits for it.
fn call_it() {
    names::name("ran", &words().ran);
    pause_point!("caller/begin");
    match nobody_between(|| call::single(PEER, Function { run: count, info: 0 }, false)) {
        Ok(()) => {
            wait_until!("caller", "", "callbacks run", GATE, Condition::of(&words().ran, 1).any(Mask::one(PEER)), equal)
        }
        Err(error) => assert!(error == CallError::Offline, "a call failed: {error:?}"),
    }
    revive();
}

/// take_cpu_down(), and what comes behind it. The fix is to look into the queue once more: smpcfd_dying_cpu().
fn take_cpu_down() {
    bring_up::take_part();
    let were = cpu::disable_interrupts();
    pause_point!("take_cpu_down/irqs-off");
    nobody_between(go_offline);
    if is_fixed() {
        call::flush_own_queue();
    }
    play_dead();
    arena::root().online.insert(this::vcpu());
    cpu::restore_interrupts(were);
}

/// A CPU goes offline inside of stop_machine(): no other is between its look at who is online and the queue meanwhile.
fn nobody_between<T>(work: impl FnOnce() -> T) -> T {
    words().lock.lock();
    let done = work();
    words().lock.unlock();
    done
}
