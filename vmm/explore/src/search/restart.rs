//! What of INITs and start-up interrupts is explored, and what is refused.

#[cfg(test)]
mod test;

use stallbench_core::controlled::Inject;

use super::{ExploreError, Search};
use crate::apic::{Apic, Message};
use crate::graph::{Choice, State};
use crate::local::Parked;
use crate::passage::{Input, Refusal};
use crate::settings::Model;

impl Search<'_> {
    pub(super) fn refused(&self, state: &State, vcpu: usize, what: String) -> ExploreError {
        let place = self.stage.place(vcpu, state.locals[vcpu]);
        Refusal::Unknown { vcpu, what, place }.into()
    }

    /// An INIT or a start-up interrupt whose receiver is one of which it is known what that does.
    pub(super) fn expect_restartable(
        &self,
        state: &State,
        vcpu: usize,
        receiver: usize,
        message: Message,
    ) -> Result<(), ExploreError> {
        let parked = &self.stage.local(receiver, state.locals[receiver]).parked;
        let why = match (message, receiver, parked) {
            _ if self.buffers.model() != Model::Sc => "which is explored under sc alone".to_owned(),
            _ if receiver == vcpu => "behind which nothing of its own is executed,".to_owned(),
            (Message::Init, 0, _) => "which goes on at its reset vector then".to_owned(),
            (Message::Init, _, Parked::Off) => "which was never started".to_owned(),
            _ => return Ok(()),
        };
        Err(self.refused(state, vcpu, format!("sends {message:?} to vcpu {receiver}, {why},")))
    }

    /// A vCPU takes nothing else on whose way something can come of which nobody would know where.
    pub(super) fn expect_no_other(&self, state: &State, vcpu: usize, input: Input) -> Result<(), ExploreError> {
        let apic = self.apics.get(state.apics[vcpu]);
        let what = match input {
            Input::Deliver(Inject::StartUp(_)) if apic.nmi => {
                "is started with an NMI pending, which comes in real mode,"
            }
            _ => return Ok(()),
        };
        Err(self.refused(state, vcpu, what.to_owned()))
    }

    /// Goes a way once more, and on until no INIT and no start-up interrupt is on its way, which a free machine is not handed: any schedule
    /// that goes on from there may go on so.
    pub(super) fn walk_on(&mut self, choices: &[Choice]) -> Result<State, ExploreError> {
        let mut choices = choices.to_vec();
        loop {
            let state = self.walk(&choices)?;
            let next = (0..state.locals.len()).find_map(|vcpu| {
                let parked = &self.stage.local(vcpu, state.locals[vcpu]).parked;
                // At most 255 vCPUs.
                restart(vcpu as u8, parked, &self.apics.get(state.apics[vcpu]))
            });
            match next {
                Some(choice) => choices.push(choice),
                None => return Ok(state),
            }
        }
    }
}

/// What an INIT or a start-up interrupt can do with a vCPU that is parked so. An INIT comes wherever it executes instructions, and in front
/// of a store that it is about to make; what comes behind it waits for it.
pub(super) fn restart(vcpu: u8, parked: &Parked, apic: &Apic) -> Option<Choice> {
    let takes_init = apic.init && (parked.is_up() || *parked == Parked::Waits);
    let begins = *parked == Parked::Waits && apic.start_up.is_some();
    if takes_init { Some(Choice::Init(vcpu)) } else { begins.then_some(Choice::StartUp(vcpu)) }
}
