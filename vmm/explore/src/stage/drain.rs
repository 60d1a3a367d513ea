//! Where on its way a vCPU waits until others see what it has stored.
//!
//! No fence stops a vCPU. So under a model with store buffers each passage is asked by single steps, and ends in front of the first
//! instruction that [drains](crate::drains). What the steps come to, that one passed, is held against the same passage as it runs: a
//! difference is refused.

use iced_x86::{FlowControl, Mnemonic};

use super::answer::Came;
use super::steps::Step;
use super::{Stage, Way, is_open};
use crate::drains::{Drains, drains};
use crate::local::{Local, Parked};
use crate::passage::{Effect, Input, Refusal};

/// Looks for places on the way.
#[derive(Debug)]
struct Looking {
    /// What it waited for at its start comes first, and is done.
    is_due: bool,
    /// Where the instruction before leads, if it is none that jumps.
    next: Option<u64>,
    /// It came to an instruction that drains.
    drain: Option<Drains>,
    /// It came to where an interrupt can come, before that.
    opens: bool,
    /// It took an exception, before that.
    raises: bool,
}

impl Looking {
    fn from(start: &Local, input: Input) -> Self {
        let is_due = matches!((&start.parked, input), (Parked::Drain { .. }, Input::Go(_)));
        Self { is_due, next: None, drain: None, opens: false, raises: false }
    }

    /// Looks at the next instruction.
    fn at(&mut self, step: &Step<'_>) {
        let it = step.instruction;
        if std::mem::take(&mut self.is_due) || self.drain.is_some() {
            return;
        }
        // A string instruction stands at itself until it is over.
        self.raises |= self.next.is_some_and(|next| next != it.ip());
        self.next = (it.flow_control() == FlowControl::Next && !it.has_rep_prefix()).then(|| it.next_ip());
        self.opens |= is_open(step.before) && it.mnemonic() != Mnemonic::Hlt;
        self.drain = Some(drains(step.memory, it, &step.before.general)).filter(|drains| *drains != Drains::Nothing);
    }

    /// As which a vCPU parks at the place that was looked for last.
    fn park(&self, at: &Place) -> Option<Parked> {
        match (at, self.drain) {
            (Place::Open, _) => self.opens.then_some(Parked::Open),
            (Place::Drain, drain) => drain.map(|drains| Parked::Drain { all: drains == Drains::All }),
        }
    }
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Open,
    Drain,
}

impl Stage<'_> {
    /// What a vCPU does from that state on, but for what waits until others see its stores.
    pub(super) fn ask_to_drain(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Came, Refusal> {
        let start = self.local(vcpu, from).clone();
        if let (Parked::Halting, Input::Go(_)) = (&start.parked, input) {
            return Ok(Came::elsewhere(start.halted(), Vec::new()));
        }
        let mut looking = Looking::from(&start, input);
        let mut look = |step: &Step<'_>| {
            looking.at(step);
            None
        };
        let end = self.by_steps(vcpu, from, &start, input, &mut look)?;
        if looking.raises && !matches!(end.0.parked, Parked::Dead(_)) {
            return Err(self.unknown(vcpu, "takes an exception, which waits for its stores, on its way"));
        }
        let mut next = match looking.drain {
            Some(_) => Some(self.up_to(vcpu, from, &start, input, Place::Drain)?),
            None => None,
        };
        let here = next.as_ref().map_or(&end.0, |(here, _)| here);
        if looking.opens && self.is_missed(&start, input, here) {
            next = Some(self.up_to(vcpu, from, &start, input, Place::Open)?);
        }
        self.check(vcpu, from, &start, input, &end)?;
        Ok(match next {
            Some((here, effects)) => Came::elsewhere(here, effects),
            None => Came::there(end.0, end.1),
        })
    }

    /// Goes to the first such place.
    fn up_to(
        &mut self,
        vcpu: usize,
        from: u32,
        start: &Local,
        input: Input,
        place: Place,
    ) -> Result<(Local, Vec<Effect>), Refusal> {
        let mut looking = Looking::from(start, input);
        self.by_steps(vcpu, from, start, input, &mut |step| {
            looking.at(step);
            looking.park(&place)
        })
    }

    /// The same from where it stands, on the way to [a moment](crate::moment).
    pub(super) fn again_up_to(
        &mut self,
        vcpu: usize,
        start: &Local,
        input: Input,
        end: &Parked,
        way: &mut Way,
    ) -> Result<Parked, Refusal> {
        let place = if *end == Parked::Open { Place::Open } else { Place::Drain };
        let mut looking = Looking::from(start, input);
        let mut look = |step: &Step<'_>| {
            looking.at(step);
            looking.park(&place)
        };
        let (parked, _) = self.steps(vcpu, start, input, way, &mut look)?;
        if matches!(parked, Parked::Open | Parked::Drain { .. }) {
            self.settle(vcpu);
        }
        Ok(parked)
    }

    /// Has a passage run to its stop, which has to be what its steps came to. KVM's vCPU stands there then.
    fn check(
        &mut self,
        vcpu: usize,
        from: u32,
        start: &Local,
        input: Input,
        (stepped, effects): &(Local, Vec<Effect>),
    ) -> Result<(), Refusal> {
        self.stand(vcpu, from, start, input);
        let mut way = Way { effects: Vec::new(), devices: start.devices.clone() };
        let parked = self.go(vcpu, start, input, &mut way)?;
        let ran = self.here_in(vcpu, parked, way.devices.clone())?;
        let is_dead = matches!(ran.parked, Parked::Dead(_)) && ran.parked == stepped.parked;
        let is_same = is_dead || ran.identity() == stepped.identity();
        if is_same && way.effects == *effects {
            return Ok(());
        }
        let difference = if is_same { format!("{:?}, {effects:?}", way.effects) } else { ran.difference(stepped) };
        let difference = format!("running and by single steps it came to different ends: {difference}");
        Err(Refusal::Differs { vcpu, place: self.place(vcpu, from), difference })
    }
}
