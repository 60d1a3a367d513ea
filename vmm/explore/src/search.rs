//! All states that a machine can come to.

mod choices;
mod findings;
mod restart;
mod way;

use std::cell::OnceCell;

use stallbench_core::controlled::{Controlled, Inject};
use stallbench_state::program::Program;

use crate::apic::{Apic, command};
use crate::arena::{self, Arenas};
use crate::buffers::{Buffers, Store};
use crate::devices::{ends_interrupt, sends};
use crate::early::{Foretold, Sound};
use crate::fuse::Fusion;
use crate::graph::{Apics, Choice, Edge, Graph, State, injected};
use crate::local::{Local, Parked};
use crate::order::Order;
use crate::passage::{Effect, Input, Refusal};
use crate::reach;
use crate::safety::Seen;
use crate::settings::{Icr, Model, Settings, Varied};
use crate::stage::Stage;
use crate::start::{self, StartError};
use thiserror::Error;

pub use findings::{Findings, Livelock, Stuck, Turning};
pub use way::{Landed, Leg, Way};

/// Why nothing was explored, or not all.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExploreError {
    /// The guest does not come to its start line.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It does something that cannot be explored.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A walk does not know what is written later.
    #[error("make walks under {0}: what a vcpu sends before its time is known to a search of all schedules alone")]
    Walks(Model),
}

/// How far a search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// States at most.
    pub states: usize,
    /// Bytes of memory that they may take, about.
    pub bytes: usize,
}

/// A search: the machine under control, and what is known of its states.
#[derive(Debug)]
pub struct Search<'p> {
    pub(crate) stage: Stage<'p>,
    pub(crate) arenas: Arenas,
    pub(crate) buffers: Buffers,
    pub(crate) apics: Apics,
    pub(crate) graph: Graph,
    /// Which state is expanded next.
    pub(crate) order: Order,
    /// States in which the run is over.
    pub(crate) ends: Vec<u32>,
    /// States in which a vCPU has died.
    pub(crate) faults: Vec<u32>,
    /// States in which a processor could hold back one more store.
    pub(crate) full: Vec<u32>,
    /// The end of the way that is shown to a stall or a fault; none: of the nearest.
    pub(crate) aim: Option<u32>,
    /// What vCPUs write to their ICRs, where that can be sent before its time.
    pub(crate) foretold: Option<Foretold>,
    /// What of the graph is no void, once that was asked.
    pub(crate) sound: OnceCell<Sound>,
    pub(crate) varied: Varied,
    pub(crate) fusion: Fusion,
}

/// How much is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// States of the machine.
    pub states: usize,
    /// Those of them whose choices were not followed yet.
    pub frontier: usize,
    /// Choices that were followed.
    pub transitions: usize,
    /// What KVM was asked for: what a vCPU does from one stop to the next.
    pub passages: u64,
    /// States of single vCPUs.
    pub locals: usize,
    /// All schedules with so many preemptions at most were followed; none: not even all of those with none.
    pub preemptions: Option<usize>,
}

impl<'p> Search<'p> {
    /// Brings a machine to its start line.
    pub fn new(mut machine: Controlled, program: &'p Program, settings: Settings) -> Result<Self, ExploreError> {
        let standing = start::bring_up(&mut machine)?;
        let arenas = Arenas::new(arena::copy(machine.memory()));
        let (stage, locals) = Stage::new(machine, program, standing, &settings)?;
        let buffers = Buffers::new(settings.model);
        let mut apics = Apics::default();
        let quiet = apics.number(Apic::default());
        let mut graph = Graph::default();
        let state = State {
            apics: vec![quiet; locals.len()].into(),
            buffers: buffers.at_start(locals.len()),
            locals: locals.into(),
            arena: 0,
        };
        graph.number(&state);
        let order = Order::new(&graph);
        let (ends, faults, full) = (Vec::new(), Vec::new(), Vec::new());
        let foretold = matches!(settings.model, Model::Tso { icr: Icr::Early, .. })
            .then(|| Foretold::of(&stage, graph.vcpus(), 0));
        Ok(Self {
            stage,
            arenas,
            buffers,
            apics,
            graph,
            order,
            ends,
            faults,
            full,
            aim: None,
            foretold,
            sound: OnceCell::new(),
            varied: settings.varied,
            fusion: Fusion::new(&settings),
        })
    }

    /// Goes on until all states are known, or there are too many: whether all are.
    pub fn run(&mut self, limits: Limits) -> Result<bool, ExploreError> {
        let ran = self.go_on(limits);
        self.rest();
        ran
    }

    /// Leaves the thread to others.
    pub fn rest(&mut self) {
        self.stage.machine().rest();
    }

    fn go_on(&mut self, limits: Limits) -> Result<bool, ExploreError> {
        self.sound.take();
        loop {
            while let Some(number) = self.order.next(&self.graph) {
                if self.graph.len() > limits.states || self.bytes() > limits.bytes {
                    return Ok(false);
                }
                self.expand(number)?;
                if self.stage.has_new_places() | self.fusion.is_stale() {
                    self.begin_anew();
                }
            }
            if !self.foretells_more() {
                return Ok(true);
            }
            self.begin_anew();
        }
    }

    /// Interrupts come at more places than at those that states were expanded with, or more of them early, or vCPUs share more than was known.
    /// KVM is not asked again for what it was asked.
    pub(crate) fn begin_anew(&mut self) {
        let first = self.graph.state(0);
        self.graph = Graph::default();
        self.sound.take();
        self.fusion.begin_anew();
        self.graph.number(&first);
        self.order = Order::new(&self.graph);
        [&mut self.ends, &mut self.faults, &mut self.full].into_iter().for_each(Vec::clear);
        self.aim = None;
    }

    /// How much is known.
    pub fn counts(&self) -> Counts {
        Counts {
            states: self.graph.len(),
            frontier: self.graph.len() - self.graph.expanded(),
            transitions: self.graph.transitions(),
            passages: self.stage.asked,
            locals: self.stage.locals(),
            // What a full buffer cuts off needs no preemption; nor does an interrupt that nobody is known yet to send early.
            preemptions: self.order.done().filter(|_| self.full.is_empty() && self.foretold.is_none()),
        }
    }

    /// Bytes of memory that what is known takes, about.
    pub fn bytes(&self) -> usize {
        let kept =
            self.stage.bytes() + self.arenas.bytes + self.buffers.bytes + self.graph.bytes() + self.order.bytes();
        // What of it is no void is a graph of its own.
        let sound = if self.foretold.is_some() { self.graph.bytes() } else { 0 };
        kept + reach::bytes(&self.graph) + sound
    }

    /// Follows all choices of a state.
    pub(crate) fn expand(&mut self, number: u32) -> Result<(), ExploreError> {
        let state = self.graph.state(number);
        let choices = self.look_at(number, &state);
        let mut edges = Vec::with_capacity(choices.len());
        for choice in choices {
            let next = self.follow(&state, choice)?;
            let (next, steps) = self.fused(&state, choice, next)?;
            let to = self.graph.number(&next);
            edges.push(Edge { choice, steps, to });
        }
        self.graph.expand(number, &edges);
        Ok(())
    }

    /// What was seen on the passage that a choice begins, where there was something.
    pub(crate) fn seen(&self, state: &State, choice: Choice) -> Option<&Seen> {
        let vcpu = choice.vcpu();
        let from = self.from(state, choice);
        let shows = choice.executes() && self.stage.shows(vcpu, from);
        shows.then(|| self.stage.seen_on(vcpu, from, self.input(state, choice))).flatten()
    }

    /// The state from which a choice has its vCPU go on.
    pub(crate) fn from(&self, state: &State, choice: Choice) -> u32 {
        self.stage.from(choice, state.locals[choice.vcpu()])
    }

    /// What a choice has its vCPU go on with.
    pub(crate) fn input(&self, state: &State, choice: Choice) -> Input {
        let vcpu = choice.vcpu();
        let local = self.stage.local(vcpu, state.locals[vcpu]);
        let apic = self.apics.get(state.apics[vcpu]);
        match (injected(choice, &apic, local.devices.tpr), &local.parked) {
            (Some(inject), _) => self.stage.enters(vcpu, inject, &apic.without(inject)),
            (None, Parked::Read { address, size, .. }) => {
                let memory = self.arenas.read(state.arena, *address, *size);
                let read = self.buffers.read(state, vcpu, (*address, *size), memory);
                self.stage.goes_on(vcpu, &local.parked, read, &apic)
            }
            (None, _) => self.stage.goes_on(vcpu, &local.parked, 0, &with_own(apic, vcpu, local)),
        }
    }

    /// The state that a choice leads to.
    pub(crate) fn follow(&mut self, state: &State, choice: Choice) -> Result<State, ExploreError> {
        let vcpu = choice.vcpu();
        if !choice.executes() {
            let mut next = state.clone();
            match choice {
                Choice::Early(_, number) => self.send_early(&mut next, vcpu, number)?,
                _ => _ = self.flush(&mut next, vcpu),
            }
            return Ok(next);
        }
        let input = self.input(state, choice);
        self.expect_no_other(state, vcpu, input)?;
        let from = self.from(state, choice);
        let passage = self.stage.passage(vcpu, from, input)?;
        let mut next = state.clone();
        next.locals[vcpu] = passage.to;
        if let Some(inject) = input.delivered() {
            // What comes drains the buffer first (SDM 3A 11.10).
            while self.flush(&mut next, vcpu) {}
            self.change(&mut next, vcpu, |apic| match inject {
                Inject::Vector(vector) => apic.accept(vector),
                Inject::Nmi => apic.nmi = false,
                Inject::Init => apic.reset(),
                Inject::StartUp(_) => apic.start_up = None,
            });
        }
        for effect in passage.effects.iter() {
            let parked = &self.stage.local(vcpu, state.locals[vcpu]).parked;
            match self.buffers.takes(parked, effect) {
                Some(store) if self.varied != Varied::NoFlush => self.buffers.push(&mut next, vcpu, store),
                _ if self.buffers.pay(&mut next, vcpu, effect) => {}
                _ => self.apply(&mut next, vcpu, *effect)?,
            }
        }
        Ok(next)
    }

    /// Has others see the oldest store of a vCPU that they do not see yet: whether there is one.
    fn flush(&mut self, state: &mut State, vcpu: usize) -> bool {
        let oldest = self.buffers.pop(state, vcpu);
        if let Some(Store { address, size, value }) = oldest {
            state.arena = self.arenas.store(state.arena, address, size, value);
        }
        oldest.is_some()
    }

    /// Does what vCPUs are about to do by a store that cannot be begun anew.
    fn finish_stores(&mut self, state: &mut State) -> Result<(), ExploreError> {
        for vcpu in 0..state.locals.len() {
            let local = self.stage.local(vcpu, state.locals[vcpu]);
            match local.parked {
                Parked::Write { address, value, before: None, .. } if sends(address) => {
                    let icr = u64::from(local.devices.icr_high) << 32 | value;
                    self.apply(state, vcpu, Effect::Send { icr, x2apic: false })?;
                }
                Parked::Write { address, before: None, .. } if ends_interrupt(address) => {
                    self.apply(state, vcpu, Effect::EndOfInterrupt)?;
                }
                Parked::Write { address, size, value, before: None } if Arenas::holds(address, size) => {
                    state.arena = self.arenas.store(state.arena, address, size, value);
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn apply(&mut self, state: &mut State, vcpu: usize, effect: Effect) -> Result<(), ExploreError> {
        match effect {
            Effect::Store { address, size, value } => {
                state.arena = self.arenas.store(state.arena, address, size, value);
            }
            Effect::EndOfInterrupt => self.change(state, vcpu, Apic::end_of_interrupt),
            Effect::Send { icr, x2apic } => {
                let (message, target) = command(icr, x2apic);
                if !message.is_known() {
                    return Err(self.refused(state, vcpu, format!("sends {message:?}")));
                }
                for receiver in (0..state.locals.len()).filter(|&other| target.holds(other, vcpu)) {
                    let local = self.stage.local(receiver, state.locals[receiver]);
                    let (svr, waits) = (local.devices.svr, local.parked == Parked::Waits);
                    if message.restarts() {
                        self.expect_restartable(state, vcpu, receiver, message)?;
                    }
                    self.change(state, receiver, |apic| apic.receive(message, svr, waits));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn change(&mut self, state: &mut State, vcpu: usize, change: impl FnOnce(&mut Apic)) {
        let mut apic = self.apics.get(state.apics[vcpu]);
        change(&mut apic);
        state.apics[vcpu] = self.apics.number(apic);
    }
}

/// A local APIC with what its vCPU is about to send to itself: that comes on the passage that begins with it.
fn with_own(mut apic: Apic, vcpu: usize, local: &Local) -> Apic {
    let sent = match local.parked {
        Parked::Send { icr } => Some((icr, true)),
        Parked::Write { address, value, .. } if sends(address) => {
            Some((u64::from(local.devices.icr_high) << 32 | value, false))
        }
        _ => None,
    };
    let message = sent.map(|(icr, x2apic)| command(icr, x2apic)).filter(|(_, target)| target.holds(vcpu, vcpu));
    if let Some((message, _)) = message {
        apic.receive(message, local.devices.svr, false);
    }
    apic
}

#[cfg(test)]
pub(crate) mod test;
