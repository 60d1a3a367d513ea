//! Hands on a machine that stands still: its stops, and what is done to one vCPU or to memory from outside.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kvm_bindings::kvm_msi;
use stallbench_state::machine::Registers;
use thiserror::Error;

use super::Paused;
use super::paused::{CAPTURE, VisitError};
use crate::stop::{Armed, Held, StopError, Stops};
use crate::vcpu::visit::{StepError, Visited, Visitor};

/// Where an interrupt message is written to; the number of the local APIC follows at bit 12 (SDM 3A 11.11.1).
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;
/// The first vector that an interrupt may have (SDM 3A 11.5.2).
const FIRST_VECTOR: u8 = 16;

/// Why a vCPU did not do what was asked of it. Each message is a fragment that reads well after "failed to".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// There is no such vCPU.
    #[error("reach vcpu {0}: there is no such vcpu")]
    NoVcpu(usize),
    /// Its thread did not come to it.
    #[error("reach vcpu {vcpu}")]
    Visit {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: VisitError,
    },
    /// It was reached, and did not do it.
    #[error("{why}: vcpu {vcpu}")]
    Refused {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        why: StepError,
    },
    /// No interrupt has this vector.
    #[error("send an interrupt with vector {0}: vectors begin at {FIRST_VECTOR}")]
    Vector(u8),
    /// Its local APIC takes no interrupt.
    #[error("interrupt vcpu {0}: its local apic is not enabled, or the vcpu has not been started")]
    NotAccepted(usize),
    /// KVM refused.
    #[error("interrupt vcpu {vcpu} (KVM_SIGNAL_MSI)")]
    Message {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl Paused<'_> {
    /// Gives the machine these stops in the place of those before. They are in force when it goes on; where there are none, no
    /// vCPU stands still any more at a stop that was not taken notice of.
    pub fn set_stops(&self, stops: &Stops) -> Result<(), StopError> {
        if let Some(by) = self.machine.debugged_by {
            return Err(StopError::Taken(by));
        }
        let armed = Arc::new(Armed::new(stops, self.machine.vcpus(), self.machine.memory())?);
        let in_force = || self.machine.armed.lock().unwrap_or_else(PoisonError::into_inner);
        // Where not all vCPUs come to it, some have these and some have others still: all that a vCPU has are kept.
        in_force().push(Arc::clone(&armed));
        let armer = Armer { armed: Arc::clone(&armed), refused: None };
        let visited = self.visit(armer, CAPTURE);
        if armed.is_empty() {
            self.machine.shared.held.iter().for_each(Held::release);
            self.machine.shared.events.forget_stops();
        }
        in_force().retain(|armed| Arc::strong_count(armed) > 1);
        visited?.refused.map_or(Ok(()), |(vcpu, errno)| Err(StopError::Refused { vcpu, errno }))
    }

    /// Executes one instruction of one vCPU, with interrupts held back, and gives its registers behind it.
    pub fn step(&self, vcpu: usize, deadline: Duration) -> Result<Registers, VcpuError> {
        self.ask(vcpu, deadline, |vcpu| vcpu.step_over())
    }

    /// Gives a vCPU these general registers.
    pub fn set_registers(&self, vcpu: usize, registers: &Registers) -> Result<(), VcpuError> {
        let registers = *registers;
        self.ask(vcpu, CAPTURE, move |vcpu| vcpu.place(&registers))
    }

    /// Sends an NMI to a vCPU: it takes it when it goes on, unless it holds NMIs back.
    pub fn nmi(&self, vcpu: usize, deadline: Duration) -> Result<(), VcpuError> {
        self.ask(vcpu, deadline, |vcpu| vcpu.nmi())
    }

    /// Sends a vCPU a fixed interrupt, as a message to its local APIC: it takes it when it goes on, once it lets it in.
    pub fn interrupt(&self, vcpu: usize, vector: u8) -> Result<(), VcpuError> {
        if vcpu >= self.machine.vcpus() {
            return Err(VcpuError::NoVcpu(vcpu));
        }
        if vector < FIRST_VECTOR {
            return Err(VcpuError::Vector(vector));
        }
        let address_lo = MESSAGE_ADDRESS | (vcpu as u32) << 12;
        // Fixed, edge-triggered: all other bits of the data are 0 (SDM 3A 11.11.2).
        let message = kvm_msi { address_lo, data: vector.into(), ..Default::default() };
        match self.machine.vm.signal_msi(message) {
            // What KVM gives is how many took it (KVM api.rst 4.71).
            Ok(taken) if taken > 0 => Ok(()),
            Ok(_) => Err(VcpuError::NotAccepted(vcpu)),
            Err(source) => Err(VcpuError::Message { vcpu, source }),
        }
    }

    /// Writes guest-physical memory, which nobody else does meanwhile: false, and nothing is written, where not all of it is guest
    /// memory.
    #[must_use]
    pub fn write(&self, physical: u64, bytes: &[u8]) -> bool {
        self.machine.shared.memory.write_whole(physical, bytes)
    }

    /// Has one vCPU do something in its own thread.
    fn ask<T, F>(&self, vcpu: usize, deadline: Duration, what: F) -> Result<T, VcpuError>
    where
        T: Send + 'static,
        F: FnMut(&mut Visited<'_>) -> Result<T, StepError> + Send + 'static,
    {
        if vcpu >= self.machine.vcpus() {
            return Err(VcpuError::NoVcpu(vcpu));
        }
        let asker = Asker { vcpu, what, answer: None };
        let asker = self.visit(asker, deadline).map_err(|source| VcpuError::Visit { vcpu, source })?;
        let answer = asker.answer.ok_or(VcpuError::Visit { vcpu, source: VisitError::Late })?;
        answer.map_err(|why| VcpuError::Refused { vcpu, why })
    }
}

/// Puts stops into force, and keeps who could not.
#[derive(Debug)]
struct Armer {
    armed: Arc<Armed>,
    refused: Option<(usize, i32)>,
}

impl Visitor for Armer {
    fn visit(&mut self, vcpu: &mut Visited<'_>) {
        if let Err(error) = vcpu.arm(&self.armed) {
            self.refused = Some((vcpu.index(), error.errno()));
        }
    }
}

/// Asks something of the vCPU of that number when it comes to it.
struct Asker<T, F> {
    vcpu: usize,
    what: F,
    answer: Option<Result<T, StepError>>,
}

impl<T, F> std::fmt::Debug for Asker<T, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("vcpu", &self.vcpu).finish_non_exhaustive()
    }
}

impl<T: Send, F: FnMut(&mut Visited<'_>) -> Result<T, StepError> + Send> Visitor for Asker<T, F> {
    fn visit(&mut self, vcpu: &mut Visited<'_>) {
        if vcpu.index() == self.vcpu {
            self.answer = Some((self.what)(vcpu));
        }
    }
}
