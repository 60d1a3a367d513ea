//! Stopping all vCPUs of a machine, and reading their state while they stand still.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stallbench_state::dump::DumpedMemory;
use stallbench_state::machine::{MachineState, Unread, VcpuState};
use thiserror::Error;

use super::Machine;
use crate::board::{Capture, Order};
use crate::kick::Requests;
use crate::vcpu::kept::Keep;
use crate::vcpu::visit::Visitor;

/// How long the capture of a vCPU that stands still may take.
pub(super) const CAPTURE: Duration = Duration::from_secs(2);

/// Why a machine could not be stopped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PauseError {
    /// These vCPUs did not leave the guest in time.
    #[error("stop vcpus {0:?} in time")]
    Late(Vec<usize>),
}

/// Why a visit came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VisitError {
    /// It took longer than its deadline.
    #[error("visit all vcpus in time")]
    Late,
}

/// A machine whose vCPUs all stand still, outside the guest and with their accesses completed. They go on when it is dropped.
#[derive(Debug)]
pub struct Paused<'a> {
    pub(super) machine: &'a Machine,
    /// Only one pause at a time.
    _alone: MutexGuard<'a, ()>,
}

impl<'a> Paused<'a> {
    pub(super) fn stop(machine: &'a Machine, deadline: Duration) -> Result<Self, PauseError> {
        let alone = machine.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        // From here on, dropping it lets all vCPUs go on.
        let paused = Self { machine, _alone: alone };
        let board = &machine.shared.board;
        board.post(Order::Pause);
        machine.seats.iter().for_each(|seat| seat.kick(Requests::ATTEND));
        let answers = board.collect(deadline);
        let late: Vec<_> = (0..answers.len()).filter(|&vcpu| answers[vcpu].is_none()).collect();
        paused.look_at_words();
        if late.is_empty() { Ok(paused) } else { Err(PauseError::Late(late)) }
    }

    /// Takes what watched words hold for what they held at the last look: what was done to them so far, no vCPU will be blamed for.
    fn look_at_words(&self) {
        let armed = self.machine.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.iter().for_each(|armed| _ = armed.changed(&self.machine.shared.memory));
    }

    /// Reads the state of all vCPUs, each by its own thread.
    pub fn capture(&self, what: Capture) -> MachineState {
        let board = &self.machine.shared.board;
        board.post(Order::Capture(what));
        let answers = board.collect(CAPTURE).into_iter().map(Option::flatten).enumerate();
        MachineState {
            vcpus: answers.map(|(vcpu, state)| state.map_or_else(|| unread(vcpu), |state| *state)).collect(),
        }
    }

    /// A copy of the guest's memory, which nobody writes meanwhile.
    pub fn copy_memory(&self) -> DumpedMemory {
        self.machine.shared.memory.copy()
    }

    /// Has each vCPU visited, one after the other. Where that takes longer than `deadline` the visit ends: then something of it is
    /// missing.
    pub fn visit<V: Visitor + 'static>(&self, visitor: V, deadline: Duration) -> Result<V, VisitError> {
        let visiting = Arc::new(Mutex::new(visitor));
        let shared = &self.machine.shared;
        *shared.visitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(visiting.clone());
        shared.board.post(Order::Visit);
        let all_came = |answers: Vec<_>| answers.iter().all(Option::is_some);
        let came = all_came(shared.board.collect(deadline));
        // An instruction that does not end keeps its thread in the kernel.
        if !came {
            shared.board.post(Order::Pause);
            self.machine.seats.iter().for_each(|seat| seat.kick(Requests::ATTEND));
            shared.board.collect(deadline);
        }
        *shared.visitor.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match Arc::try_unwrap(visiting) {
            Ok(visitor) if came => Ok(visitor.into_inner().unwrap_or_else(PoisonError::into_inner)),
            _ => Err(VisitError::Late),
        }
    }

    /// Keeps a vCPU out of the guest from now on, or lets it in again; does nothing where there is no such vCPU.
    pub fn keep(&self, vcpu: usize, keep: Option<Keep>) {
        if let Some(kept) = self.machine.shared.kept.get(vcpu) {
            kept.set(keep);
        }
    }

    /// Writes a word of guest memory, which nobody else does meanwhile: whether it is guest memory.
    #[must_use]
    pub fn write_u32(&self, address: u64, value: u32) -> bool {
        self.machine.shared.memory.write(address, &value.to_le_bytes())
    }

    /// Lets all vCPUs go on, without waiting until they do.
    pub fn resume(self) {}
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.look_at_words();
        self.machine.shared.board.post(Order::Run);
    }
}

/// A vCPU whose thread did not answer.
fn unread(index: usize) -> VcpuState {
    let unread = |what: &'static str| Unread { what: what.into(), reason: "its thread does not answer".to_owned() };
    VcpuState {
        index,
        registers: Err(unread("general registers")),
        system: Err(unread("system registers")),
        apic: Err(unread("local apic")),
        events: Err(unread("events")),
        mp_state: Err(unread("mp state")),
        mtrr: None,
        msrs: None,
        ran: Duration::ZERO,
    }
}
