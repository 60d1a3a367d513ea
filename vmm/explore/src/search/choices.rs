//! What can happen next in a state.

use super::Search;
use super::restart::restart;
use crate::buffers::Leave;
use crate::graph::{Choice, State};
use crate::local::Parked;
use crate::settings::Varied;
use crate::stage::is_open;

impl Search<'_> {
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
            if apic.nmi && !owes && self.stage.begin_of(vcpu, state.locals[vcpu]).is_some() {
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

    /// Whether a choice is missing, since no more stores are held back, and no more is sent early, than the model says.
    fn is_cut(&self, state: &State) -> bool {
        (0..state.buffers.len()).any(|vcpu| {
            let parked = &self.stage.local(vcpu, state.locals[vcpu]).parked;
            self.buffers.leave(state, vcpu, parked) == Leave::Full || self.is_early_cut(state, vcpu)
        })
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
