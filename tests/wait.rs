//! Waits of tests for what another process does.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that a test waits for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Looks again and again, until it is so.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "{what} in time");
        thread::park_timeout(Duration::from_millis(1));
    }
}
