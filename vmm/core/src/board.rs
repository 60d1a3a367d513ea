//! What all vCPUs' threads are to do, and what they answer.
//!
//! The board shows one order, the latest; a thread that was slow to look misses none that still matters. Posting wakes all
//! threads at once, and whoever asked is woken once, by the last answer: with many more vCPUs than CPUs each needless switch
//! counts.
//!
//! An order reaches a thread that runs its guest by a kick ([`crate::kick`]): post first, then kick.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stallbench_state::machine::VcpuState;

/// How much of the state of each vCPU is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// What decides where it is and what it can take: registers, local APIC, events, MP state.
    Control,
    /// That, its MTRRs and other model-specific registers.
    Full,
}

/// What the threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Run the guest.
    Run,
    /// Stand still, and say so.
    Pause,
    /// Stand still, and answer with the state of the vCPU.
    Capture(Capture),
    /// Stand still, let the visitor in, and say when it has gone.
    Visit,
    /// End.
    Stop,
}

/// An order with its number, which is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Posted {
    pub(crate) number: u64,
    pub(crate) order: Order,
}

/// What a thread answers: that it stands still, or the state of its vCPU.
pub(crate) type Answer = Option<Box<VcpuState>>;

/// The board of a machine.
#[derive(Debug)]
pub(crate) struct Board {
    notes: Mutex<Notes>,
    posted: Condvar,
    answered: Condvar,
}

#[derive(Debug)]
struct Notes {
    posted: Posted,
    /// The answer of each vCPU to what is posted.
    answers: Vec<Option<Answer>>,
    /// How many of them have not come.
    missing: usize,
    /// Threads that have ended.
    ended: usize,
}

impl Board {
    pub(crate) fn new(vcpus: usize) -> Self {
        let posted = Posted { number: 0, order: Order::Run };
        let notes = Notes { posted, answers: Vec::new(), missing: vcpus, ended: 0 };
        let board = Self { notes: Mutex::new(notes), posted: Condvar::new(), answered: Condvar::new() };
        board.notes().answers.resize_with(vcpus, || None);
        board
    }

    /// Asker: shows an order to all threads. Those that run their guests have to be kicked.
    pub(crate) fn post(&self, order: Order) {
        let mut notes = self.notes();
        notes.posted = Posted { number: notes.posted.number + 1, order };
        notes.answers.iter_mut().for_each(|answer| *answer = None);
        notes.missing = notes.answers.len();
        drop(notes);
        self.posted.notify_all();
    }

    /// Asker: the answers to the order that is posted, as far as they have come within the deadline.
    pub(crate) fn collect(&self, deadline: Duration) -> Vec<Option<Answer>> {
        let mut notes = self.wait(&self.answered, deadline, |notes| notes.missing > 0);
        notes.answers.iter_mut().map(Option::take).collect()
    }

    /// Asker: waits until this number of threads has ended; false when they do not within the deadline.
    pub(crate) fn ended(&self, threads: usize, deadline: Duration) -> bool {
        self.wait(&self.answered, deadline, |notes| notes.ended < threads).ended >= threads
    }

    /// Thread: the order that is posted.
    pub(crate) fn current(&self) -> Posted {
        self.notes().posted
    }

    /// Thread: waits for the order after that of this number. The order to stop ends it, which every machine posts at its end.
    pub(crate) fn after(&self, number: u64) -> Posted {
        let waited = self.posted.wait_while(self.notes(), |notes| notes.posted.number == number);
        waited.unwrap_or_else(PoisonError::into_inner).posted
    }

    /// Thread: answers the order of this number; an answer that comes too late is dropped.
    pub(crate) fn answer(&self, number: u64, vcpu: usize, answer: Answer) {
        let mut notes = self.notes();
        if notes.posted.number == number && notes.answers[vcpu].is_none() {
            notes.answers[vcpu] = Some(answer);
            notes.missing -= 1;
            if notes.missing == 0 {
                drop(notes);
                self.answered.notify_all();
            }
        }
    }

    /// Thread: says that it ends.
    pub(crate) fn leave(&self) {
        self.notes().ended += 1;
        self.answered.notify_all();
    }

    fn wait(&self, on: &Condvar, deadline: Duration, holds: impl Fn(&Notes) -> bool) -> MutexGuard<'_, Notes> {
        let waited = on.wait_timeout_while(self.notes(), deadline, |notes| holds(notes));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// A thread that panicked while it held the lock left the notes whole: each change of them is complete.
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn answer_to_an_earlier_order_is_dropped() {
        let board = Board::new(2);
        board.post(Order::Pause);
        let late = board.current();
        board.answer(late.number, 0, None);
        board.post(Order::Pause);
        board.answer(late.number, 1, None);
        assert_eq!(board.collect(Duration::ZERO), [None, None]);
        let now = board.current();
        board.answer(now.number, 1, None);
        assert_eq!(board.collect(Duration::ZERO), [None, Some(None)]);
    }

    #[test]
    fn latest_order_is_what_a_thread_finds() {
        let board = Board::new(1);
        let before = board.current();
        board.post(Order::Pause);
        board.post(Order::Run);
        assert_eq!(board.after(before.number).order, Order::Run);
    }
}
