//! The event ring of this vCPU.

use core::ptr::addr_of_mut;
use core::sync::atomic::{AtomicU64, Ordering};

use stallbench_abi::event::{Event, EventKind, RING_EVENTS};
use stallbench_abi::image::SiteKind;
use stallbench_abi::knob::{self, EVENTS};
use stallbench_abi::layout::{self, GHOST, private_area as area};
use stallbench_abi::shared::GhostPage;

use crate::{boot, cpu, this};

fn ghost_word(offset: usize) -> &'static AtomicU64 {
    // SAFETY: a word of the ghost page, which the host maps for as long as the guest runs; all vCPUs use it as an atomic.
    unsafe { &*((GHOST + offset as u64) as *const AtomicU64) }
}

/// Number of the next cross-CPU call, from 1 on. Ghost: it names calls in events and waits, no decision reads it.
pub fn next_call() -> u64 {
    ghost_word(core::mem::offset_of!(GhostPage, calls)).fetch_add(1, Ordering::Relaxed) + 1
}

/// Whether only those events are recorded that say what became of calls (`events=calls`): a long programme would push them out
/// of the ring otherwise.
fn calls_only() -> bool {
    boot::word(&EVENTS) == knob::events::CALLS
}

/// What explains a single run and says nothing about whether a call with wait=0 waited.
const EXPLAINS: [EventKind; 10] = [
    EventKind::ALLOC,
    EventKind::FREE,
    EventKind::QUEUE,
    EventKind::IPI,
    EventKind::IRQ,
    EventKind::CALLBACK,
    EventKind::CALLBACK_END,
    EventKind::LIFE,
    EventKind::MTRR,
    EventKind::GRACE_PERIOD,
];

/// Whether a wait at a site of this kind is recorded. A lock's never is; with `events=calls`, one for a call's own record always
/// is, and one for an earlier record where it really waited.
pub fn records_wait(kind: SiteKind, waited: bool) -> bool {
    match kind {
        SiteKind::LOCK => false,
        SiteKind::COMPLETION => true,
        SiteKind::ACCEPTANCE | SiteKind::RECORD => waited || !calls_only(),
        _ => !calls_only(),
    }
}

/// Records an event; what `arg`, `a` and `b` mean stands at its [kind](EventKind).
pub fn record(kind: EventKind, arg: u32, a: u64, b: u64) {
    if !(calls_only() && EXPLAINS.contains(&kind)) {
        place_of(kind, arg, a, b);
    }
}

/// Records an event, and tells its place in the order of all vCPUs' events: what it is used for is ghost too.
pub(crate) fn place_of(kind: EventKind, arg: u32, a: u64, b: u64) -> u64 {
    let clock = ghost_word(core::mem::offset_of!(GhostPage, event_clock)).fetch_add(1, Ordering::Relaxed);
    let vcpu = this::vcpu();
    // SAFETY: page and ring are this vCPU's own. An interrupt's events take slots of their own, since the count moves undivided;
    // a slot that is being written when its vCPU dies holds the event in part.
    unsafe {
        let slot = cpu::add_undivided(addr_of_mut!((*this::page()).events), 1);
        let ring = (layout::private(vcpu) + area::RING) as *mut Event;
        let event = Event { clock, kind, depth: this::depth() as u16, arg, a, b };
        ring.add(slot as usize % RING_EVENTS).write_volatile(event);
    }
    clock
}
