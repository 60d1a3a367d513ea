//! Pause points: where a scenario can hold this vCPU.
//!
//! A point costs one load where the scenario holds nobody. Counting arrivals is a locked operation, so a scenario with holds
//! orders memory at its points; the protocols have none where a missing fence is what they are about.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::event::EventKind;
use stallbench_abi::layout::PAUSE;
use stallbench_abi::pause::{ANY_VCPU, Arrival, HOLDS, Hold, HoldState, PausePage, Point, Release};

use crate::mask::Mask;
use crate::wait::Condition;
use crate::{apic, boot, cpu, event, this, wait_until};

/// The descriptor of a pause point.
pub const fn point(name: &str) -> Point {
    Point { name: stallbench_abi::text::field(name) }
}

/// Declares a pause point, `"function/step"`, and arrives at it.
#[macro_export]
macro_rules! pause_point {
    ($name:literal) => {{
        #[used]
        #[unsafe(link_section = ".stallbench.points")]
        static POINT: $crate::abi::pause::Point = $crate::pause::point($name);
        $crate::pause::arrive(&POINT);
    }};
}

/// This vCPU is at a pause point. Use [`pause_point!`](crate::pause_point).
#[inline(always)]
pub fn arrive(point: &'static Point) {
    let block = boot::block();
    if block.hold_count | block.fault_count != 0 {
        arrived(core::ptr::from_ref(point) as u64);
    }
}

/// Lets go whoever waits for this, and stays if it is to.
#[inline(never)]
fn arrived(point: u64) {
    let were = cpu::disable_interrupts();
    let stays = holds().fold(0_u32, |stays, (index, hold)| stays | u32::from(is_to_stay(index, hold, point)) << index);
    apic::release_deferred(point);
    for (index, hold) in holds() {
        for (number, until) in hold.until.iter().enumerate() {
            if counts(until, point, until_count(index, number)) {
                released(index).store(1, Ordering::SeqCst);
            }
        }
    }
    cpu::restore_interrupts(were);
    holds().filter(|(index, _)| stays >> index & 1 != 0).for_each(|(index, hold)| stay(index, hold, point));
}

/// Whether this arrival is the one that is held. It counts as held from here on: before anybody is let go, whose interrupt may
/// come ahead of the wait.
fn is_to_stay(index: usize, hold: &Hold, point: u64) -> bool {
    let is_held = counts(&hold.at, point, state_word(index, core::mem::offset_of!(HoldState, arrived)));
    if is_held {
        state_word(index, core::mem::offset_of!(HoldState, held)).store(this::vcpu() as u32 + 1, Ordering::SeqCst);
    }
    is_held
}

fn holds() -> impl Iterator<Item = (usize, &'static Hold)> {
    let block = boot::block();
    block.holds.iter().enumerate().take((block.hold_count as usize).min(HOLDS))
}

/// Whether this is the arrival that is meant, counting it.
pub(crate) fn counts(arrival: &Arrival, point: u64, count: &AtomicU32) -> bool {
    let is_meant = arrival.vcpu == ANY_VCPU || arrival.vcpu as usize == this::vcpu();
    arrival.point == point && is_meant && count.fetch_add(1, Ordering::SeqCst) + 1 == arrival.nth
}

fn stay(index: usize, hold: &'static Hold, point: u64) {
    event::record(EventKind::PAUSE, index as u32, point, 0);
    this::progress();
    let condition = Condition::of(released(index), 1).any(awaited(hold));
    wait_until!("pause_point", "", "leave to go on", HOLD, condition, equal);
    event::record(EventKind::PAUSE, index as u32, point, 1);
}

/// The vCPUs whose arrival ends a hold. The host is none of them.
fn awaited(hold: &Hold) -> Mask {
    let mut awaited = Mask::default();
    if hold.release != Release::ARRIVAL {
        return awaited;
    }
    for until in hold.until.iter().filter(|until| until.point != 0) {
        match until.vcpu {
            ANY_VCPU => (0..boot::vcpus()).filter(|&vcpu| vcpu != this::vcpu()).for_each(|vcpu| awaited.insert(vcpu)),
            vcpu => awaited.insert(vcpu as usize),
        }
    }
    awaited
}

fn released(index: usize) -> &'static AtomicU32 {
    state_word(index, core::mem::offset_of!(HoldState, released))
}

fn until_count(index: usize, number: usize) -> &'static AtomicU32 {
    state_word(index, core::mem::offset_of!(HoldState, until) + number * size_of::<u32>())
}

fn state_word(index: usize, offset: usize) -> &'static AtomicU32 {
    word(core::mem::offset_of!(PausePage, holds) + index * size_of::<HoldState>() + offset)
}

/// A word of the pause page.
pub(crate) fn word(offset: usize) -> &'static AtomicU32 {
    // SAFETY: a word of the pause page, which the host maps for as long as the guest runs; all vCPUs use it as an atomic.
    unsafe { &*((PAUSE + offset as u64) as *const AtomicU32) }
}
