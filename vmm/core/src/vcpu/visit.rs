//! A visit to the vCPUs of a stopped machine: looking at registers, executing single instructions, putting a vCPU elsewhere.
//!
//! Each vCPU is visited by its own thread, one after the other, so that only one executes at a time. Interrupts are held back at
//! each step (`KVM_GUESTDBG_BLOCKIRQ`): whether one could be taken is a question of its own, and on some hosts a whole
//! handler would run inside of one step.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_guest_debug;
use stallbench_state::machine::Registers;
use thiserror::Error;

use super::debugged::TRIES;
use super::exit::{self, Exit};
use super::{State, Vcpu};
use crate::board::Order;
use crate::boot::moment::general;
use crate::breakpoint::STEP_ALONE;
use crate::event::{Fault, MachineEvent};
use crate::memory::GuestMemory;
use crate::stop::Armed;

/// Entries that one step may take: a signal that was on its way, or KVM with something to do first, ends one without a step.
const ENTRIES: usize = 64;

/// What visits vCPUs.
pub trait Visitor: fmt::Debug + Send {
    /// Called once for each vCPU, by its thread; all others stand still. Their order is not defined.
    fn visit(&mut self, vcpu: &mut Visited<'_>);
}

/// A visitor on its way from thread to thread.
pub(crate) type Visiting = Arc<Mutex<dyn Visitor>>;

/// Why a vCPU could not be stepped. Each message is a fragment that reads well after "failed to".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StepError {
    /// It is dead, or was never started.
    #[error("step a vcpu that does not run")]
    NotRunning,
    /// It halts, is about to, or has not been started.
    #[error("step a vcpu that waits for an interrupt")]
    Waits,
    /// It would go on from a stop of the machine that nobody was told of, or has just touched a word that is one; that is told.
    #[error("step a vcpu past a stop")]
    AtStop,
    /// KVM refused.
    #[error("step it: {ioctl}: errno {errno}")]
    Refused {
        /// Which call.
        ioctl: &'static str,
        /// What KVM said.
        errno: i32,
    },
    /// The guest died of it; the machine tells so by an event too.
    #[error("step it: {0}")]
    Fault(Fault),
    /// The instruction ended with something else than a step: an access to a device.
    #[error("step it: the instruction stops the vcpu")]
    Stopped,
    /// The instruction did not end in time.
    #[error("step it: the instruction does not end")]
    Endless,
}

/// A vCPU that is visited.
#[derive(Debug)]
pub struct Visited<'a> {
    vcpu: &'a mut Vcpu,
    /// It is neither dead nor kept out.
    runs: bool,
    stepped: bool,
    /// It was put elsewhere, or memory was changed for it.
    supposes: bool,
}

impl Visited<'_> {
    /// Its number.
    pub fn index(&self) -> usize {
        self.vcpu.index
    }

    /// Guest memory: nobody else writes it meanwhile.
    pub fn memory(&self) -> &GuestMemory {
        &self.vcpu.shared.memory
    }

    /// Writes guest memory: whether all of it is. No vCPU is blamed for what that changes.
    ///
    /// From then on this visit of the vCPU is a supposition, see [`Self::step`].
    #[must_use]
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        self.supposes = true;
        let written = self.vcpu.shared.memory.write(address, bytes);
        self.vcpu.look_at_words();
        written
    }

    /// Whether its debug registers have breakpoints enabled, or cannot be read (DR7 bits 7:0, SDM 3B 18.2.4).
    pub fn has_breakpoints(&self) -> bool {
        self.vcpu.fd.get_debug_regs().map_or(true, |registers| registers.dr7 & 0xff != 0)
    }

    /// Its general registers.
    pub fn registers(&self) -> Result<Registers, StepError> {
        self.vcpu.registers().0.map_err(|_| StepError::Refused { ioctl: "KVM_GET_REGS", errno: libc::EIO })
    }

    /// Puts it elsewhere: gives it these general registers. From then on this visit of it is a supposition, see [`Self::step`].
    pub fn place(&mut self, registers: &Registers) -> Result<(), StepError> {
        self.supposes = true;
        self.vcpu.fd.set_regs(&general(registers)).map_err(|error| refused("KVM_SET_REGS", &error))?;
        // What came with the last `KVM_RUN` is not true any more.
        self.vcpu.entered = false;
        Ok(())
    }

    /// Sends it an NMI, which is pending from then on, whatever it does and however its local APIC stands (KVM api.rst 4.64).
    pub fn nmi(&self) -> Result<(), StepError> {
        self.vcpu.fd.nmi().map_err(|error| refused("KVM_NMI", &error))
    }

    /// Executes one instruction, and gives the registers behind it. `hlt` is not to be stepped: it would wait in the kernel.
    ///
    /// Of an instruction with a `rep` prefix this may be a turn only, and on some processors a step at the first touch of a page
    /// executes nothing at all: RIP is what it was then. No stop of the machine is missed: [`StepError::AtStop`].
    ///
    /// Where the visitor has put the vCPU elsewhere or has written memory, the guest itself never did what is stepped there: a word
    /// that this changes is no stop. The visitor puts back what it was.
    pub fn step(&mut self) -> Result<Registers, StepError> {
        if !self.runs {
            return Err(StepError::NotRunning);
        }
        if self.vcpu.is_at_stop() {
            return Err(StepError::AtStop);
        }
        for _ in 0..ENTRIES {
            match self.enter()? {
                Exit::Debug { .. } => {
                    // An observer is told of every instruction of its procedure, whoever steps it.
                    self.vcpu.tell_step();
                    return if self.has_touched() { Err(StepError::AtStop) } else { self.registers() };
                }
                Exit::Interrupted if self.is_abandoned() => return Err(StepError::Endless),
                Exit::Interrupted | Exit::Again | Exit::Halted => {}
                Exit::Fault(fault) => return Err(self.died(fault)),
                Exit::Ended(status) => return Err(self.ended(status)),
                Exit::Doorbell(_) | Exit::Yield | Exit::Serial | Exit::Msr(_) | Exit::Nothing => {
                    return Err(StepError::Stopped);
                }
            }
        }
        Err(StepError::Endless)
    }

    /// Executes one instruction that somebody looks at: all of it, and at its end the vCPU stands before one that is known. Of one that
    /// goes where it began, with all registers as they were, some turns.
    pub(crate) fn step_over(&mut self) -> Result<Registers, StepError> {
        if !self.runs {
            return Err(StepError::NotRunning);
        }
        if self.vcpu.waits() {
            return Err(StepError::Waits);
        }
        let before = self.registers()?;
        let mut stepped = self.step_through();
        for _ in 1..TRIES {
            if stepped != Ok(before) {
                break;
            }
            stepped = self.step_through();
        }
        self.vcpu.know_where_it_stands();
        stepped
    }

    /// As [`Self::step`], of the guest's own accord: what the instruction accesses is done, and told.
    fn step_through(&mut self) -> Result<Registers, StepError> {
        for _ in 0..ENTRIES {
            match self.enter()? {
                Exit::Debug { .. } => {
                    self.vcpu.tell_step();
                    return self.registers();
                }
                Exit::Interrupted if self.is_abandoned() => return Err(StepError::Endless),
                Exit::Interrupted | Exit::Again | Exit::Halted => {}
                Exit::Fault(fault) => return Err(self.died(fault)),
                Exit::Ended(status) => return Err(self.ended(status)),
                access => return self.access(access),
            }
        }
        Err(StepError::Endless)
    }

    /// Does what an instruction accesses, which ends it.
    fn access(&mut self, access: Exit) -> Result<Registers, StepError> {
        let state = match access {
            Exit::Doorbell(doorbell) => self.vcpu.rung(doorbell),
            access => {
                self.vcpu.serve(access);
                State::Attending
            }
        };
        self.runs = [state, self.vcpu.complete_access()].iter().all(|state| *state != State::Parked);
        self.registers()
    }

    /// Puts stops into force when the machine goes on.
    pub(crate) fn arm(&mut self, armed: &Arc<Armed>) -> Result<(), kvm_ioctls::Error> {
        self.vcpu.arm(armed)
    }

    /// Behind a step: whether the guest has changed a word that is a stop, which is told then.
    fn has_touched(&self) -> bool {
        if self.supposes {
            self.vcpu.look_at_words();
            return false;
        }
        self.vcpu.has_touched()
    }

    fn enter(&mut self) -> Result<Exit, StepError> {
        // For each entry anew, see `crate::observe`.
        let debug = kvm_guest_debug { control: STEP_ALONE, ..Default::default() };
        self.vcpu.debug_as(&debug).map_err(|error| refused("KVM_SET_GUEST_DEBUG", &error))?;
        self.stepped = true;
        let exit = exit::run(&mut self.vcpu.fd, self.vcpu.shared.serial.as_ref());
        self.vcpu.access_pending = exit.is_access();
        self.vcpu.entered = true;
        Ok(exit)
    }

    /// After an interruption: whether whoever asked for the visit does not wait for it any longer. The kick may be an earlier one.
    fn is_abandoned(&self) -> bool {
        self.vcpu.link.take(true);
        self.vcpu.shared.board.current().order != Order::Visit
    }

    fn ended(&mut self, status: u32) -> StepError {
        self.runs = false;
        self.vcpu.ended(status);
        StepError::Stopped
    }

    fn died(&mut self, fault: Fault) -> StepError {
        self.runs = false;
        self.vcpu.shared.events.send(MachineEvent::Fault { vcpu: self.vcpu.index, fault: fault.clone() });
        StepError::Fault(fault)
    }
}

impl Vcpu {
    /// Lets the visitor in who is there. Gives what the thread is to do from then on: what it did, or park a vCPU that died.
    pub(super) fn visited(&mut self, before: State) -> State {
        let visiting = self.shared.visitor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(visitor) = visiting else { return before };
        let runs = before == State::Attending && !self.is_kept_out();
        self.stopping.is_visited = true;
        let mut visited = Visited { vcpu: self, runs, stepped: false, supposes: false };
        visitor.lock().unwrap_or_else(PoisonError::into_inner).visit(&mut visited);
        let state = match visited {
            Visited { runs: false, .. } if runs => State::Parked,
            Visited { stepped: true, .. } => self.end_steps(before),
            _ => before,
        };
        self.stopping.is_visited = false;
        state
    }

    /// Debugs the vCPU as before.
    fn end_steps(&mut self, before: State) -> State {
        if self.complete_access() == State::Parked {
            return State::Parked;
        }
        match self.debug_as(&self.debug.clone()) {
            Ok(()) => before,
            Err(error) => self.failed(Fault::Debug { errno: error.errno() }),
        }
    }
}

fn refused(ioctl: &'static str, error: &kvm_ioctls::Error) -> StepError {
    StepError::Refused { ioctl, errno: error.errno() }
}
