//! Ways through the graph: schedules, gone once more, and told.

use stallbench_core::controlled::Inject;

use super::{ExploreError, Search};
use crate::event::sent;
use crate::graph::{Choice, State, injected};
use crate::moment::{self, Moment};
use crate::passage::Refusal;

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

impl Search<'_> {
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
}
