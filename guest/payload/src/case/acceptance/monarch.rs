//! C21: a rendezvous counts on a CPU that is rightly not there.
//!
//! The machine check is an NMI here: no guest can raise the exception on another CPU, and an NMI too reaches one that halts with
//! interrupts off.

use core::sync::atomic::Ordering;

use stallbench_abi::knob::MONARCH_TURNS;
use stallbench_abi::layout::vector;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, arena, boot, bring_up, cpu, this, wait_bounded, wait_until, words as names};

use super::{PEER, all, be_ready, case, go_offline, is_fixed, others, play_dead, revive, wait_until_ready, words};
use crate::case::count_down;

case!(
    MONARCH,
    "monarch",
    "all vCPUs meet in a broadcast machine check, one of them is offline",
    [APIC, FIX, MONARCH_TURNS],
    run
);

fn run() {
    this::set_handler(vector::NMI, machine_check);
    match this::vcpu() {
        0 => monarch(),
        PEER => be_offline(),
        _ => be_ready(),
    }
}

fn be_offline() {
    bring_up::take_part();
    let were = cpu::disable_interrupts();
    go_offline();
    be_ready();
    play_dead();
    arena::root().online.insert(this::vcpu());
    cpu::restore_interrupts(were);
}

/// mce_start() and mce_end() of the CPU that leads the others. The fix is whom it waits for.
fn monarch() {
    names::name("missing", &words().missing);
    names::name("timed-out", &words().timed_out);
    wait_until_ready();
    let subjects = if is_fixed() { others() } else { all().without(this::vcpu()) };
    words().missing.store(subjects.count(), Ordering::SeqCst);
    words().inside.store(others().count(), Ordering::SeqCst);
    all().without(this::vcpu()).iter().for_each(apic::send_nmi);
    gather(subjects);
    words().gate.store(1, Ordering::SeqCst);
    wait_until!("mce_end", "", "CPUs inside", COUNT, Condition::of(&words().inside, 0).count(others()), equal);
    revive();
}

/// Waits for all of them, for ever or until it gives up.
fn gather(subjects: Mask) {
    let came = Condition::of(&words().missing, 0).count(subjects);
    match boot::knob(&MONARCH_TURNS) {
        0 => wait_until!("mce_start", "", "CPUs missing", COUNT, came, equal),
        turns if wait_bounded!("mce_start", "", "CPUs missing", COUNT, came, turns) => {}
        _ => words().timed_out.store(1, Ordering::SeqCst),
    }
}

/// The machine check of every other vCPU. One that is offline has no part in it, and an NMI behind it wakes the dead.
fn machine_check() {
    let is_over = words().revived.load(Ordering::SeqCst) != 0;
    if is_over || !arena::root().online.contains(this::vcpu()) {
        return;
    }
    count_down(&words().missing);
    wait_until!("mce_start", "", "gate", GATE, Condition::of(&words().gate, 1).any(Mask::one(0)), equal);
    count_down(&words().inside);
}
