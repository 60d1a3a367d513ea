//! C25: one lost interrupt, and a protocol that sends the next only when an inbox was empty: it is never empty again.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, this, wait_until, words};

use crate::call::{self, Function};
use crate::case::{case, count_down};
use crate::root::root;

case!(
    LOST_KICK,
    "lost-kick",
    "an asynchronous call to vCPU 1, and then a synchronous one from each of the others",
    [CALL, APIC, CSD_DEBUG],
    lost_kick
);

/// Who makes the call whose interrupt may be lost, and whom all call.
const FIRST: usize = 0;
const TARGET: usize = 1;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// 1 once the first call has been made.
    called: AtomicU32,
}

fn lost_kick() {
    let words = &root().records;
    let call = |wait| assert!(call::single(TARGET, Function { run: ends, info: 0 }, wait).is_ok());
    match this::vcpu() {
        FIRST => {
            words::name("left", &words.left);
            words::name("inbox", call::newest(TARGET));
            words.left.store(boot::vcpus() as u32, Ordering::Relaxed);
            call(false);
            words.lost_kick.called.store(1, Ordering::Release);
            call(true);
        }
        TARGET => {}
        _ => {
            bring_up::take_part();
            let called = Condition::of(&words.lost_kick.called, 1).any(Mask::one(FIRST));
            wait_until!("caller", "", "first call", GATE, called, equal);
            call(true);
        }
    }
}

fn ends(_info: u64) {
    count_down(&root().records.left);
}
