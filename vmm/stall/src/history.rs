//! What the event rings say about how a stall came to be.
//!
//! Events are ghost: they explain a stall, name its kind and its culprit, and never make one. Rings are read when they are
//! first asked for, and may have lost their oldest events.

use core::cell::OnceCell;

use stallbench_abi::event::{AllocSite, Event, EventKind, INJECTED_FAILURE, LIST_OF_ALL, TO_ALL, TO_ALL_BUT_SELF};
use stallbench_abi::knob::flip;
use stallbench_abi::layout::vector;
use stallbench_state::memory::Memory;
use stallbench_state::published::{Ring, events};

use crate::analysis::Analysis;
use crate::lifetime::{Gone, Object};
use crate::set::VcpuSet;

/// The event rings of a machine that stands still.
pub(crate) struct History<'a> {
    memory: &'a dyn Memory,
    rings: Vec<OnceCell<Ring>>,
    /// For each vCPU, those that its waits await, in whichever context.
    awaited: Vec<VcpuSet>,
}

/// How far a callback has come on a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callback {
    NotBegun,
    Running,
    Ended,
    /// The events that would tell were overwritten.
    Unknown,
}

/// A record that was put on a queue and that its target never handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unhandled {
    pub(crate) sender: usize,
    pub(crate) call: u64,
    /// Whether the sender has sent its target an interrupt since.
    pub(crate) interrupt_sent: bool,
    /// Whether the guest says that it left the interrupt out on purpose.
    pub(crate) injected: bool,
}

impl<'a> History<'a> {
    pub(crate) fn new(analysis: &Analysis<'a>) -> Self {
        let vcpus = analysis.vcpus.len();
        let awaited = (0..vcpus).map(|vcpu| awaited(analysis, vcpu)).collect();
        Self { memory: analysis.view.memory, rings: (0..vcpus).map(|_| OnceCell::new()).collect(), awaited }
    }

    fn ring(&self, vcpu: usize) -> &Ring {
        self.rings[vcpu].get_or_init(|| events(self.memory, vcpu))
    }

    /// How far the callback of a call has come on a target.
    pub(crate) fn callback(&self, target: usize, call: u64) -> Callback {
        let ring = self.ring(target);
        let is = |kind: EventKind| move |event: &&Event| event.kind == kind && event.a == call;
        let begun = ring.events.iter().any(|event| is(EventKind::CALLBACK)(&event));
        let ended = ring.events.iter().any(|event| is(EventKind::CALLBACK_END)(&event));
        match (begun, ended) {
            (_, true) => Callback::Ended,
            (true, false) => Callback::Running,
            (false, false) if ring.lost > 0 => Callback::Unknown,
            (false, false) => Callback::NotBegun,
        }
    }

    /// The oldest record that lies on a queue for this target and whose callback never began there.
    pub(crate) fn unhandled(&self, target: usize) -> Option<Unhandled> {
        let queued = (0..self.rings.len()).flat_map(|sender| self.queued(sender, target));
        let unhandled = queued.filter(|(_, event)| self.callback(target, event.b) == Callback::NotBegun);
        let (sender, event) = unhandled.min_by_key(|(_, event)| event.clock)?;
        let later = || self.ring(sender).events.iter().filter(|e| e.clock > event.clock);
        let interrupt_sent = later().any(|e| is_call_interrupt(e) && reaches(e, sender, target));
        let injected = self.ring(sender).events.iter().any(is_left_out_interrupt);
        Some(Unhandled { sender, call: event.b, interrupt_sent, injected })
    }

    fn queued(&self, sender: usize, target: usize) -> impl Iterator<Item = (usize, &Event)> {
        // A list that all share does not say whom a record on it is for. Its sender does, by what it waits for.
        let on_list = sender != target && self.awaited[sender].contains(target);
        let for_target = move |event: &&Event| {
            event.kind == EventKind::QUEUE && (event.arg == target as u32 || (event.arg == LIST_OF_ALL && on_list))
        };
        self.ring(sender).events.iter().filter(for_target).map(move |event| (sender, event))
    }

    /// What became of an object that somebody held.
    pub(crate) fn fate(&self, object: Object) -> Gone {
        let vcpus = 0..self.rings.len();
        let events = vcpus.flat_map(|vcpu| self.ring(vcpu).events.iter().map(move |event| (vcpu, event)));
        object.fate(self.memory, events)
    }

    /// The allocation failures behind the fallbacks of the calls that a vCPU is in, as `#1 in call_many, #2 in call_single, injected by
    /// the guest`.
    pub(crate) fn allocation_failures(&self, vcpu: usize) -> Option<String> {
        let events = &self.ring(vcpu).events;
        let returned = |call: u64| events.iter().any(|e| e.kind == EventKind::CALL_RETURN && e.a == call);
        let fallbacks = events.iter().filter(|e| e.kind == EventKind::FALLBACK && !returned(e.a));
        let failures = fallbacks.filter_map(|fallback| failure_before(events, fallback.clock));
        let failures: Vec<_> = failures.collect();
        (!failures.is_empty()).then(|| describe(&failures))
    }
}

/// Numbers and sites of failed allocations, and why they failed.
fn describe(failures: &[&Event]) -> String {
    let sites: Vec<_> = failures.iter().map(|e| format!("#{} in {}", e.arg, AllocSite(e.b))).collect();
    let injected = failures.iter().filter(|e| e.a == INJECTED_FAILURE).count();
    let why = match injected {
        0 => "no record left",
        all if all == failures.len() => "injected by the guest",
        _ => "some injected by the guest",
    };
    format!("{}, {why}", sites.join(", "))
}

fn failure_before(events: &[Event], clock: u64) -> Option<&Event> {
    let failed = |e: &&Event| e.kind == EventKind::ALLOC && e.a <= INJECTED_FAILURE && e.clock < clock;
    events.iter().rev().find(failed)
}

/// Whom the waits of a vCPU await.
fn awaited(analysis: &Analysis<'_>, vcpu: usize) -> VcpuSet {
    let waits = analysis.wait(vcpu).into_iter().chain(&analysis.vcpus[vcpu].outer);
    waits.fold(VcpuSet::EMPTY, |all, wait| all.or(wait.need.awaits))
}

/// Whether an event sends an interrupt that has its target look for calls.
fn is_call_interrupt(event: &Event) -> bool {
    let vectors = [vector::CALL_FUNCTION, vector::CALL_FUNCTION_SINGLE].map(u32::from);
    event.kind == EventKind::IPI && vectors.contains(&event.arg)
}

fn reaches(ipi: &Event, sender: usize, target: usize) -> bool {
    match ipi.a {
        TO_ALL => true,
        TO_ALL_BUT_SELF => sender != target,
        destination => destination == target as u64,
    }
}

fn is_left_out_interrupt(event: &Event) -> bool {
    event.kind == EventKind::FLIP && event.arg == u32::from(flip::NO_IPI)
}
