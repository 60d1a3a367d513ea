//! All states that a machine can come to.

mod restart;

use std::cell::OnceCell;

use stallbench_core::controlled::{Controlled, Inject};
use stallbench_state::program::Program;

use crate::apic::{Apic, command};
use crate::arena::{self, Arenas};
use crate::buffers::{Buffers, Leave, Store};
use crate::devices::{ends_interrupt, sends};
use crate::early::{Foretold, Sound};
use crate::end::End;
use crate::event::{Place, sent};
use crate::fair;
use crate::fuse::Fusion;
use crate::graph::{Apics, Choice, Edge, Graph, State, injected};
use crate::local::{Local, Parked};
use crate::moment::{self, Moment};
use crate::order::Order;
use crate::passage::{Effect, Input, Refusal};
use crate::reach;
use crate::safety::Seen;
use crate::settings::{Icr, Model, Settings, Varied};
use crate::stage::{Stage, is_open};
use crate::start::{self, StartError};
use thiserror::Error;

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

/// A schedule, from the start line on.
#[derive(Clone, Debug)]
pub struct Way {
    /// Single steps.
    pub(crate) choices: Vec<Choice>,
    /// The numbers of the states, the first included: one more than there are choices. None between two steps that are
    /// [one](crate::fuse) in the graph.
    pub(crate) states: Vec<Option<u32>>,
    /// How often a vCPU was left that could have gone on and got something done.
    pub(crate) preemptions: usize,
}

impl Way {
    /// How many choices it takes.
    pub fn steps(&self) -> usize {
        self.choices.len()
    }

    /// How often it leaves a vCPU that could have gone on and got something done.
    pub fn preemptions(&self) -> usize {
        self.preemptions
    }
}

/// Steps in a row of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The vCPU.
    pub vcpu: usize,
    /// Its first step, from 1 on.
    pub first: usize,
    /// Its last step.
    pub last: usize,
    /// What is delivered to it at the first of them.
    pub takes: Option<Inject>,
    /// A store of its own that others see from this step on, which is then all there is of it.
    pub lands: Option<Landed>,
    /// What it sends at this step and writes later, which is then all there is of it: `vector 0xfb to vcpu1`.
    pub sends: Option<String>,
    /// Where it stands then: the instruction that it executes next.
    pub to: String,
}

/// A store that was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landed {
    /// Guest-physical.
    pub address: u64,
    /// In bytes.
    pub size: u8,
    /// What, zero-extended.
    pub value: u64,
}

/// A schedule that ends where the run can never end.
#[derive(Clone, Debug)]
pub struct Stuck {
    /// It leads to one of the states that no schedule leaves.
    pub way: Way,
    /// After so many of its choices no schedule leads to the end any more.
    pub no_return: usize,
    /// How many states no schedule leaves.
    pub closed: usize,
    /// What decided it at that choice; none where every schedule stalls.
    pub turning: Option<Turning>,
}

/// The last choice at which the run could still come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turning {
    /// What was chosen, with what is delivered by it.
    pub took: (Choice, Option<Inject>),
    /// What there was to choose in its place, from where some schedule leads to the end.
    pub instead: Vec<(Choice, Option<Inject>)>,
}

/// A fair schedule that never comes to the end, though others do from wherever it leads.
#[derive(Clone, Debug)]
pub struct Livelock {
    /// It leads to a state and from there once round, back to the same state.
    pub way: Way,
    /// After so many of its choices the round begins.
    pub begins: usize,
    /// States of the set that a fair schedule need not leave.
    pub states: usize,
}

/// What the states of a machine say.
#[derive(Clone, Debug)]
pub struct Findings {
    /// All states are known.
    pub is_complete: bool,
    /// States in which a vCPU could hold back one more store than the model has it do: what that leads to is not known.
    pub full: usize,
    /// States from which the run can never end: all of them, where all states are known.
    pub stuck: usize,
    /// The nearest of them: with the fewest preemptions.
    pub stall: Option<Stuck>,
    /// A fair schedule for ever, where no state is known to be stuck: with the fewest preemptions to where it goes round.
    pub livelock: Option<Livelock>,
    /// The way to the nearest state in which a vCPU died.
    pub fault: Option<Way>,
    /// States in which the run is over.
    pub ends: usize,
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

    /// What the states that are known say.
    pub fn findings(&self) -> Findings {
        let is_complete = self.graph.is_complete() && self.full.is_empty();
        let aim = self.aim.filter(|aim| self.faults.contains(aim));
        let faults = aim.as_ref().map_or(&self.faults[..], std::slice::from_ref);
        let fault = (!faults.is_empty()).then(|| reach::nearest(self.sound(), self.is_one_of(faults))).flatten();
        let (stuck, stall) = self.stuck();
        let livelock = if stuck == 0 { fair::livelock(self.sound(), self) } else { None };
        let livelock = livelock.map(|(path, begins, states)| Livelock {
            begins: path.steps_to(&self.graph, begins),
            way: Way::of(&self.graph, &path),
            states,
        });
        Findings {
            is_complete,
            full: self.full.len(),
            stuck,
            stall,
            livelock,
            fault: fault.map(|path| Way::of(&self.graph, &path)),
            ends: self.ends.len(),
        }
    }

    /// The states in which the run is over, as far as they are known.
    pub fn ends(&self) -> impl Iterator<Item = End<'_>> {
        self.ends.iter().map(|number| End::new(*number, self))
    }

    /// The instructions between two stops in front of which interrupts come, by vCPU, as far as such were found to matter.
    pub fn places_between(&self) -> Vec<(usize, Place)> {
        let place = |address| Place { address: Some(address), name: self.stage.name_of(address) };
        self.stage.places().into_iter().map(|(vcpu, address)| (vcpu, place(address))).collect()
    }

    /// The states from which no schedule leads to the end, as ends are read.
    pub fn stuck_states(&self) -> impl Iterator<Item = End<'_>> {
        let leads = self.leads();
        let stuck = (0..self.graph.len() as u32).filter(move |number| !leads[*number as usize]);
        stuck.map(|number| End::new(number, self))
    }

    /// Which states lead to an end or a fault. Where one may lead that was not expanded, or not in full, nobody
    /// knows; a void one is none.
    fn leads(&self) -> Vec<bool> {
        let unknown = (0..self.graph.len() as u32).filter(|number| !self.graph.is_expanded(*number));
        let ends = self.ends.iter().chain(&self.faults).chain(&self.full).copied();
        reach::leads_to(self.sound(), ends.chain(unknown).chain(self.void()))
    }

    /// How many states lead nowhere, and the way to them.
    fn stuck(&self) -> (usize, Option<Stuck>) {
        let leads = self.leads();
        let stuck = leads.iter().filter(|leads| !**leads).count();
        (stuck, (stuck > 0).then(|| self.way_to_stall(&leads)).flatten())
    }

    fn is_one_of(&self, states: &[u32]) -> impl Fn(u32) -> bool + use<> {
        let mut is_one = vec![false; self.graph.len()];
        states.iter().for_each(|state| is_one[*state as usize] = true);
        move |state| is_one[state as usize]
    }

    /// The way to a state that no schedule leads out of, by the nearest one from which all is lost, or that which is aimed at.
    fn way_to_stall(&self, leads: &[bool]) -> Option<Stuck> {
        let graph = self.sound();
        let nearest = || reach::nearest(graph, |state| !leads[state as usize])?.states.last().copied();
        let lost = self.aim.filter(|aim| !leads[*aim as usize]).or_else(nearest)?;
        let states = reach::last_states(graph, lost);
        // No schedule leaves them. A store that nobody is about to meet can stay held back in all of them; what was sent is written in one.
        let is_flushed = |state: &&u32| self.graph.state(**state).is_flushed();
        let is_paid = |state: &&u32| !self.buffers.anyone_owes(&self.graph.state(**state));
        let target = *states.iter().find(is_flushed).or(states.iter().find(is_paid)).or(states.first())?;
        let path = reach::nearest(graph, |state| state == target)?;
        let lost = path.states.iter().position(|state| !leads[*state as usize])?;
        let turning = lost.checked_sub(1).map(|at| self.turning(path.states[at], path.choices[at], leads));
        // Of steps that are one the first decides.
        let no_return = lost.checked_sub(1).map_or(0, |at| path.steps_to(graph, at) + 1);
        Some(Stuck { no_return, way: Way::of(graph, &path), closed: states.len(), turning })
    }

    fn turning(&self, state: u32, took: Choice, leads: &[bool]) -> Turning {
        let of = self.graph.state(state);
        let with = |choice: Choice| {
            let vcpu = choice.vcpu();
            let tpr = self.stage.local(vcpu, of.locals[vcpu]).devices.tpr;
            (choice, injected(choice, &self.apics.get(of.apics[vcpu]), tpr))
        };
        let saves = self.sound().edges(state).iter().filter(|edge| leads[edge.to as usize]).map(|edge| edge.choice);
        let (own, others): (Vec<_>, Vec<_>) = saves.partition(|choice| choice.vcpu() == took.vcpu());
        // Where it could have done something else, what others do first only puts that off.
        let instead = if own.is_empty() { others } else { own };
        Turning { took: with(took), instead: instead.into_iter().map(with).collect() }
    }

    /// What happens on a way: who goes how far, and what is delivered to whom.
    pub fn legs(&self, way: &Way) -> Vec<Leg> {
        let mut legs: Vec<Leg> = Vec::new();
        let mut from = self.graph.state(0);
        for (step, (choice, to)) in way.choices.iter().zip(way.states.iter().skip(1)).enumerate() {
            let vcpu = choice.vcpu();
            // Behind steps that are one stands a state of the graph, and nothing is delivered in between.
            let to = to.map_or_else(|| from.clone(), |to| self.graph.state(to));
            let apic = self.apics.get(from.apics[vcpu]);
            let local = self.stage.local(vcpu, from.locals[vcpu]);
            let takes = injected(*choice, &apic, local.devices.tpr);
            let (mut lands, mut sends) = (None, None);
            match *choice {
                Choice::Flush(_) => lands = self.buffers.stores(&from, vcpu).first().map(Landed::of),
                Choice::Early(_, number) => {
                    sends = self.early_icr(number).map(|icr| sent(icr, vcpu, from.locals.len()))
                }
                _ => {}
            }
            let place = self.stage.place(vcpu, to.locals[vcpu]);
            let is_going = |leg: &Leg| (leg.lands, &leg.sends) == (None, &None);
            let goes_on =
                |leg: &&mut Leg| leg.vcpu == vcpu && is_going(leg) && (lands, takes, &sends) == (None, None, &None);
            match legs.last_mut().filter(goes_on) {
                Some(leg) => (leg.last, leg.to) = (step + 1, place),
                None => legs.push(Leg { vcpu, first: step + 1, last: step + 1, takes, lands, sends, to: place }),
            }
            from = to;
        }
        legs
    }

    /// Who goes at each step of a way, and where that vCPU stands behind it.
    ///
    /// # Errors
    ///
    /// KVM was asked for a step that is not known yet, and could not do it.
    pub fn places(&mut self, way: &Way) -> Result<Vec<(usize, String)>, ExploreError> {
        let (mut state, mut places) = (self.graph.state(0), Vec::new());
        for choice in &way.choices {
            let vcpu = choice.vcpu();
            state = self.follow(&state, *choice)?;
            places.push((vcpu, self.stage.place(vcpu, state.locals[vcpu])));
        }
        Ok(places)
    }

    /// The machine at the end of a way, as a free one can go on from there. `short` choices before its end.
    ///
    /// # Errors
    ///
    /// KVM did not do on that way what it did before.
    pub fn moment(&mut self, way: &Way, short: usize) -> Result<Moment, ExploreError> {
        let mut state = self.walk_on(&way.choices[..way.choices.len().saturating_sub(short)])?;
        (0..state.buffers.len()).for_each(|vcpu| while self.flush(&mut state, vcpu) {});
        self.finish_stores(&mut state)?;
        let apics: Vec<_> = state.apics.iter().map(|apic| self.apics.get(*apic)).collect();
        Ok(moment::moment(&mut self.stage, &state.locals, &apics, &self.arenas, state.arena))
    }

    /// Has KVM do all of a way once more, without setting back what counts and what was named.
    pub(crate) fn walk(&mut self, choices: &[Choice]) -> Result<State, ExploreError> {
        let first = self.graph.state(0);
        self.stage.rewind(&first.locals);
        let mut state = first;
        for choice in choices {
            self.expect_open(&state, *choice)?;
            let vcpu = choice.vcpu();
            if !choice.executes() {
                state = self.follow(&state, *choice)?;
                continue;
            }
            let input = self.input(&state, *choice);
            let from = self.from(&state, *choice);
            let known = self.stage.passage(vcpu, from, input)?;
            self.stage.again(vcpu, from, input, &known)?;
            state = self.follow(&state, *choice)?;
        }
        self.stage.machine().rest();
        Ok(state)
    }

    /// Has KVM do all of a way once more, each step from the state in which the last one of its vCPU ended, and compares all of each state.
    ///
    /// # Errors
    ///
    /// KVM did not do on that way what it did before.
    pub fn confirm(&mut self, way: &Way) -> Result<(), ExploreError> {
        let mut state = self.graph.state(0);
        self.stage.rewind(&state.locals);
        for choice in &way.choices {
            self.expect_open(&state, *choice)?;
            if choice.executes() {
                let (vcpu, input) = (choice.vcpu(), self.input(&state, *choice));
                let from = self.from(&state, *choice);
                let known = self.stage.passage(vcpu, from, input)?;
                self.stage.once_more(vcpu, from, input, &known)?;
            }
            state = self.follow(&state, *choice)?;
        }
        self.rest();
        Ok(())
    }

    /// A way goes on by what can happen where it stands, or it is none.
    fn expect_open(&self, state: &State, choice: Choice) -> Result<(), ExploreError> {
        if self.can_be_early(state, choice) || self.choices(state).contains(&choice) {
            return Ok(());
        }
        let (vcpu, difference) = (choice.vcpu(), format!("'{choice}' is no choice there"));
        let place = self.stage.place(vcpu, state.locals[vcpu]);
        Err(Refusal::Differs { vcpu, place, difference }.into())
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

    /// What can happen in a state that is about to be expanded, and what it is.
    pub(crate) fn look_at(&mut self, number: u32, state: &State) -> Vec<Choice> {
        let is_dead = |vcpu: usize| matches!(self.stage.local(vcpu, state.locals[vcpu]).parked, Parked::Dead(_));
        // What others do behind a fault is of no interest.
        let dead = (0..state.locals.len()).any(is_dead);
        // What others have sent and not written yet tells whether it was one.
        if dead && !self.buffers.anyone_owes(state) {
            self.faults.push(number);
            return Vec::new();
        }
        if self.is_over(state) {
            self.ends.push(number);
        }
        if self.is_cut(state) {
            self.full.push(number);
        }
        self.choices(state)
    }

    /// What can happen next.
    pub(crate) fn choices(&self, state: &State) -> Vec<Choice> {
        let mut choices = Vec::new();
        for vcpu in 0..state.locals.len() {
            // At most 255 vCPUs.
            let number = vcpu as u8;
            let local = self.stage.local(vcpu, state.locals[vcpu]);
            let goes_on = local.parked.is_up() && local.parked != Parked::Halted;
            if goes_on && self.buffers.leave(state, vcpu, &local.parked) == Leave::Given {
                choices.push(Choice::Run(number));
            }
            let apic = self.apics.get(state.apics[vcpu]);
            // It would come in front of what was sent before it.
            let owes = !self.buffers.owed(state, vcpu).is_empty();
            if local.parked.is_between() && !owes {
                let takes = self.varied != Varied::OnlyHaltedTakeInterrupts || local.parked == Parked::Halted;
                if takes && is_open(&local.processor) && apic.deliverable(local.devices.tpr).is_some() {
                    choices.push(Choice::Interrupt(number));
                }
            }
            let is_free = !local.processor.nmi_masked && !local.processor.shadow;
            if apic.nmi && is_free && !owes && self.stage.begin_of(vcpu, state.locals[vcpu]).is_some() {
                choices.push(Choice::Nmi(number));
            }
            choices.extend(restart(number, &local.parked, &apic));
            if !self.buffers.stores(state, vcpu).is_empty() {
                let parked = |vcpu: usize| &self.stage.local(vcpu, state.locals[vcpu]).parked;
                if self.varied == Varied::FlushesAnyTime || self.buffers.is_wanted(state, vcpu, parked) {
                    choices.push(Choice::Flush(number));
                }
            }
            if self.foretold.is_some() {
                choices.extend(self.early(state, vcpu));
            }
        }
        choices
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
            (Some(inject), _) => Input::Deliver(inject),
            (None, Parked::Read { address, size, .. }) => {
                let memory = self.arenas.read(state.arena, *address, *size);
                let read = self.buffers.read(state, vcpu, (*address, *size), memory);
                self.stage.goes_on(vcpu, read, &apic)
            }
            (None, _) => self.stage.goes_on(vcpu, 0, &with_own(apic, vcpu, local)),
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
        self.expect_none_behind(state, vcpu, from, input)?;
        let mut next = state.clone();
        next.locals[vcpu] = passage.to;
        if let Input::Deliver(inject) = input {
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

    /// Whether a choice is missing, since no more stores are held back, and no more is sent early, than the model says.
    fn is_cut(&self, state: &State) -> bool {
        (0..state.buffers.len()).any(|vcpu| {
            let parked = &self.stage.local(vcpu, state.locals[vcpu]).parked;
            self.buffers.leave(state, vcpu, parked) == Leave::Full || self.is_early_cut(state, vcpu)
        })
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

    /// Whether the run is over: every vCPU that is up has done its part and halts, with nothing on its way.
    pub(crate) fn is_over(&self, state: &State) -> bool {
        state.is_flushed()
            && (0..state.locals.len()).all(|vcpu| {
                let local = self.stage.local(vcpu, state.locals[vcpu]);
                let apic = self.apics.get(state.apics[vcpu]);
                let at_rest = local.parked == Parked::Halted && is_open(&local.processor) && local.is_through();
                let is_off = matches!(local.parked, Parked::Off | Parked::Waits);
                let rests = is_off || at_rest && !apic.nmi && apic.deliverable(local.devices.tpr).is_none();
                rests && restart(0, &local.parked, &apic).is_none()
            })
    }
}

/// What an INIT or a start-up interrupt can do with a vCPU that is parked so. An INIT comes wherever it executes instructions, and in front
/// of a store that it is about to make; what comes behind it waits for it.
fn restart(vcpu: u8, parked: &Parked, apic: &Apic) -> Option<Choice> {
    let takes_init = apic.init && (parked.is_up() || *parked == Parked::Waits);
    let begins = *parked == Parked::Waits && apic.start_up.is_some();
    if takes_init { Some(Choice::Init(vcpu)) } else { begins.then_some(Choice::StartUp(vcpu)) }
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
