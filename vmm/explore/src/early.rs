//! Interrupts that others get before their sender writes them.
//!
//! By the letter of the manual a write to the x2APIC's ICR may pass what is in front of it, up to a serialising instruction or MFENCE with
//! LFENCE (SDM 3A 11.12.3); it stays in the order of other writes to the ICR. A vCPU is executed in its order all the same: it can choose
//! to send now what it writes later, and *owes* that write. Then
//!
//! - it writes what it owes first, and nothing is sent by that; it can write nothing else to its ICR before;
//! - it goes through no such barrier, and takes no interrupt and no NMI: whatever is behind those was not sent in front of them;
//! - a state from which nobody gets to owing nothing is *void*: what was sent there is never written, so it was never sent. What leads to a
//!   void state is taken out of the graph before anything is asked of it, and all that is said is said of what is left.
//!
//! So a run is over, and a fault is one, where nobody owes. A stall is a state that is not void and from which no way that is left leads to
//! an end; behind it lies one in which nobody owes, as behind every state that is not void, and from there a free machine goes on. A
//! schedule that never ends pays what it owes again and again, or it is none: that is one more thing that [a fair one](crate::fair) does.
//! And nobody has to send before its time, so it leaves no choice out that does not.
//!
//! What can be sent early is what a vCPU is known to write: from where it stands, without a barrier between, behind what it owes, by
//! passages that were seen in the search. It begins anew as long as more is known at its end. No interrupt is sent
//! for no other reason than that it was sent, then: nothing comes out of thin air. But it can come before the load that decides whether it
//! is written, which no processor does: more is explored than processors do, and what is complete is complete for them.

use std::cell::RefCell;
use std::rc::Rc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::fair::Duties;
use crate::graph::{Choice, Graph, State};
use crate::local::Parked;
use crate::passage::Effect;
use crate::reach::{self, Path};
use crate::search::{ExploreError, Search};
use crate::stage::Stage;

/// Interrupts that one vCPU sends at most before it writes the first of them: a search in which one could send more is not complete.
pub const MOST_OWED: usize = 8;

/// What vCPUs are known to write to their ICRs.
#[derive(Debug, Default)]
pub(crate) struct Foretold {
    /// The values, in the order in which they were met.
    icrs: Vec<u64>,
    /// Of each vCPU.
    ways: Vec<Ways>,
    /// Of how many passages it was made.
    known: usize,
    /// What was asked before: places among the values.
    asked: RefCell<FxHashMap<Asked, Rc<[usize]>>>,
}

/// A vCPU, the number of its state, and what it owes.
type Asked = (usize, u32, Box<[u64]>);

/// How one vCPU comes to such writes with no barrier between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ways {
    /// What leads from each of its states that lead to one.
    next: FxHashMap<u32, Vec<u32>>,
    /// Those in which it is about to write, and what.
    writes: FxHashMap<u32, u64>,
}

/// The graph without what leads to void states, and which those are.
#[derive(Debug)]
pub(crate) struct Sound {
    graph: Graph,
    void: Vec<bool>,
}

impl Foretold {
    /// By so many of the passages that are known, the first ones.
    pub(crate) fn of(stage: &Stage<'_>, vcpus: usize, known: usize) -> Self {
        let mut new = Self { ways: vec![Ways::default(); vcpus], known, ..Self::default() };
        for (vcpu, from, input, _) in &stage.log()[..known] {
            let Some(passage) = stage.known(*vcpu, *from, *input) else { continue };
            let ways = &mut new.ways[*vcpu];
            match stage.local(*vcpu, *from).parked {
                _ if input.delivered().is_some() => continue,
                Parked::Drain { all: true } | Parked::Halting => continue,
                Parked::Send { icr } => {
                    ways.writes.insert(*from, icr);
                    if !new.icrs.contains(&icr) {
                        new.icrs.push(icr);
                    }
                }
                _ => {}
            }
            let next = ways.next.entry(*from).or_default();
            if !next.contains(&passage.to) {
                next.push(passage.to);
            }
        }
        new.ways.iter_mut().for_each(Ways::keep_what_leads_to_writes);
        new
    }

    /// Those of a trace.
    pub(crate) fn told(icrs: Vec<u64>) -> Self {
        Self { icrs, ..Self::default() }
    }

    /// Of how many passages it was made.
    pub(crate) fn known(&self) -> usize {
        self.known
    }

    /// What a vCPU can write next behind what it owes, from that state on with no barrier between: places among the values. Nothing where it
    /// is about to write: that is as good.
    fn next(&self, vcpu: usize, local: u32, owed: &[u64]) -> Rc<[usize]> {
        let Some(ways) = self.ways.get(vcpu).filter(|ways| ways.next.contains_key(&local)) else {
            return Rc::default();
        };
        if ways.writes.contains_key(&local) {
            return Rc::default();
        }
        let key = (vcpu, local, owed.into());
        if let Some(known) = self.asked.borrow().get(&key) {
            return Rc::clone(known);
        }
        let icrs = ways.behind(local, owed);
        let places = self.icrs.iter().enumerate().filter(|(_, icr)| icrs.contains(*icr)).map(|(place, _)| place);
        let places: Rc<[usize]> = places.collect();
        self.asked.borrow_mut().insert(key, Rc::clone(&places));
        places
    }
}

impl Ways {
    fn keep_what_leads_to_writes(&mut self) {
        let mut before: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
        for (from, next) in &self.next {
            next.iter().for_each(|to| before.entry(*to).or_default().push(*from));
        }
        let mut queue: Vec<u32> = self.writes.keys().copied().collect();
        let mut leads: FxHashSet<u32> = queue.iter().copied().collect();
        while let Some(local) = queue.pop() {
            let from = before.get(&local).into_iter().flatten();
            queue.extend(from.filter(|from| leads.insert(**from)));
        }
        self.next.retain(|from, _| leads.contains(from));
        self.next.values_mut().for_each(|next| next.retain(|to| leads.contains(to)));
    }

    /// The values that can be written behind these, from a state on.
    fn behind(&self, local: u32, owed: &[u64]) -> FxHashSet<u64> {
        let mut from = vec![local];
        for icr in owed {
            let here = self.next_writes(from).into_iter().filter(|write| self.writes[write] == *icr);
            from = here.filter_map(|write| self.next.get(&write)).flatten().copied().collect();
        }
        self.next_writes(from).iter().map(|write| self.writes[write]).collect()
    }

    /// The states in which it is about to write next, from these on.
    fn next_writes(&self, from: Vec<u32>) -> Vec<u32> {
        let mut met: FxHashSet<u32> = from.iter().copied().collect();
        let (mut queue, mut writes) = (from, Vec::new());
        while let Some(local) = queue.pop() {
            if self.writes.contains_key(&local) {
                writes.push(local);
                continue;
            }
            let next = self.next.get(&local).into_iter().flatten();
            queue.extend(next.filter(|to| met.insert(**to)));
        }
        writes
    }
}

impl Search<'_> {
    /// What a vCPU can send before its time.
    pub(crate) fn early(&self, state: &State, vcpu: usize) -> Vec<Choice> {
        let places = self.early_places(state, vcpu);
        let is_full = self.buffers.owed(state, vcpu).len() >= MOST_OWED;
        let numbers = places.iter().filter(|_| !is_full).filter_map(|place| u8::try_from(*place).ok());
        // At most 255 vCPUs.
        numbers.map(|number| Choice::Early(vcpu as u8, number)).collect()
    }

    fn early_places(&self, state: &State, vcpu: usize) -> Rc<[usize]> {
        let Some(foretold) = &self.foretold else { return Rc::default() };
        foretold.next(vcpu, state.locals[vcpu], self.buffers.owed(state, vcpu))
    }

    /// Whether a vCPU could send more before its time than it is let.
    pub(crate) fn is_early_cut(&self, state: &State, vcpu: usize) -> bool {
        let next = self.early_places(state, vcpu);
        let is_full = self.buffers.owed(state, vcpu).len() >= MOST_OWED;
        next.iter().any(|place| is_full || u8::try_from(*place).is_err())
    }

    /// The value of such a choice.
    pub(crate) fn early_icr(&self, number: u8) -> Option<u64> {
        self.foretold.as_ref()?.icrs.get(usize::from(number)).copied()
    }

    /// Whether a vCPU can send that before its time in a state, for all that is known of it: what it writes shows later whether it does.
    pub(crate) fn can_be_early(&self, state: &State, choice: Choice) -> bool {
        let Choice::Early(vcpu, number) = choice else { return false };
        let vcpu = usize::from(vcpu);
        let parked = &self.stage.local(vcpu, state.locals[vcpu]).parked;
        let goes_on = parked.is_up() && *parked != Parked::Halted;
        goes_on && self.early_icr(number).is_some() && self.buffers.owed(state, vcpu).len() < MOST_OWED
    }

    /// A vCPU sends before its time.
    pub(crate) fn send_early(&mut self, state: &mut State, vcpu: usize, number: u8) -> Result<(), ExploreError> {
        if let Some(icr) = self.early_icr(number) {
            self.apply(state, vcpu, Effect::Send { icr, x2apic: true })?;
            self.buffers.owe(state, vcpu, icr);
        }
        Ok(())
    }

    /// Whether more is known of what vCPUs write than when the search began: then it has to begin anew.
    pub(crate) fn foretells_more(&mut self) -> bool {
        let Some(foretold) = &mut self.foretold else { return false };
        let now = Foretold::of(&self.stage, self.graph.vcpus(), self.stage.log().len());
        let is_more = now.ways != foretold.ways;
        if is_more {
            *foretold = now;
        }
        is_more
    }

    /// The graph of what is no void.
    pub(crate) fn sound(&self) -> &Graph {
        self.soundness().map_or(&self.graph, |sound| &sound.graph)
    }

    /// The void states.
    pub(crate) fn void(&self) -> impl Iterator<Item = u32> {
        let void = self.soundness().map_or(&[][..], |sound| &sound.void);
        (0..void.len() as u32).filter(|number| void[*number as usize])
    }

    fn soundness(&self) -> Option<&Sound> {
        self.foretold.is_some().then(|| {
            self.sound.get_or_init(|| {
                let void = self.find_void();
                Sound { graph: self.graph.without(&void), void }
            })
        })
    }

    /// Those from which no way leads to where nobody owes anything. What a state leads to that was not expanded, or not in full, nobody knows.
    fn find_void(&self) -> Vec<bool> {
        let is_known =
            |number: &u32| self.graph.is_expanded(*number) && self.buffers.anyone_owes(&self.graph.state(*number));
        let targets = (0..self.graph.len() as u32).filter(|number| !is_known(number));
        let mut leads = reach::leads_to(&self.graph, targets.chain(self.full.iter().copied()));
        leads.iter_mut().for_each(|leads| *leads = !*leads);
        leads
    }

    /// A way with what it takes until nobody owes anything: a free machine can go on from there. None where nothing is known that leads to
    /// there: what is owed at its end may never have been sent.
    pub(crate) fn until_paid(&self, mut path: Path) -> Option<Path> {
        let is_paid = |number: u32| !self.buffers.anyone_owes(&self.graph.state(number));
        let more = reach::shortest(self.sound(), *path.states.last()?, is_paid)?;
        if !more.is_empty() {
            path.choices.extend(more.iter().map(|edge| edge.choice));
            path.states.extend(more.iter().map(|edge| edge.to));
            path = reach::counted(&self.graph, path);
        }
        Some(path)
    }
}

impl Duties for Search<'_> {
    fn vector(&self, number: u32, choice: Choice) -> u8 {
        let Choice::Interrupt(vcpu) = choice else { return 0 };
        let state = self.graph.state(number);
        let vcpu = usize::from(vcpu);
        let tpr = self.stage.local(vcpu, state.locals[vcpu]).devices.tpr;
        self.apics.get(state.apics[vcpu]).deliverable(tpr).unwrap_or(0)
    }

    fn owing(&self, number: u32) -> Vec<u8> {
        if self.foretold.is_none() {
            return Vec::new();
        }
        let state = self.graph.state(number);
        let owes = |vcpu: &usize| !self.buffers.owed(&state, *vcpu).is_empty();
        // At most 255 vCPUs.
        (0..state.locals.len()).filter(owes).map(|vcpu| vcpu as u8).collect()
    }

    fn pays(&self, number: u32, choice: Choice) -> bool {
        let Choice::Run(vcpu) = choice else { return false };
        let is_write =
            |vcpu: usize| matches!(self.stage.local(vcpu, self.graph.local(number, vcpu)).parked, Parked::Send { .. });
        self.owing(number).contains(&vcpu) && is_write(vcpu.into())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// 0 → 1 writes 7 → 2 → 3 writes 8 → 1; 2 → 4, from where nothing leads to a write.
    fn ways() -> Ways {
        let next = [(0, vec![1]), (1, vec![2]), (2, vec![3, 4]), (3, vec![1]), (4, vec![5])];
        let mut ways = Ways { next: next.into_iter().collect(), writes: [(1, 7), (3, 8)].into_iter().collect() };
        ways.keep_what_leads_to_writes();
        ways
    }

    #[test]
    fn what_is_written_behind_what_is_owed_comes_in_the_order_of_the_vcpu() {
        let ways = ways();
        let behind = |local, owed: &[u64]| ways.behind(local, owed).into_iter().collect::<Vec<_>>();
        assert_eq!((behind(0, &[]), behind(0, &[7]), behind(0, &[7, 8])), (vec![7], vec![8], vec![7]));
        assert_eq!((behind(0, &[8]), behind(2, &[]), behind(4, &[])), (vec![], vec![8], vec![]));
        assert!(!ways.next.contains_key(&4) && ways.next[&2] == [3], "nothing is written from there");
    }

    #[test]
    fn nothing_is_sent_early_where_it_is_written_next() {
        let foretold = Foretold { icrs: vec![8, 7], ways: vec![ways()], ..Foretold::default() };
        let next = |local, owed: &[u64]| foretold.next(0, local, owed).to_vec();
        assert_eq!((next(0, &[]), next(2, &[]), next(2, &[8])), (vec![1], vec![0], vec![1]));
        assert_eq!((next(1, &[]), next(3, &[]), next(4, &[])), (vec![], vec![], vec![]));
    }
}
