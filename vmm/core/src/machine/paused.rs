//! Stopping all vCPUs of a machine, and reading their state while they stand still.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stallbench_state::machine::{MachineState, Unread, VcpuState};
use thiserror::Error;

use super::Machine;
use crate::kick::Requests;
use crate::vcpu::{Answer, Order};

/// How long the capture of a vCPU that stands still may take.
const CAPTURE: Duration = Duration::from_secs(2);

/// How much of the state of each vCPU is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// What decides where it is and what it can take: registers, local APIC, events, MP state.
    Control,
    /// That, and its MTRRs.
    Full,
}

/// Why a machine could not be stopped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PauseError {
    /// These vCPUs did not leave the guest in time.
    #[error("stop vcpus {0:?} in time")]
    Late(Vec<usize>),
}

/// The machine's end of the talk with its vCPUs' threads.
#[derive(Debug)]
pub(super) struct Conversation {
    answers: Receiver<Answer>,
    /// Number of the latest question.
    question: u64,
}

impl Conversation {
    pub(super) fn new(answers: Receiver<Answer>) -> Self {
        Self { answers, question: 0 }
    }

    fn next_question(&mut self) -> u64 {
        self.question += 1;
        self.question
    }

    /// Waits until all threads have ended, each of which drops its end of the channel; false when it takes too long.
    pub(super) fn ended(&self, end: Instant) -> bool {
        loop {
            match self.answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// Takes the answer of each vCPU to the latest question until all have come or it is too late; gives those that are missing.
    fn collect(&self, vcpus: usize, end: Instant, mut take: impl FnMut(Answer)) -> Vec<usize> {
        let mut missing: Vec<usize> = (0..vcpus).collect();
        while !missing.is_empty() {
            match self.answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(answer) if answer.question == self.question => {
                    missing.retain(|&vcpu| vcpu != answer.vcpu);
                    take(answer);
                }
                // An answer to an earlier question that was given up.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        missing
    }
}

/// A machine whose vCPUs all stand still, outside the guest and with their accesses completed. They go on when it is dropped.
#[derive(Debug)]
pub struct Paused<'a> {
    machine: &'a Machine,
    conversation: MutexGuard<'a, Conversation>,
}

impl<'a> Paused<'a> {
    pub(super) fn stop(machine: &'a Machine, deadline: Duration) -> Result<Self, PauseError> {
        let end = Instant::now() + deadline;
        // Whoever panicked with the lock held left numbers behind that are still right.
        let mut conversation = machine.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        let question = conversation.next_question();
        // From here on, dropping it lets all vCPUs go on.
        let paused = Self { machine, conversation };
        paused.order(Order::Pause { question });
        machine.seats.iter().for_each(|seat| seat.kick(Requests::ATTEND));
        match paused.conversation.collect(machine.vcpus(), end, |_| ()) {
            missing if missing.is_empty() => Ok(paused),
            missing => Err(PauseError::Late(missing)),
        }
    }

    /// Reads the state of all vCPUs, each by its own thread.
    pub fn capture(&mut self, what: Capture) -> MachineState {
        let vcpus = self.machine.vcpus();
        let question = self.conversation.next_question();
        self.order(Order::Capture { question, what });
        let mut states: Vec<Option<VcpuState>> = vec![None; vcpus];
        let end = Instant::now() + CAPTURE;
        self.conversation.collect(vcpus, end, |answer| {
            states[answer.vcpu] = answer.state.map(|state| *state);
        });
        let vcpus = states.into_iter().enumerate();
        MachineState { vcpus: vcpus.map(|(index, state)| state.unwrap_or_else(|| unread(index))).collect() }
    }

    /// Lets all vCPUs go on, without waiting until they do.
    pub fn resume(self) {}

    fn order(&self, order: Order) {
        for seat in &self.machine.seats {
            // Fails for a thread that has died, which is found missing by its answer.
            let _ = seat.orders.send(order);
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.order(Order::Resume);
    }
}

/// A vCPU whose thread did not answer.
fn unread(index: usize) -> VcpuState {
    let unread = |what| Unread { what, reason: "its thread does not answer".to_owned() };
    VcpuState {
        index,
        registers: Err(unread("general registers")),
        system: Err(unread("system registers")),
        apic: Err(unread("local apic")),
        events: Err(unread("events")),
        mp_state: Err(unread("mp state")),
        mtrr: None,
        ran: Duration::ZERO,
    }
}
