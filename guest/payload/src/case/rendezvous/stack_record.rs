//! C04: set_mtrr() without its third handshake: the record on its stack dies while others still look at it.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::{arena, pause_point, this};

use super::is_fixed;
use crate::call::{self, Function};
use crate::case::case;
use crate::case::mtrr::range;
use crate::mtrr::{Steps, set_mtrr_by};

case!(
    STACK_RECORD,
    "stack-record",
    "set_mtrr() with two handshakes or three, and behind it a call that uses the same part of the stack",
    [CALL, APIC, INITIATOR, SPIN, MTRR, MTRR_REG, MTRR_BASE, MTRR_SIZE, MTRR_TYPE, FIX],
    stack_record
);

fn stack_record() {
    if !this::is_initiator() {
        return;
    }
    let others = call::others();
    set_mtrr_by(range(), Steps { called: others, counted: others, third_handshake: is_fixed() });
    init_bio();
}

/// What comes next: a function with variables of its own where the record lay, and a call that has nothing to do with MTRRs.
fn init_bio() {
    pause_point!("init_bio/begin");
    let frame = arena::on_stack::<[AtomicU32; 8]>("init_bio");
    frame.iter().for_each(|variable| variable.store(1, Ordering::Relaxed));
    assert!(call::all(Function { run: nothing, info: 0 }, true).is_ok());
}

fn nothing(_info: u64) {}
