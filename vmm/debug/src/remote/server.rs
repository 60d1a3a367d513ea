//! The side of the machine: lets one client in at a time, and follows what he asks for.
//!
//! A thread accepts; who is let in has two more, one that reads what he says, so that an interrupt comes through while a command is
//! followed, and one that owns the session. A client that leaves, however he does it, takes the session with him.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::Reply;
use crate::socket::{Listening, admit};
use crate::target::Target;

mod requests;
mod visit;

use visit::Visit;

/// How long a client may take to read that nothing comes any more, and how long the next one waits for one that has left.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often the host is asked again where it would not accept anybody: out of file descriptors, for one.
const AGAIN: Duration = Duration::from_millis(100);

/// What becomes of somebody who wants to look at a machine.
pub enum Entry {
    /// He may.
    In(Box<dyn Target>),
    /// There is no machine yet.
    NotYet,
    /// He may not: why.
    Refused(String),
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(_) => f.write_str("In"),
            Self::NotYet => f.write_str("NotYet"),
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

/// Gives a machine to look at to who is in, on the thread that serves him.
type Open = dyn Fn() -> Entry + Send + Sync;

/// Serves a control socket until it is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// What the threads share.
pub(super) struct Shared {
    listening: Listening,
    open: Box<Open>,
    door: Mutex<Door>,
    changed: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("listening", &self.listening).field("door", &self.door).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Door {
    /// The process that is in, and what it is spoken to by.
    inside: Option<(i32, UnixStream)>,
    /// There will be no machine any more.
    is_over: bool,
}

impl Server {
    /// Serves whoever connects; `open` gives him a machine when he asks for something first.
    ///
    /// # Errors
    ///
    /// The host gives no thread.
    pub fn start(listening: Listening, open: impl Fn() -> Entry + Send + Sync + 'static) -> io::Result<Self> {
        let (open, door, changed) = (Box::new(open), Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { listening, open, door, changed });
        let of_thread = Arc::clone(&shared);
        let accepting = thread::Builder::new().name("control".into()).spawn(move || accept(&of_thread))?;
        Ok(Self { shared, accepting: Some(accepting) })
    }
}

/// Tells who is in that there will be no machine any more, and removes the socket.
impl Drop for Server {
    fn drop(&mut self) {
        self.shared.listening.remove();
        self.shared.end();
        self.shared.listening.end();
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.door().is_over
    }

    /// Waits so long, or until it is over: whether it is.
    pub(super) fn wait_for_end(&self, timeout: Duration) -> bool {
        let door = self.changed.wait_timeout_while(self.door(), timeout, |door| !door.is_over);
        door.unwrap_or_else(PoisonError::into_inner).0.is_over
    }

    /// Lets nobody in any more; who is in has some time to be told so.
    fn end(&self) {
        let mut door = self.door();
        door.is_over = true;
        self.changed.notify_all();
        let until = Instant::now() + FAREWELL;
        while let (Some((_, stream)), left) = (&door.inside, until.saturating_duration_since(Instant::now())) {
            if left.is_zero() {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            door = self.changed.wait_timeout(door, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn open(&self) -> Entry {
        (self.open)()
    }

    /// Lets a process in, or says why not.
    fn enter(&self, stream: &UnixStream) -> Result<(), String> {
        let process = admit(stream)?;
        let mut door = self.wait_for_leaving();
        if let Some((other, _)) = &door.inside {
            return Err(format!("process {other} is in, and one can be at a time"));
        }
        if door.is_over {
            return Err(OVER.into());
        }
        let stream = stream.try_clone().map_err(|error| error.to_string())?;
        door.inside = Some((process, stream));
        Ok(())
    }

    /// Who has hung up is out in a moment: what he asked for last is left.
    fn wait_for_leaving(&self) -> MutexGuard<'_, Door> {
        let is_leaving = |door: &mut Door| door.inside.as_ref().is_some_and(|(_, stream)| has_hung_up(stream));
        let door = self.changed.wait_timeout_while(self.door(), FAREWELL, is_leaving);
        door.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn leave(&self) {
        self.door().inside = None;
        self.changed.notify_all();
    }
}

/// Whether the other end will say nothing more.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
    let no_time = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&no_time)).is_ok() && !polled[0].revents().is_empty()
}

/// Why nothing comes any more where nothing is wrong.
pub(super) const OVER: &str = "the last run is over";

fn accept(shared: &Arc<Shared>) {
    loop {
        match shared.listening.accept() {
            Ok(stream) => receive(shared, stream),
            Err(_) if shared.is_over() => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => drop(shared.wait_for_end(AGAIN)),
        }
    }
}

/// Lets somebody in, or turns him away with a line.
fn receive(shared: &Arc<Shared>, stream: UnixStream) {
    if let Err(why) = shared.enter(&stream) {
        // An empty socket takes a line without waiting.
        let _ = io::Write::write_all(&mut &stream, Reply::Bye(why).written().as_bytes());
        return;
    }
    let visit = Visit::new(Arc::clone(shared), stream);
    // Where the host gives no thread he is turned away by that.
    let _ = thread::Builder::new().name("control-client".into()).spawn(move || visit.serve());
}

#[cfg(test)]
mod test;
