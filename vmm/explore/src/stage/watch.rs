//! Where interrupts come between two stops: whether that matters, and every place.

use std::rc::Rc;
use std::sync::Arc;

use iced_x86::Mnemonic;
use rustc_hash::FxHashSet;
use stallbench_core::controlled::Inject;
use stallbench_state::machine::Registers;

use super::answer::{Answer, Came};
use super::steps::{Look, Step};
use super::{Stage, Vcpu};
use crate::apic::Apic;
use crate::graph::Choice;
use crate::local::{Local, Parked};
use crate::passage::{Comes, Effect, Input, Passage, Refusal, Sent};
use crate::private::{Looked, Looker, changes_what_lasts, open};
use crate::settings::Irq;

impl Stage<'_> {
    /// What a vCPU goes on with that reads this, with this requested of it. Who sees its access may send it something in answer, which comes on
    /// its way from there.
    pub(crate) fn goes_on(&self, vcpu: usize, from: &Parked, read: u64, apic: &Apic) -> Input {
        let is_seen = from.is_access();
        let comes = Comes {
            // A priority may let it come later on the way.
            vector: is_seen || apic.irr.iter().any(|word| *word != 0),
            nmi: is_seen && self.sent.nmi || apic.nmi,
            init: is_seen && self.sent.init || apic.init,
        };
        let creeps = self.irq == Irq::EveryInsn || !self.vcpus[vcpu].places.is_empty();
        if comes.init || creeps && (comes.vector || comes.nmi) { Input::Creep(read, comes) } else { Input::Go(read) }
    }

    /// What a vCPU goes on with that takes this, with so much left that is requested of it. From then on the same can be sent again: before, it
    /// would have been one with that.
    pub(crate) fn enters(&self, vcpu: usize, inject: Inject, left: &Apic) -> Input {
        let comes = Comes {
            vector: matches!(inject, Inject::Vector(_)) || left.irr.iter().any(|word| *word != 0),
            nmi: inject == Inject::Nmi || left.nmi,
            init: left.init,
        };
        let matters = comes.init || self.irq == Irq::EveryInsn || !self.vcpus[vcpu].places.is_empty();
        if matters && matches!(inject, Inject::Vector(_) | Inject::Nmi) {
            Input::Enter(inject, comes)
        } else {
            Input::Deliver(inject)
        }
    }

    /// The passage that has to be known before another one is asked for.
    pub(super) fn needs(&self, vcpu: usize, from: u32, input: Input) -> Option<Input> {
        match input {
            Input::Creep(..) => {
                let creeps = self.irq == Irq::Visible;
                input.whole().filter(|_| creeps && self.local(vcpu, from).parked != Parked::Halting)
            }
            _ => input.whole(),
        }
    }

    /// To the first instruction of a handler, or the next stop where nothing that matters can come in between.
    pub(super) fn enter(&mut self, vcpu: usize, from: u32, inject: Inject, comes: Comes) -> Result<Came, Refusal> {
        let deliver = Input::Deliver(inject);
        if !comes.init && !self.passes_place(vcpu, from, deliver, comes) {
            let whole = self.passage(vcpu, from, deliver)?;
            return Ok(self.whole(vcpu, &whole));
        }
        let start = self.local(vcpu, from).clone();
        let mut looker = self.vcpus[vcpu].private.looker(from, Some(inject));
        let mut look = |step: &Step<'_>| {
            looker.enters(step.memory, step.before);
            Some(Parked::Open)
        };
        let came = self.by_steps(vcpu, from, &start, deliver, &mut look)?;
        Ok(Came::part(came, looker.looked()))
    }

    /// To the next place where what is requested can come and that matters, or the next stop.
    pub(super) fn creep(&mut self, vcpu: usize, from: u32, read: u64, comes: Comes) -> Result<Came, Refusal> {
        let start = self.local(vcpu, from).clone();
        if start.parked == Parked::Halting {
            return Ok(Came::elsewhere(start.halted(), Vec::new()));
        }
        let input = Input::Creep(read, comes);
        if comes.init {
            self.expect_no_string(vcpu, from, &start, input)?;
        }
        if self.irq == Irq::EveryInsn {
            return self.creep_to(vcpu, from, &start, input, &mut stops_at(vcpu, &start, comes, None));
        }
        let whole = self.passage(vcpu, from, Input::Go(read))?;
        if !comes.init && !self.passes_place(vcpu, from, Input::Go(read), comes) {
            // What stands where nothing could come before is the same in front of it: where something comes behind it is the stop, or where that
            // takes none the place where this passage ends.
            return Ok(self.whole(vcpu, &whole));
        }
        let places = Rc::clone(&self.vcpus[vcpu].places);
        let end = self.local(vcpu, whole.to).clone();
        let mut is_over = ends_at(&start, input, &end);
        let mut stops = stops_at(vcpu, &start, comes, Some(Rc::clone(&places)));
        let (mut is_place, mut is_last) = (false, true);
        let mut look = |step: &Step<'_>| {
            // Nothing parks as one that is off.
            let over = is_over(step).then_some(Parked::Off);
            is_place |= over.is_none() && stops(step).is_some();
            is_last &= over.is_some() || !is_place || !places.contains(&step.before.general.rip);
            over
        };
        self.by_steps(vcpu, from, &start, input, &mut look)?;
        // Where nothing matters any more it comes at the stop as well.
        if !is_place || is_last && self.takes(&end, comes) {
            return Ok(self.whole(vcpu, &whole));
        }
        // Beside what was seen up to there.
        self.look_away(vcpu);
        let mut stops = stops_at(vcpu, &start, comes, Some(places));
        self.creep_to(vcpu, from, &start, input, &mut stops)
    }

    /// To where it parks, or the next stop, with a look at each instruction on the way.
    fn creep_to(
        &mut self,
        vcpu: usize,
        from: u32,
        start: &Local,
        input: Input,
        stops: &mut Look<'_>,
    ) -> Result<Came, Refusal> {
        let mut looker = self.vcpus[vcpu].private.looker(from, None);
        let mut look = |step: &Step<'_>| {
            let parked = stops(step);
            if parked.is_none() {
                looker.look(step.memory, step.before, step.instruction);
            }
            parked
        };
        let came = self.by_steps(vcpu, from, start, input, &mut look)?;
        Ok(Came::part(came, self.looked(vcpu, looker)?))
    }

    /// What was looked at, if that can be explored.
    fn looked(&self, vcpu: usize, looker: Looker) -> Result<Looked, Refusal> {
        if looker.ends_late() {
            let what = "has ended an interrupt behind a place where another can come, on its way to a stop";
            return Err(self.unknown(vcpu, what));
        }
        Ok(looker.looked())
    }

    /// All of a passage that is known, and was looked at.
    fn whole(&self, vcpu: usize, whole: &Passage) -> Came {
        let handlers = Looked::with(self.vcpus[vcpu].private.frames(whole.to));
        Came::whole(self.local(vcpu, whole.to).clone(), whole, handlers)
    }

    /// Whether all that comes can come where a vCPU is parked, wherever it could on its way there. An INIT finds another vCPU there.
    fn takes(&self, here: &Local, comes: Comes) -> bool {
        let [interrupts, nmis] = open(&here.processor).map(|open| open && here.parked.is_between());
        !comes.init && (interrupts || !comes.vector) && (nmis || !comes.nmi)
    }

    /// An INIT can come in the middle of a string instruction, which hosts step as one or as many. So none may change what that leaves.
    fn expect_no_string(&mut self, vcpu: usize, from: u32, start: &Local, input: Input) -> Result<(), Refusal> {
        let mut string = false;
        let mut look = |step: &Step<'_>| {
            let repeats = step.instruction.has_rep_prefix() || step.instruction.has_repne_prefix();
            string |= repeats && changes_what_lasts(vcpu, step.before, step.instruction);
            None
        };
        self.by_steps(vcpu, from, start, input, &mut look)?;
        if string { Err(self.unknown(vcpu, "fills memory of its own with an INIT on its way to it")) } else { Ok(()) }
    }

    /// As what a passage is done once more: one that came to no place runs to its stop.
    pub(super) fn as_it_went(&self, vcpu: usize, from: u32, input: Input, known: &Passage) -> Input {
        let Some(whole) = self.needs(vcpu, from, input) else { return input };
        let is_whole = self.known(vcpu, from, whole).is_some_and(|passage| passage.to == known.to);
        if is_whole { whole } else { input }
    }

    /// The same once more, of a vCPU that stands there. What counts may be another in a register, so that the place is found as it was.
    pub(super) fn creep_from_here(
        &mut self,
        vcpu: usize,
        start: &Local,
        input: Input,
        comes: Comes,
    ) -> Result<(Parked, Vec<Effect>), Refusal> {
        if start.parked == Parked::Halting {
            return Ok((Parked::Halted, Vec::new()));
        }
        let places = (self.irq == Irq::Visible).then(|| Rc::clone(&self.vcpus[vcpu].places));
        let (here, effects) = self.by_steps_from_here(vcpu, start, input, &mut stops_at(vcpu, start, comes, places))?;
        Ok((here.parked, effects))
    }

    /// The instructions in front of which interrupts come between two stops, by vCPU and address, in order.
    pub(crate) fn places(&self) -> Vec<(usize, u64)> {
        let of = |(vcpu, all): (usize, &Vcpu)| all.places.iter().map(|at| (vcpu, *at)).collect::<Vec<_>>();
        let mut places: Vec<_> = self.vcpus.iter().enumerate().flat_map(of).collect();
        places.sort_unstable();
        places
    }

    /// Whether it matters for a vCPU between which instructions something comes.
    pub(crate) fn has_places(&self, vcpu: usize) -> bool {
        !self.vcpus[vcpu].places.is_empty()
    }

    /// Whether something of what comes could come on a passage in front of an instruction where that matters.
    pub(crate) fn passes_place(&self, vcpu: usize, from: u32, input: Input, comes: Comes) -> bool {
        let Vcpu { places, behind, .. } = &self.vcpus[vcpu];
        let passed = behind.get(&(from, input)).map(|all| &all[..]).unwrap_or_default();
        let matters = |rip: &u64| self.irq == Irq::EveryInsn || places.contains(rip);
        passed.iter().any(|(rip, open)| matters(rip) && (comes.vector && open[0] || comes.nmi && open[1]))
    }

    /// Whether handlers lead a vCPU back to where they interrupted it, always.
    pub(crate) fn comes_back(&self, vcpu: usize) -> bool {
        !self.vcpus[vcpu].private.leads_elsewhere
    }

    /// The handlers that run in a state of a vCPU.
    pub(crate) fn handlers(&self, vcpu: usize, number: u32) -> Vec<Inject> {
        self.vcpus[vcpu].private.handlers(number)
    }

    /// What vCPUs send each other beside interrupts with a vector, as far as that is known.
    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }

    /// Somebody may send this, too.
    pub(crate) fn expect_sent(&mut self, sent: Sent) {
        let all = Sent { nmi: self.sent.nmi || sent.nmi, init: self.sent.init || sent.init };
        self.new_places |= all != self.sent;
        self.sent = all;
    }

    /// Has interrupts come there too, as if it had been found to matter.
    pub(crate) fn deliver_at(&mut self, vcpu: usize, at: u64) {
        Rc::make_mut(&mut self.vcpus[vcpu].places).insert(at);
    }

    /// Whether more places matter than did at the last look.
    pub(crate) fn has_new_places(&mut self) -> bool {
        std::mem::take(&mut self.new_places)
    }

    /// The same, and they still do at the next look.
    pub(crate) fn is_new_place_known(&self) -> bool {
        self.new_places
    }

    /// Looks at all instructions of a passage to a state, for what handlers and what they interrupt have in common; and where it is, near
    /// its end, that an NMI can come last, if that is not where it ends.
    pub(super) fn watch(
        &mut self,
        vcpu: usize,
        from: u32,
        input: Input,
        end: &Local,
    ) -> Result<(Looked, Option<Local>), Refusal> {
        let start = self.local(vcpu, from).clone();
        let delivered = input.delivered();
        let mut looker = self.vcpus[vcpu].private.looker(from, delivered);
        let (mut steps, mut is_shadow) = (0, false);
        if start.parked != Parked::Halting || delivered.is_some() {
            let mut is_over = ends_at(&start, input, end);
            let mut look = |step: &Step<'_>| {
                looker.enters(step.memory, step.before);
                let over = is_over(step);
                if !over {
                    (steps, is_shadow) = (steps + 1, step.before.shadow);
                }
                (!over).then(|| looker.look(step.memory, step.before, step.instruction));
                over.then_some(Parked::Open)
            };
            self.by_steps(vcpu, from, &start, input, &mut look)?;
        }
        let looked = self.looked(vcpu, looker)?;
        let has_begun = self.has_begun(&start, input, end);
        // In the shadow of an STI nothing comes but in front of that.
        let steps = steps - usize::from(is_shadow);
        let begins = if has_begun { self.begin(vcpu, from, &start, input, steps)? } else { None };
        Ok((looked, begins))
    }

    /// Keeps what was looked at on the way to a state, in which handlers can meet what they interrupt.
    pub(super) fn meet(&mut self, vcpu: usize, answer: &Answer, to: u32, is_new: bool) -> Result<(), Refusal> {
        // Steps of its may have been one with others.
        self.new_places |= answer.looked.leads_elsewhere && !self.vcpus[vcpu].private.leads_elsewhere;
        for interrupted in self.vcpus[vcpu].private.take(&answer.looked, to) {
            match self.irq {
                Irq::Visible => {
                    let places = Rc::make_mut(&mut self.vcpus[vcpu].places);
                    if places.insert(interrupted) {
                        self.new_places = true;
                        // They may have passed it.
                        self.vcpus[vcpu].passages.retain(|(_, input), _| input.whole().is_none());
                    }
                }
                Irq::EveryInsn => {}
            }
        }
        if let Some(begins) = &answer.begins {
            let here = self.number(vcpu, Arc::clone(begins));
            let of = &mut self.vcpus[vcpu];
            let begins = of.begins.len();
            of.begins.entry(to).or_insert(here);
            of.private.stands_as(here, to);
            // No NMI came there where its state was gone on from before.
            self.new_places |= !is_new && of.begins.len() > begins;
        }
        self.shares(vcpu)
    }

    /// Whether an NMI can come in front of where a passage has ended, and there is no state from which it could: in front of a store that is
    /// still to be done, or of the STI in whose shadow that is.
    fn has_begun(&self, start: &Local, input: Input, here: &Local) -> bool {
        let is_store = matches!(here.parked, Parked::Write { before: None, .. }) && self.is_missed(start, input, here);
        let is_shadow = here.processor.shadow && !self.is_inside(start, here);
        (is_store || is_shadow) && !here.processor.nmi_masked && input.whole().is_none()
    }

    /// Where the last of so many instructions of a passage begins.
    fn begin(
        &mut self,
        vcpu: usize,
        from: u32,
        start: &Local,
        input: Input,
        steps: usize,
    ) -> Result<Option<Local>, Refusal> {
        let mut left = steps;
        let mut look = |step: &Step<'_>| {
            left = left.wrapping_sub(1);
            (left == 0 && !step.before.shadow).then_some(Parked::Open)
        };
        let (here, _) = self.by_steps(vcpu, from, start, input, &mut look)?;
        Ok((here.parked == Parked::Open).then_some(here))
    }

    /// The state from which a choice has a vCPU go on that stands in another.
    pub(crate) fn from(&self, choice: Choice, number: u32) -> u32 {
        match choice {
            Choice::Nmi(vcpu) => self.begin_of(vcpu.into(), number).unwrap_or(number),
            _ => number,
        }
    }

    /// Where a vCPU is when an NMI comes to it: where it stands, or where its instruction began, or the STI before that. None where none can
    /// come.
    pub(crate) fn begin_of(&self, vcpu: usize, number: u32) -> Option<u32> {
        let stands = self.local(vcpu, number);
        let is_there = stands.parked.is_between() && !stands.processor.shadow;
        let begin = if is_there { Some(number) } else { self.vcpus[vcpu].begins.get(&number).copied() };
        begin.filter(|begin| open(&self.local(vcpu, *begin).processor)[1])
    }

    /// Whether a vCPU shares with another what the host maps for all of them and has not declared.
    fn shares(&self, vcpu: usize) -> Result<(), Refusal> {
        let own = &self.vcpus[vcpu].private;
        let others = (0..self.vcpus.len()).filter(|other| *other != vcpu);
        for (other, private) in others.map(|other| (other, &self.vcpus[other].private)) {
            if let Some((address, rips)) = own.shares(private) {
                let places = rips.map(|rip| self.code.place(rip));
                return Err(Refusal::Shares { vcpus: [vcpu, other], address, places });
            }
        }
        if let Some((address, rip)) = own.writes_outside() {
            let what = format!("writes {address:#x}, which is part of no state,");
            return Err(Refusal::Unknown { vcpu, what, place: self.code.place(rip) });
        }
        Ok(())
    }
}

/// Has a vCPU park where something can come, but not where it could come already: at all instructions, or at the first behind its start and
/// behind each of these, whether something can come in front of those or not. An INIT comes in front of these, and of those too that change
/// what it leaves.
fn stops_at(
    vcpu: usize,
    start: &Local,
    comes: Comes,
    places: Option<Rc<FxHashSet<u64>>>,
) -> impl FnMut(&Step<'_>) -> Option<Parked> + use<> {
    let mut stood = is_place(&start.parked);
    let came = if stood { open(&start.processor) } else { [false; 2] };
    // It makes a difference whether an interrupt, or an NMI, has come before the next instruction.
    let mut matters = came.map(|came| !came);
    move |step| {
        let comes_here =
            [comes.vector, comes.nmi].into_iter().zip(open(step.before)).map(|(comes, open)| comes && open);
        let can_come = comes_here.zip(matters).any(|(comes, matters)| comes && matters);
        let meets = places.as_ref().is_none_or(|places| places.contains(&step.before.general.rip));
        if meets {
            matters = [true; 2];
        }
        let resets = comes.init && (meets || changes_what_lasts(vcpu, step.before, step.instruction));
        let stands = std::mem::take(&mut stood);
        ((can_come || resets) && !stands && step.instruction.mnemonic() != Mnemonic::Hlt).then_some(Parked::Open)
    }
}

/// Whether a vCPU stands in front of an instruction of which it has done nothing.
fn is_place(parked: &Parked) -> bool {
    matches!(parked, Parked::Open | Parked::Drain { .. })
}

/// Whether a passage is over in front of an instruction: where that is no stop by itself.
fn ends_at(start: &Local, input: Input, end: &Local) -> impl FnMut(&Step<'_>) -> bool + use<> {
    let mut stood = is_place(&start.parked) && input.delivered().is_none();
    let end = is_place(&end.parked).then_some(Registers { rflags: 0, ..end.processor.general });
    move |step| {
        let stands = std::mem::take(&mut stood);
        !stands && end == Some(Registers { rflags: 0, ..step.before.general })
    }
}
