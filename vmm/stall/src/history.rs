//! What the event rings say about how a stall came to be.
//!
//! Events are ghost: they explain a stall, name its kind and its culprit, and never make one. Rings are read when they are
//! first asked for, and may have lost their oldest events.

use core::cell::OnceCell;

use stallbench_abi::boot::BootBlock;
use stallbench_abi::event::{AllocSite, Event, EventKind, INJECTED_FAILURE, LIST_OF_ALL, TO_ALL, TO_ALL_BUT_SELF};
use stallbench_abi::fault::{Fault, FaultKind, FaultState};
use stallbench_abi::knob::flip;
use stallbench_abi::layout::{BOOT_BLOCK, PAUSE, vector};
use stallbench_abi::pause::PausePage;
use stallbench_state::memory::{Memory, read_plain};
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
    faults: OnceCell<Faults>,
}

type Faults = (Vec<Fault>, Vec<FaultState>);

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
    /// What became of its interrupt.
    pub(crate) interrupt: Interrupt,
}

/// What became of the interrupt for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The sender has sent its target one since.
    Sent,
    /// It has not.
    Missing,
    /// It has not, and the guest says that it left it out on purpose.
    LeftOut,
    /// A fault of the scenario keeps it back.
    Dropped,
}

/// An interrupt that a fault of the scenario keeps back, and that no later one has made up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) sender: usize,
    /// The low half of the interrupt command register.
    command: u32,
    clock: u64,
}

impl Dropped {
    /// Its vector, as an [`EventKind::IPI`] has it.
    fn vector(&self) -> u32 {
        if self.mode() == 4 { u32::from(vector::NMI) } else { self.command & 0xff }
    }

    /// Its delivery mode (SDM 3A 11.6.1).
    fn mode(&self) -> u32 {
        self.command >> 8 & 7
    }
}

/// As `NMI`, `INIT`, `interrupt 0xfc`.
impl core::fmt::Display for Dropped {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.mode() {
            4 => f.write_str("NMI"),
            5 => f.write_str("INIT"),
            6 => f.write_str("SIPI"),
            _ => write!(f, "interrupt {:#x}", self.command & 0xff),
        }
    }
}

impl<'a> History<'a> {
    pub(crate) fn new(analysis: &Analysis<'a>) -> Self {
        let vcpus = analysis.vcpus.len();
        let awaited = (0..vcpus).map(|vcpu| awaited(analysis, vcpu)).collect();
        let rings = (0..vcpus).map(|_| OnceCell::new()).collect();
        Self { memory: analysis.view.memory, rings, awaited, faults: OnceCell::new() }
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
        Some(Unhandled { sender, call: event.b, interrupt: self.interrupt(sender, target, event.clock) })
    }

    /// What became of the interrupt for a record that was queued then. One that is dropped is recorded as sent too.
    fn interrupt(&self, sender: usize, target: usize, queued: u64) -> Interrupt {
        let later = || self.ring(sender).events.iter().filter(|e| e.clock > queued);
        let sent = later().filter(|e| is_call_interrupt(e) && reaches(e, sender, target)).count();
        let dropped = later().filter(|e| self.keeps_back(e, target) && is_call_vector(e.a as u32 & 0xff)).count();
        let left_out = self.ring(sender).events.iter().any(is_left_out_interrupt);
        match (sent > dropped, dropped > 0, left_out) {
            (true, _, _) => Interrupt::Sent,
            (false, true, _) => Interrupt::Dropped,
            (false, false, true) => Interrupt::LeftOut,
            (false, false, false) => Interrupt::Missing,
        }
    }

    /// The last interrupt to a target that a fault keeps back, where none of its kind has reached it since.
    pub(crate) fn dropped(&self, target: usize) -> Option<Dropped> {
        let senders = 0..self.rings.len();
        let of_sender = |sender: usize| {
            let events = self.ring(sender).events.iter().filter(|e| self.keeps_back(e, target));
            events.map(move |e| Dropped { sender, command: e.a as u32, clock: e.clock })
        };
        let dropped = senders.flat_map(of_sender).max_by_key(|dropped| dropped.clock)?;
        (!self.made_up_for(&dropped, target)).then_some(dropped)
    }

    /// Whether its target was sent the same later. The first that is recorded behind it by its sender is the dropped one itself.
    fn made_up_for(&self, dropped: &Dropped, target: usize) -> bool {
        let is_same = |e: &&Event| e.kind == EventKind::IPI && e.arg == dropped.vector() && e.clock > dropped.clock;
        (0..self.rings.len()).any(|sender| {
            let sent = self.ring(sender).events.iter().filter(is_same).filter(|e| reaches(e, sender, target)).count();
            sent > usize::from(sender == dropped.sender)
        })
    }

    /// Whether an event says that a fault of the scenario keeps an interrupt to a target back.
    fn keeps_back(&self, event: &Event, target: usize) -> bool {
        if event.kind != EventKind::FAULT || event.b != target as u64 {
            return false;
        }
        let number = event.arg as usize;
        match self.faults().0.get(number).map(|fault| fault.kind) {
            Some(FaultKind::DROP_IPI) => true,
            Some(FaultKind::DELAY_IPI) => self.faults().1.get(number).is_some_and(|state| state.deferred != 0),
            _ => false,
        }
    }

    /// Whether the scenario has the guest never start a vCPU.
    pub(crate) fn never_started(&self, vcpu: usize) -> bool {
        let declared = |fault: &Fault| fault.kind == FaultKind::NO_START && fault.to as usize == vcpu;
        self.faults().0.iter().any(declared)
    }

    /// The faults of the scenario, which the host has written, and how far they have come.
    fn faults(&self) -> &Faults {
        self.faults.get_or_init(|| {
            let block: BootBlock = read_plain(self.memory, BOOT_BLOCK).unwrap_or_default();
            let page: PausePage = read_plain(self.memory, PAUSE).unwrap_or_default();
            let count = block.fault_count as usize;
            (block.faults.into_iter().take(count).collect(), page.faults.into_iter().take(count).collect())
        })
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
    event.kind == EventKind::IPI && is_call_vector(event.arg)
}

fn is_call_vector(number: u32) -> bool {
    [vector::CALL_FUNCTION, vector::CALL_FUNCTION_SINGLE].map(u32::from).contains(&number)
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
