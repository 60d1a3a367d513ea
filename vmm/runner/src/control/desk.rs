//! What lies between somebody who looks into runs and the thread that watches one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stallbench_debug::live::State;

use super::bench::Bench;

/// Something that the watching thread is to do for who is in.
pub(super) type Job = Box<dyn FnOnce(&mut Bench<'_>) + Send>;

/// What the watching thread finds to do.
pub(super) enum Task {
    /// What somebody asks for.
    Do(Job),
    /// Whoever was in has left: nothing of it is to stay.
    Forget,
}

/// What lies between the two.
#[derive(Debug, Default)]
pub(super) struct Desk {
    notes: Mutex<Notes>,
    /// Something of the notes has changed.
    changed: Condvar,
    /// The watching thread is to look: what it reads at every poll.
    is_due: AtomicBool,
}

struct Notes {
    is_in: bool,
    /// The run that begins next is to stand still at its start.
    hold: bool,
    state: State,
    jobs: VecDeque<Job>,
    /// Somebody has left, whose stops may still be there.
    has_left: bool,
    /// The run is to end.
    is_ending: bool,
    is_closed: bool,
}

impl Default for Notes {
    fn default() -> Self {
        let (is_in, hold, has_left, is_ending, is_closed) = Default::default();
        Self { is_in, hold, state: State::Gone, jobs: VecDeque::new(), has_left, is_ending, is_closed }
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut notes = f.debug_struct("Notes");
        notes.field("is_in", &self.is_in).field("state", &self.state).field("jobs", &self.jobs.len());
        notes.finish_non_exhaustive()
    }
}

/// For who looks in.
impl Desk {
    /// Whether nobody was in, and now somebody is.
    pub(super) fn enter(&self, hold: bool) -> bool {
        let mut notes = self.notes();
        let is_free = !notes.is_in;
        if is_free {
            (notes.is_in, notes.hold) = (true, hold);
        }
        is_free
    }

    /// Nobody is in any more: what was asked for and not done is not done.
    pub(super) fn leave(&self) {
        self.change(|notes| {
            (notes.is_in, notes.hold, notes.has_left) = (false, false, true);
            notes.jobs.clear();
        });
    }

    pub(super) fn state(&self) -> State {
        self.notes().state.clone()
    }

    /// The state when it is not that of a machine that runs, or after `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> State {
        self.wait_while(timeout, |notes| notes.state == State::Running).state.clone()
    }

    pub(super) fn wait_for_machine(&self, timeout: Duration) -> bool {
        self.wait_while(timeout, |notes| notes.state == State::Gone && !notes.is_closed).state != State::Gone
    }

    /// Hands something to the watching thread: whether there is one.
    pub(super) fn push(&self, job: Job) -> bool {
        self.change(|notes| {
            let is_there = notes.state != State::Gone;
            if is_there {
                notes.jobs.push_back(job);
            }
            is_there
        })
    }

    /// Has the run end: whoever waits, waits for that.
    pub(super) fn end(&self) {
        self.change(|notes| {
            if notes.state != State::Gone {
                (notes.state, notes.is_ending) = (State::Running, true);
            }
        });
    }

    pub(super) fn close(&self) {
        self.change(|notes| notes.is_closed = true);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.notes().is_closed
    }
}

/// For the thread that watches a run.
impl Desk {
    /// A run begins, whose machine is not there yet. Whether that is to stand still at its start.
    pub(super) fn begin(&self) -> bool {
        self.change(|notes| {
            // Who left before it left nothing in it.
            notes.has_left = false;
            std::mem::take(&mut notes.hold)
        })
    }

    /// There is none any more: what was asked for and not done is not done.
    pub(super) fn finish(&self) {
        self.change(|notes| {
            (notes.state, notes.is_ending) = (State::Gone, false);
            notes.jobs.clear();
        });
    }

    pub(super) fn tell(&self, state: State) {
        self.change(|notes| notes.state = state);
    }

    /// Whether there may be something to do: what is to be read at every poll.
    pub(super) fn is_due(&self) -> bool {
        self.is_due.load(Ordering::Acquire)
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_due() && self.notes().is_ending
    }

    /// Whether somebody is in.
    pub(super) fn is_in(&self) -> bool {
        self.notes().is_in
    }

    /// The next thing to do, waiting for it no longer than `timeout`.
    pub(super) fn next(&self, timeout: Duration) -> Option<Task> {
        let mut notes = self.wait_while(timeout, |notes| !notes.has_left && notes.jobs.is_empty() && !notes.is_ending);
        if std::mem::take(&mut notes.has_left) {
            return Some(Task::Forget);
        }
        let job = notes.jobs.pop_front();
        // An end that is asked for stays due.
        self.is_due.store(job.is_some() || notes.is_ending, Ordering::Release);
        job.map(Task::Do)
    }
}

impl Desk {
    fn change<T>(&self, change: impl FnOnce(&mut Notes) -> T) -> T {
        let mut notes = self.notes();
        let changed = change(&mut notes);
        self.is_due.store(true, Ordering::Release);
        drop(notes);
        self.changed.notify_all();
        changed
    }

    fn wait_while(&self, timeout: Duration, holds: impl Fn(&Notes) -> bool) -> MutexGuard<'_, Notes> {
        let waited = self.changed.wait_timeout_while(self.notes(), timeout, |notes| holds(notes));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Each change of the notes is complete, whatever the thread that made it did then.
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
