//! C11: a record that is used again while a CPU still stands on its last use.
//!
//! ```text
//! vCPU 0 (record A)                vCPU 1 (record B)                vCPU 2, in its interrupt
//!  call vCPU 1: list A
//!                                  interrupts vCPU 2, which finds nothing for it:
//!                                                                   stands on A: is its bit set?
//!                                  in its interrupt: runs A,
//!                                  takes it off: list empty
//!                                  call vCPU 0: list B
//!  call vCPU 2: mask and references
//!  of A are stored, A is on no list
//!                                                                   its bit is set, there are references:
//!                                                                   runs A; it was the last: takes A off the list
//!                                                                   by the links of its last use: the list is empty
//!                                  interrupts vCPU 0, which finds
//!                                  nothing; waits for B
//! ```

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{bring_up, pause_point, this, wait_until, words};

use crate::call::{self, Function};
use crate::case::{case, count_down};
use crate::root::root;

case!(
    RECYCLED,
    "recycled-record",
    "two vCPUs with two calls each; the second call of the first uses a record on which a third vCPU still stands",
    [CALL, REFS, APIC],
    recycled
);

/// Who owns record A, who owns record B, and who walks the list.
const A: usize = 0;
const B: usize = 1;
const WALKER: usize = 2;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// Callbacks of A's first call that have still to run.
    first_left: AtomicU32,
}

impl Words {
    pub(super) fn place(&self) {
        self.first_left.store(1, Ordering::Relaxed);
    }
}

fn recycled() {
    let words = &root().records;
    match this::vcpu() {
        A => {
            let (flags, refs) = call::own_many(B).flags_and_refs();
            words::name("lock", flags);
            words::name("refs", refs);
            call_one(B, first_ends, false);
            pause_point!("owner/again");
            call_one(WALKER, ends, false);
        }
        B => {
            bring_up::take_part();
            pause_point!("second/begin");
            call::interrupt_once_more(WALKER);
            let first_is_through = Condition::of(&words.recycled.first_left, 0).any(Mask::one(B));
            wait_until!("second", "", "first call of the other", COUNT, first_is_through, equal);
            call_one(A, ends, true);
        }
        _ => {}
    }
}

/// A multi-target call to one target: as many would do, with a vCPU more for each.
fn call_one(target: usize, run: fn(u64), wait: bool) {
    assert!(call::broadcast(Mask::one(target), Function { run, info: 0 }, wait).is_ok());
}

fn first_ends(_info: u64) {
    count_down(&root().records.recycled.first_left);
}

fn ends(_info: u64) {}
