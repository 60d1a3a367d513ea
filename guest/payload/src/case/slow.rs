//! Subject `slow`: one vCPU works for long while all others wait for it, directly or not. Nothing is stuck.

use core::hint::black_box;
use core::sync::atomic::Ordering;

use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, this, wait_until, words};

use super::case;
use crate::call;
use crate::root::root;

/// Turns of the work: more than a hundred thousand instructions, without a step that a host could see.
const TURNS: u64 = 25_000;

case!(
    BUSY_MEMBER,
    "busy-member",
    "all meet; the last vCPU works for long before it comes, the first waits for all, the others for the first",
    [SPIN],
    meet
);

fn meet() {
    let words = &root().case;
    if this::is_initiator() {
        words::name("came", &words.left);
        let others = call::others();
        let all_came = Condition::of(&words.left, others.count()).count(others);
        wait_until!("meet", "gather", "vCPUs that came", COUNT, all_came, equal);
        words.go.store(1, Ordering::Release);
        return;
    }
    bring_up::take_part();
    if this::vcpu() == boot::vcpus() - 1 {
        work();
    }
    words.left.fetch_add(1, Ordering::SeqCst);
    wait_until!("meet", "wait", "go", GATE, Condition::of(&words.go, 1).any(Mask::one(0)), equal);
}

#[inline(never)]
fn work() {
    for turn in 0..TURNS {
        black_box(turn);
    }
}
