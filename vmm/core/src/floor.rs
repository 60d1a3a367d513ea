//! The floor: of threads that all want to step their vCPUs, one at a time may, in the order in which they asked.
//!
//! A mutex would do but for its order: the thread that leaves one and wants it again at once has it again as a rule.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// The queue for the floor; whoever is at its head has it.
#[derive(Debug, Default)]
pub(crate) struct Floor(Mutex<VecDeque<Thread>>);

/// Having the floor.
#[derive(Debug)]
pub(crate) struct OnFloor<'a> {
    floor: &'a Floor,
    /// The thread had it before, and keeps it.
    kept: bool,
}

impl Floor {
    /// Waits until the calling thread has the floor; one that has it keeps it.
    pub(crate) fn take(&self) -> OnFloor<'_> {
        let me = thread::current();
        let has_it = |queue: &VecDeque<Thread>| queue.front().is_some_and(|first| first.id() == me.id());
        let mut queue = self.queue();
        let kept = has_it(&queue);
        if !kept {
            queue.push_back(me.clone());
        }
        while !has_it(&queue) {
            drop(queue);
            thread::park();
            queue = self.queue();
        }
        OnFloor { floor: self, kept }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Thread>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OnFloor<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let mut queue = self.floor.queue();
        queue.pop_front();
        if let Some(next) = queue.front() {
            next.unpark();
        }
    }
}

#[cfg(test)]
mod test {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_has_the_floor_at_a_time_and_all_have_it_in_turn() {
        let (floor, inside, most) = (Floor::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let turns = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for one in 0..4 {
                let (floor, inside, most, turns) = (&floor, &inside, &most, &turns);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let _outer = floor.take();
                        let _inner = floor.take();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                        turns.lock().expect("no panic").push(one);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((most.into_inner(), turns.into_inner().expect("no panic").len()), (0, 800));
    }

    #[test]
    fn thread_that_wants_it_again_comes_after_one_that_waits() {
        let floor = Floor::default();
        let first = floor.take();
        thread::scope(|scope| {
            let other = scope.spawn(|| drop(floor.take()));
            while floor.queue().len() < 2 {
                thread::yield_now();
            }
            drop(first);
            drop(floor.take());
            assert!(floor.queue().is_empty(), "the other has had it");
            assert!(other.join().is_ok());
        });
    }
}
