//! Where interrupts come between two stops: whether that matters, and every place.

use std::rc::Rc;

use iced_x86::Mnemonic;
use rustc_hash::FxHashSet;
use stallbench_state::machine::Registers;

use super::steps::Step;
use super::{Stage, is_open};
use crate::apic::Apic;
use crate::local::{Local, Parked};
use crate::passage::{Comes, Effect, Input, Passage, Refusal};
use crate::private::Meeting;
use crate::settings::Irq;

impl Stage<'_> {
    /// What a vCPU goes on with that reads this, with this requested of it.
    pub(crate) fn goes_on(&self, vcpu: usize, read: u64, apic: &Apic) -> Input {
        // A priority may let it come later on the way.
        let comes = Comes { vector: apic.irr.iter().any(|word| *word != 0), nmi: apic.nmi };
        let creeps = self.irq == Irq::EveryInsn || !self.vcpus[vcpu].places.is_empty();
        if creeps && (comes.vector || comes.nmi) { Input::Creep(read, comes) } else { Input::Go(read) }
    }

    /// To the next place where what is requested can come and that matters, or the next stop.
    pub(super) fn creep(&mut self, vcpu: usize, from: u32, read: u64, comes: Comes) -> Result<Passage, Refusal> {
        let start = self.local(vcpu, from).clone();
        if start.parked == Parked::Halting {
            return Ok(self.ended(vcpu, start.halted(), Vec::new()));
        }
        let input = Input::Creep(read, comes);
        if self.irq == Irq::EveryInsn {
            let (here, effects) = self.by_steps(vcpu, from, &start, input, &mut stops_at(&start, comes, None))?;
            return Ok(self.ended(vcpu, here, effects));
        }
        let whole = self.passage(vcpu, from, Input::Go(read))?;
        let mut is_over = ends_at(&start, input, self.local(vcpu, whole.to));
        let mut stops = stops_at(&start, comes, Some(Rc::clone(&self.vcpus[vcpu].places)));
        // Nothing parks as one that is off.
        let mut look = |step: &Step<'_>| stops(step).or_else(|| is_over(step).then_some(Parked::Off));
        let (here, effects) = self.by_steps(vcpu, from, &start, input, &mut look)?;
        Ok(if here.parked == Parked::Open { self.ended(vcpu, here, effects) } else { whole })
    }

    /// As what a passage is done once more: one that came to no place runs to its stop.
    pub(super) fn as_it_went(&self, vcpu: usize, from: u32, input: Input, known: &Passage) -> Input {
        match input {
            Input::Creep(read, _) if self.irq == Irq::Visible => {
                let whole = self.known(vcpu, from, Input::Go(read));
                if whole.is_some_and(|whole| whole.to == known.to) { Input::Go(read) } else { input }
            }
            input => input,
        }
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
        let (here, effects) = self.by_steps_from_here(vcpu, start, input, &mut stops_at(start, comes, places))?;
        Ok((here.parked, effects))
    }

    /// Whether nothing comes between two stops.
    pub(crate) fn stops_alone(&self) -> bool {
        self.irq == Irq::Visible && self.vcpus.iter().all(|vcpu| vcpu.places.is_empty())
    }

    /// Whether more places matter than did at the last look.
    pub(crate) fn has_new_places(&mut self) -> bool {
        std::mem::take(&mut self.new_places)
    }

    /// Looks at all instructions of a passage to a state, for what handlers and what they interrupt have in common.
    pub(super) fn watch(&mut self, vcpu: usize, from: u32, input: Input, to: u32) -> Result<(), Refusal> {
        let start = self.local(vcpu, from).clone();
        let delivered = match input {
            Input::Deliver(inject) => Some(inject),
            Input::Go(_) | Input::Creep(..) => None,
        };
        let mut looker = self.vcpus[vcpu].private.looker(from, delivered);
        if start.parked != Parked::Halting || delivered.is_some() {
            let mut is_over = ends_at(&start, input, self.local(vcpu, to));
            let mut look = |step: &Step<'_>| {
                let over = is_over(step);
                (!over).then(|| looker.look(step.memory, step.before, step.instruction));
                over.then_some(Parked::Open)
            };
            self.by_steps(vcpu, from, &start, input, &mut look)?;
        }
        for meeting in self.vcpus[vcpu].private.take(looker, to) {
            match self.irq {
                Irq::Visible if self.finds_drains => return Err(self.meets(vcpu, &meeting)),
                Irq::Visible => {
                    let places = Rc::make_mut(&mut self.vcpus[vcpu].places);
                    if places.insert(meeting.interrupted) {
                        self.new_places = true;
                        // They may have passed it.
                        self.vcpus[vcpu].passages.retain(|(_, input), _| !matches!(input, Input::Creep(..)));
                    }
                }
                Irq::EveryInsn => {}
            }
        }
        self.shares(vcpu)
    }

    fn meets(&self, vcpu: usize, Meeting { at, handler: (who, rip), interrupted }: &Meeting) -> Refusal {
        let [place, interrupted] = [rip, interrupted].map(|rip| self.code.place(*rip));
        Refusal::Meets { vcpu, handler: who.to_string(), what: at.to_string(), place, interrupted }
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
        Ok(())
    }
}

/// Has a vCPU park where something can come, but not where it stands already: at all instructions, or at these.
fn stops_at(
    start: &Local,
    comes: Comes,
    places: Option<Rc<FxHashSet<u64>>>,
) -> impl FnMut(&Step<'_>) -> Option<Parked> + use<> {
    let mut stood = start.parked == Parked::Open;
    move |step| {
        let can_come = comes.vector && is_open(step.before) || comes.nmi && !step.before.nmi_masked;
        let matters = places.as_ref().is_none_or(|places| places.contains(&step.before.general.rip));
        let stands = std::mem::take(&mut stood);
        (can_come && matters && !stands && step.instruction.mnemonic() != Mnemonic::Hlt).then_some(Parked::Open)
    }
}

/// Whether a passage is over in front of an instruction: where that is no stop by itself.
fn ends_at(start: &Local, input: Input, end: &Local) -> impl FnMut(&Step<'_>) -> bool + use<> {
    let is_place = |parked: &Parked| matches!(parked, Parked::Open | Parked::Drain { .. });
    let mut stood = is_place(&start.parked) && !matches!(input, Input::Deliver(_));
    let end = is_place(&end.parked).then_some(Registers { rflags: 0, ..end.processor.general });
    move |step| {
        let stands = std::mem::take(&mut stood);
        !stands && end == Some(Registers { rflags: 0, ..step.before.general })
    }
}
