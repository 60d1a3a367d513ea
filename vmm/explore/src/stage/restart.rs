//! A vCPU that is reset by an INIT, and started again.
//!
//! What an INIT leaves is the vCPU's memory, its MTRRs and the mode of its local APIC; its registers are those of a reset, so that no
//! instruction has to be executed for it. A start-up interrupt has it begin in real mode (SDM 3A 9.4.4), where none of its registers that are
//! parts of no state is what it was: segments, tables, CR3, EFER. From there it goes in one passage, one instruction at a time, to the first
//! one with all of these as they were and a stack below it. What others send meanwhile comes before that passage or behind it, which is
//! the same: with its local APIC off it takes no interrupt, an INIT has it wait again, and with an NMI pending it is refused. It comes to
//! no access to what vCPUs share, or it is refused, too; nobody looks at what of its own it accesses there, which is its way to its tables.

use stallbench_core::controlled::{Inject, Stop};

use super::Stage;
use super::answer::Came;
use crate::local::{Parked, on_a_stack};
use crate::passage::{Input, Refusal};

/// Instructions from the start-up interrupt to the vCPU's own tables at most.
const MOST_STEPS: usize = 4096;

impl Stage<'_> {
    /// What an INIT or a start-up interrupt makes of a vCPU.
    pub(super) fn restart(&mut self, vcpu: usize, from: u32, inject: Inject) -> Result<Came, Refusal> {
        let start = self.local(vcpu, from).clone();
        if inject == Inject::Init {
            let processor = self.machine.after_init(vcpu, &start.processor);
            let waiting = start.waiting(processor, start.devices.after_init());
            return Ok(Came::elsewhere(waiting, Vec::new()));
        }
        self.stand(vcpu, from, &start, Input::Deliver(inject));
        self.start_again(vcpu)?;
        let processor = super::state(&self.machine, vcpu)?;
        self.settle(vcpu);
        let here = self.leave(vcpu, Parked::Open, processor, start.devices);
        Ok(Came::elsewhere(here, Vec::new()))
    }

    /// From the start-up interrupt to where a vCPU is as it was when it was up.
    pub(super) fn start_again(&mut self, vcpu: usize) -> Result<(), Refusal> {
        for _ in 0..MOST_STEPS {
            match self.machine.step(vcpu) {
                Stop::Stepped => {}
                other => return Err(self.unknown(vcpu, &format!("does {other:?} before it is in its tables again"))),
            }
            if self.machine.state(vcpu).is_ok_and(|state| on_a_stack(vcpu, state.general.rsp)) {
                return Ok(());
            }
        }
        Err(self.unknown(vcpu, "is started again, and does not come to its tables"))
    }
}
