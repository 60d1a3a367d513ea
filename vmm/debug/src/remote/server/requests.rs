//! What a client says, read while what he said before is followed.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::remote::line::{Line, Lines};
use crate::remote::wire::{LONGEST_REQUEST, Request};

/// Requests that may wait.
const MOST: usize = 64;

/// A request with its number, or what is wrong with it.
pub(super) type Numbered = (u64, Result<Request, String>);

/// Whether what is followed is to be left.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupts {
    flag: Arc<AtomicBool>,
    /// All requests up to this one are.
    through: Arc<AtomicU64>,
    /// Requests that were left out, for too many waited.
    left_out: Arc<AtomicU64>,
}

impl Interrupts {
    /// What a session looks at.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// Sets the flag as it is to be when that request is begun with.
    pub(super) fn begin(&self, number: u64) {
        self.flag.store(false, Ordering::SeqCst);
        if self.through.load(Ordering::SeqCst) >= number {
            self.flag.store(true, Ordering::SeqCst);
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    fn set(&self, through: u64) {
        self.through.store(through, Ordering::SeqCst);
        self.flag.store(true, Ordering::SeqCst);
    }

    /// How many were left out since this was last asked.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.swap(0, Ordering::SeqCst)
    }
}

/// The requests of a client, as they come.
#[derive(Debug)]
pub(super) struct Requests(Receiver<Numbered>);

impl Requests {
    /// What is to be read, and what reads it.
    pub(super) fn of(stream: UnixStream, interrupts: Interrupts) -> (Self, impl FnOnce() + Send) {
        let (sender, receiver) = sync_channel(MOST);
        (Self(receiver), move || read(stream, &sender, &interrupts))
    }

    /// The next, if it comes in time.
    pub(super) fn next(&self, timeout: Duration) -> Result<Numbered, RecvTimeoutError> {
        self.0.recv_timeout(timeout)
    }
}

/// Reads until nothing comes any more. Then nobody waits for what is still to be done: all of it is interrupted.
fn read(stream: UnixStream, sender: &SyncSender<Numbered>, interrupts: &Interrupts) {
    let mut lines = Lines::new(BufReader::new(stream), LONGEST_REQUEST);
    let mut number = 0;
    loop {
        let request = match lines.next() {
            Ok(Line::Begun) => continue,
            Ok(Line::Whole(line)) => Request::read(&line),
            Ok(Line::TooLong) => Err(format!("a line is longer than {LONGEST_REQUEST} bytes")),
            Ok(Line::End) | Err(_) => break interrupts.set(u64::MAX),
        };
        if request == Ok(Request::Interrupt) {
            interrupts.set(number);
            continue;
        }
        number += 1;
        if sender.try_send((number, request)).is_err() {
            interrupts.left_out.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn interrupt_is_of_what_was_asked_for_before_it() {
        let interrupts = Interrupts::default();
        interrupts.set(2);
        interrupts.begin(2);
        assert!(interrupts.is_set());
        interrupts.begin(3);
        assert!(!interrupts.is_set());
        interrupts.set(3);
        assert!(interrupts.is_set());
    }
}
