//! Who may run a guest now: so many at a time, in the order of the selection, and a guest of many vCPUs in place of several.
//!
//! Shared by the worker threads of a session.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// vCPUs that count as one guest.
const ONE_GUEST: usize = 16;
/// How often a thread that waits looks whether it still should.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Lets guests pass in order.
#[derive(Debug)]
pub(crate) struct Turnstile {
    places: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Whose turn it is: a guest that needs many places is not overtaken by those that need one.
    next: usize,
}

/// Places that a guest holds while it runs.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    turnstile: &'a Turnstile,
    places: usize,
}

impl Turnstile {
    /// A turnstile for so many small guests at a time.
    pub(crate) fn new(places: usize) -> Self {
        let places = places.max(1);
        Self { places, state: Mutex::new(State { free: places, next: 0 }), changed: Condvar::new() }
    }

    /// Waits until the guest at `index` may run; `None` once `stopped` says so. Each index comes once.
    pub(crate) fn pass(&self, index: usize, vcpus: usize, stopped: &dyn Fn() -> bool) -> Option<Pass<'_>> {
        let places = vcpus.div_ceil(ONE_GUEST).clamp(1, self.places);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !stopped() {
            if state.next == index && state.free >= places {
                state.free -= places;
                state.next += 1;
                self.changed.notify_all();
                return Some(Pass { turnstile: self, places });
            }
            state = self.changed.wait_timeout(state, LOOK_UP).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.turnstile.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free += self.places;
        self.turnstile.changed.notify_all();
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const NEVER: &dyn Fn() -> bool = &|| false;

    /// Whether a guest would have to wait: it gives up at its second look.
    fn must_wait(turnstile: &Turnstile, index: usize, vcpus: usize) -> bool {
        let looks = std::cell::Cell::new(0);
        let stopped = || looks.replace(looks.get() + 1) > 0;
        turnstile.pass(index, vcpus, &stopped).is_none()
    }

    #[test]
    fn small_guests_run_side_by_side() {
        let turnstile = Turnstile::new(2);
        let first = turnstile.pass(0, 8, NEVER);
        let second = turnstile.pass(1, 8, NEVER);
        assert!(first.is_some() && second.is_some() && must_wait(&turnstile, 2, 8));
        drop(first);
        assert!(turnstile.pass(2, 8, NEVER).is_some());
    }

    #[test]
    fn large_guest_runs_alone_and_is_not_overtaken() {
        let turnstile = Turnstile::new(2);
        let small = turnstile.pass(0, 2, NEVER);
        assert!(must_wait(&turnstile, 1, 255), "a place is taken");
        assert!(must_wait(&turnstile, 2, 2), "it is not its turn");
        drop(small);
        let large = turnstile.pass(1, 255, NEVER);
        assert!(large.is_some() && must_wait(&turnstile, 2, 2));
    }
}
