//! Where a vCPU stands at the start line.
//!
//! It is put back to behind the last thing that it did for others to see, and goes from there to the first place at which an interrupt can
//! come: further on it could take none that it takes in a free run. Where the first such place is right in front of its stop, or there is
//! none, it stands at its stop.

use std::sync::Arc;

use super::steps::{Step, is_place};
use super::{Stage, Way};
use crate::local::{Local, Parked};
use crate::passage::{Input, Refusal};

/// How a vCPU goes on that has nothing to do.
const ON: Input = Input::Go(0);

impl Stage<'_> {
    /// The first state of a vCPU.
    pub(super) fn first(&mut self, vcpu: usize, behind: Local) -> Result<u32, Refusal> {
        if behind.parked == Parked::Off {
            return Ok(self.number(vcpu, Arc::new(behind)));
        }
        self.put(vcpu, &behind);
        let mut look = |step: &Step<'_>| is_place(step).then_some(Parked::Open);
        let (open, mut effects) = self.by_steps_from_here(vcpu, &behind, ON, &mut look)?;
        let is_open = open.parked == Parked::Open;
        let mut here = open;
        if !is_open || self.is_at_stop(vcpu, &here)? {
            self.put(vcpu, &behind);
            let mut way = Way { effects: Vec::new(), devices: behind.devices.clone() };
            let parked = self.go(vcpu, &behind, ON, &mut way)?;
            let stop = self.here_in(vcpu, parked, way.devices)?;
            // In front of a store that cannot be begun anew nothing comes at its stop.
            if !is_open || self.takes_interrupts(&stop) {
                (here, effects) = (stop, way.effects);
            }
        }
        if !effects.is_empty() {
            return Err(self.unknown(vcpu, "ends an interrupt that it has not taken"));
        }
        Ok(self.number(vcpu, Arc::new(here)))
    }

    /// Whether the next instruction is where it stops.
    fn is_at_stop(&mut self, vcpu: usize, here: &Local) -> Result<bool, Refusal> {
        self.put(vcpu, here);
        let mut begun = 0;
        // Nothing parks as one that is off.
        let mut look = |_: &Step<'_>| {
            begun += 1;
            (begun > 1).then_some(Parked::Off)
        };
        let (there, _) = self.by_steps_from_here(vcpu, here, ON, &mut look)?;
        Ok(there.parked != Parked::Off)
    }

    /// Puts a vCPU into a state that has no number.
    fn put(&mut self, vcpu: usize, start: &Local) {
        self.vcpus[vcpu].at = None;
        self.machine.load(vcpu, &start.processor, None);
        self.set_memory(vcpu, start);
        self.clear_stacks(vcpu, start);
        self.reset_ghost(vcpu, start.devices.calls);
    }
}
