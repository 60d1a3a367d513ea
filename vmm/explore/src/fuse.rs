//! Steps that are one with the step before: nobody goes on in between, and the state there is none of the graph.
//!
//! Most steps of a vCPU are visible: another meets what they access. One that accesses a word of the arena that nobody else does changes places
//! with whatever others do, so that a schedule that leaves the vCPU in front of it has one beside it that leaves it behind it, and comes to
//! the same. So the search follows such a step at once with the one before, as often as there is one, and what they lead to is the next state.
//! Each step is asked of KVM, and is one of a way, as any other.
//!
//! **Whose a word is** is seen. An agent is the task of a vCPU, or one of its handlers with what they have interrupted. A word is the agent's
//! that is about to access it in some state that is known; once there is another, and one of them writes, it is shared for ever. Where a step was
//! taken to be invisible for a word that turns out to be shared, the graph is built anew; what KVM has answered is kept. So in the graph that is
//! left no step was, whose word any other agent comes to on any passage that was ever asked for.
//!
//! **What else makes a step visible**: it sends or ends an interrupt, its vCPU dies of it, safety is judged by what was seen on it, or by where
//! its vCPU stood before it. What others send to its vCPU meanwhile it can receive before as well as behind. What comes to a vCPU that stands
//! in front of the step has to be able to come behind it, with the same priority: then it is the same, since handlers are agents of
//! their own, and what they have in common with what they interrupt beside the arena makes [places](crate::stage) of delivery, with which
//! nothing of that vCPU is fused; a step out of a handler is visible, so that what comes into a handler is seen there. Nor is it where a handler was seen that writes its frame: then it matters which step it came in front of.
//! An INIT does not let the step come behind it: where somebody sends one, nothing at all is fused.
//!
//! **No choice is put off for ever**: steps are no more one where the vCPU comes back to a state of its own that it was in before, or after
//! [so many](MOST_STEPS). So each round of the machine has a state in the graph, in which all choices are followed. A vCPU that waits for a
//! word of its own for ever goes round in the graph as well.
//!
//! **What is found is the same.** In a state in between the others can do what they can do behind the step, and so can the vCPU: whether it
//! leads to the end, whether it is left by each fair schedule, and what can be chosen from it, says the state behind. To leave a vCPU there
//! is no fewer preemptions than to leave it behind. Ways are told in single steps.
//!
//! Under a model with store buffers nothing is fused: a store to a word of one's own stands in the way of those behind it.

use rustc_hash::{FxHashMap, FxHashSet};
use stallbench_core::controlled::Inject;

use crate::apic::Message;
use crate::arena::Arenas;
use crate::graph::{Choice, Graph, State};
use crate::local::Parked;
use crate::passage::{Effect, Passage};
use crate::reach::Path;
use crate::search::{ExploreError, Search, Way};
use crate::settings::{Irq, Model, Settings, Varied};
use crate::stage::{Stage, is_open};

/// Steps at most that are one.
const MOST_STEPS: u8 = 128;
/// How often a search begins anew for words that turn out to be shared. Then all steps are visible: a guest that shares one more each time
/// costs no more than that.
const MOST_BEGUN: u32 = 256;
/// Bytes of a word: no access of the arena reaches beyond one.
const WORD: u64 = 8;

/// Which words of the arena are whose, as far as that is known.
#[derive(Debug, Default)]
pub(crate) struct Fusion {
    is_on: bool,
    /// An agent by its vCPU and the handlers that run, the first that came first.
    agents: FxHashMap<(usize, Vec<Inject>), u32>,
    words: FxHashMap<u64, Word>,
    /// How many states of each vCPU were looked at.
    looked_at: Vec<u32>,
    /// Words by which steps of the graph were invisible.
    relied_on: FxHashSet<u64>,
    /// The graph is from a file: that may be any.
    relies_on_all: bool,
    /// Somebody may send an INIT, or a start-up interrupt.
    restarts: bool,
    is_stale: bool,
    /// How often the graph was begun anew for that.
    begun: u32,
}

/// Who accesses a word.
#[derive(Clone, Copy, Debug)]
struct Word {
    first: u32,
    /// Others do, too.
    is_common: bool,
    is_written: bool,
}

impl Word {
    fn is_shared(self) -> bool {
        self.is_common && self.is_written
    }
}

impl Fusion {
    pub(crate) fn new(settings: &Settings) -> Self {
        let is_on = (settings.model, settings.irq, settings.varied) == (Model::Sc, Irq::Visible, Varied::Nothing);
        Self { is_on, ..Self::default() }
    }

    /// Whether a step was invisible in the graph that is visible by what is known now.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// The graph has nothing in it.
    pub(crate) fn begin_anew(&mut self) {
        self.count(u32::from(self.is_stale));
        self.relied_on.clear();
        (self.relies_on_all, self.is_stale) = (false, false);
    }

    /// How often the graph was begun anew for words that turned out to be shared.
    pub(crate) fn begun(&self) -> u32 {
        self.begun
    }

    fn count(&mut self, begun: u32) {
        self.begun = self.begun.saturating_add(begun);
        self.is_on &= self.begun < MOST_BEGUN;
    }

    /// The graph is from a file, and was begun anew so often.
    pub(crate) fn restored(&mut self, stage: &Stage<'_>, begun: u32) {
        self.look(stage);
        self.count(begun);
        (self.relies_on_all, self.is_stale) = (true, false);
    }

    /// Looks at the states of vCPUs that are new.
    fn look(&mut self, stage: &Stage<'_>) {
        self.looked_at.resize(stage.vcpus(), 0);
        for vcpu in 0..stage.vcpus() {
            for number in self.looked_at[vcpu]..stage.locals_of(vcpu) as u32 {
                let parked = &stage.local(vcpu, number).parked;
                if parked.message().is_some_and(Message::restarts) {
                    self.is_stale |= !self.restarts && (self.relies_on_all || !self.relied_on.is_empty());
                    self.restarts = true;
                }
                if let Some((word, writes)) = accesses(parked) {
                    let agent = self.agent(vcpu, stage.handlers(vcpu, number));
                    self.take(word, agent, writes);
                }
            }
            self.looked_at[vcpu] = stage.locals_of(vcpu) as u32;
        }
    }

    fn agent(&mut self, vcpu: usize, handlers: Vec<Inject>) -> u32 {
        let next = self.agents.len() as u32;
        *self.agents.entry((vcpu, handlers)).or_insert(next)
    }

    /// An agent accesses a word.
    fn take(&mut self, word: u64, agent: u32, writes: bool) {
        let of = self.words.entry(word).or_insert(Word { first: agent, is_common: false, is_written: false });
        let was_shared = of.is_shared();
        of.is_common |= of.first != agent;
        of.is_written |= writes;
        let is_new = of.is_shared() && !was_shared;
        self.is_stale |= is_new && (self.relies_on_all || self.relied_on.contains(&word));
    }

    /// The word that a vCPU is about to access, where nobody else meets it there.
    fn own(&self, parked: &Parked) -> Option<u64> {
        let (word, _) = accesses(parked).filter(|_| !self.restarts)?;
        self.words.get(&word).is_some_and(|of| !of.is_shared()).then_some(word)
    }
}

/// The word of the arena that a vCPU is about to access, and whether it may write it.
fn accesses(parked: &Parked) -> Option<(u64, bool)> {
    let (address, size, writes) = match *parked {
        Parked::Read { address, size, update } => (address, size, update),
        Parked::Write { address, size, .. } => (address, size, true),
        _ => return None,
    };
    Arenas::holds(address, size).then_some((address / WORD, writes))
}

impl Search<'_> {
    /// Goes on from where a choice has led with the steps that are one with it: what they come to, and how many steps that are.
    pub(crate) fn fused(&mut self, from: &State, choice: Choice, state: State) -> Result<(State, u8), ExploreError> {
        self.fusion.look(&self.stage);
        if !self.fusion.is_on || !choice.executes() || self.seen(from, choice).is_some() {
            return Ok((state, 1));
        }
        self.straight_on(choice.vcpu(), state, from.locals[choice.vcpu()])
    }

    /// The same of a vCPU that has made one step, from there on.
    fn straight_on(&mut self, vcpu: usize, mut state: State, from: u32) -> Result<(State, u8), ExploreError> {
        // At most 255 vCPUs.
        let (goes_on, mut stood, mut steps) = (Choice::Run(vcpu as u8), vec![from], 1);
        while steps < MOST_STEPS && !stood.contains(&state.locals[vcpu]) && self.is_next_invisible(&state, vcpu)? {
            stood.push(state.locals[vcpu]);
            state = self.follow(&state, goes_on)?;
            steps += 1;
        }
        Ok((state, steps))
    }

    /// Whether nobody can tell the next step of a vCPU from none. That is relied on from then on.
    fn is_next_invisible(&mut self, state: &State, vcpu: usize) -> Result<bool, ExploreError> {
        let here = state.locals[vcpu];
        if self.fusion.own(&self.stage.local(vcpu, here).parked).is_none() {
            return Ok(false);
        }
        let input = self.input(state, Choice::Run(vcpu as u8));
        let passage = self.stage.passage(vcpu, here, input)?;
        // Behind it another agent may stand at that word, or a place of delivery was found.
        self.fusion.look(&self.stage);
        let own = self.fusion.own(&self.stage.local(vcpu, here).parked);
        let own = own.filter(|_| {
            !self.stage.has_places(vcpu) && self.stage.comes_back(vcpu) && self.stage.is_invisible(vcpu, here, &passage)
        });
        self.fusion.relied_on.extend(own);
        Ok(own.is_some())
    }

    /// What is chosen next is one step, from now on: walks leave vCPUs anywhere.
    pub(crate) fn fuse_nothing(&mut self) {
        if std::mem::take(&mut self.fusion.is_on) {
            self.begin_anew();
        }
    }
}

impl Stage<'_> {
    /// Whether nobody can tell a step that accesses a word of its vCPU alone from none, and nothing that can come before it cannot come
    /// behind it.
    fn is_invisible(&self, vcpu: usize, from: u32, passage: &Passage) -> bool {
        let [here, there] = [from, passage.to].map(|number| self.local(vcpu, number));
        let stores = passage.effects.iter().all(|effect| matches!(effect, Effect::Store { .. }));
        let [interrupts, nmis] = [Self::takes_interrupts_at, Self::takes_nmis_at]
            .map(|takes| [from, passage.to].map(|at| takes(self, vcpu, at)));
        let comes_behind =
            (!interrupts[0] || interrupts[1] && here.devices.tpr == there.devices.tpr) && (!nmis[0] || nmis[1]);
        let is_judged = passage.seen.is_some() || here.has_caches_off() || here.is_elsewhere() && !there.is_elsewhere();
        // A handler is left by a step of its own: what comes into it comes there, and shows what they have in common.
        let is_within = self.handlers(vcpu, from) == self.handlers(vcpu, passage.to);
        is_within && stores && comes_behind && !is_judged && !matches!(there.parked, Parked::Dead(_))
    }

    fn takes_interrupts_at(&self, vcpu: usize, number: u32) -> bool {
        let local = self.local(vcpu, number);
        local.parked.is_between() && is_open(&local.processor)
    }

    fn takes_nmis_at(&self, vcpu: usize, number: u32) -> bool {
        self.begin_of(vcpu, number).is_some()
    }
}

impl Way {
    /// A path through the graph in single steps.
    pub(crate) fn of(graph: &Graph, path: &Path) -> Self {
        let mut way = Self { choices: Vec::new(), states: Vec::new(), preemptions: path.preemptions };
        way.states.extend(path.states.first().copied().map(Some));
        for (at, choice) in path.choices.iter().enumerate() {
            let steps = path.steps_at(graph, at);
            way.choices.push(*choice);
            way.choices.extend((1..steps).map(|_| Choice::Run(choice.vcpu() as u8)));
            way.states.extend((1..steps).map(|_| None));
            way.states.push(path.states.get(at + 1).copied());
        }
        way
    }
}

#[cfg(test)]
mod test;
