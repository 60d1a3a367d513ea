//! What the states say that are known.

use stallbench_core::controlled::Inject;

use super::{Search, Way};
use crate::end::End;
use crate::event::Place;
use crate::fair;
use crate::graph::{Choice, injected};
use crate::passage::Sent;
use crate::reach;

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

impl Search<'_> {
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

    /// Whether NMIs, and INITs, are sent, as far as that is known: then they come between two stops, too.
    pub fn sends_nmis_and_inits(&self) -> [bool; 2] {
        let Sent { nmi, init } = self.stage.sent();
        [nmi, init]
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
}
