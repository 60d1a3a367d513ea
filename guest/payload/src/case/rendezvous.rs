//! Subject `rendezvous`: all meet before any goes on. Meetings that somebody misses, leaves too early or enters twice, one
//! pattern a file, each with the one step that its fix changed (knob `fix`).

mod ap_init;
mod both_barriers;
mod crossing;
mod kdump;
mod late_callee;
mod overlapping_stops;
mod slow_member;
mod stack_record;
mod stopper;
mod two_counts;
mod two_initiators;
mod unfenced;
mod unserved_stopper;

use stallbench_abi::knob::{FIX, answer};
use stallbench_rt::boot;

/// What the cases of this subject share between vCPUs.
#[repr(C)]
pub(crate) struct Words {
    stoppers: stopper::Shared,
    crossing: crossing::Words,
    overlapping_stops: overlapping_stops::Words,
    both_barriers: both_barriers::Words,
    kdump: kdump::Words,
    slow_member: slow_member::Words,
    late_callee: late_callee::Words,
    unserved_stopper: unserved_stopper::Words,
    ap_init: ap_init::Words,
    unfenced: unfenced::Words,
}

impl Words {
    pub(crate) fn place(&self) {
        self.stoppers.place();
    }
}

/// Sets this vCPU's handlers.
pub(super) fn set_handlers() {
    unfenced::set_handlers();
}

/// Whether the fix of the pattern is in.
fn is_fixed() -> bool {
    boot::word(&FIX) == answer::YES
}

/// The words of this subject.
fn words() -> &'static Words {
    &crate::root::root().rendezvous
}
