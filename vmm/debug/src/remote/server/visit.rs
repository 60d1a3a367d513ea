//! One client, from the door in to the door out: what he asks for is followed in order, and answered as it comes.

use std::io::{self, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use super::requests::{Interrupts, Requests};
use super::{Entry, OVER, Shared};
use crate::follow::Follower;
use crate::remote::wire::{LONGEST_REPLY, Reply, Request, VERSION};
use crate::session::Session;

/// How often it is looked whether it is over, while nothing is asked for.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How often it is looked whether there is a machine, where there is none.
const LOOK_FOR_MACHINE: Duration = Duration::from_millis(10);

/// A client that was let in. When this is dropped he is out.
#[derive(Debug)]
pub(super) struct Visit {
    shared: Arc<Shared>,
    stream: UnixStream,
    interrupts: Interrupts,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

/// Ends the thread that reads, whatever becomes of the other one.
struct HangUp<'a>(&'a UnixStream);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Why nothing more is said.
enum Out {
    /// He is told why.
    Bye(String),
    /// He does not listen, or asked for it.
    Gone,
}

impl From<io::Error> for Out {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl Visit {
    pub(super) fn new(shared: Arc<Shared>, stream: UnixStream) -> Self {
        Self { shared, stream, interrupts: Interrupts::default() }
    }

    /// Follows what he asks for until he leaves, or there will be no machine any more.
    pub(super) fn serve(self) {
        let Ok(input) = self.stream.try_clone() else { return };
        thread::scope(|scope| {
            let _hang_up = HangUp(&self.stream);
            let (requests, read) = Requests::of(input, self.interrupts.clone());
            if thread::Builder::new().name("control-reader".into()).spawn_scoped(scope, read).is_err() {
                return;
            }
            if let Err(Out::Bye(why)) = self.follow_all(&requests) {
                let _ = self.say(&Reply::Bye(why));
            }
        });
    }

    fn say(&self, reply: &Reply) -> io::Result<()> {
        let mut line = reply.written();
        if line.len() > LONGEST_REPLY {
            let Reply::Command { command, .. } = reply else { return Ok(()) };
            let error = Err(format!("the answer is longer than {LONGEST_REPLY} bytes"));
            line = Reply::Command { command: command.clone(), answer: error }.written();
        }
        (&self.stream).write_all(line.as_bytes())
    }

    fn follow_all(&self, requests: &Requests) -> Result<(), Out> {
        self.say(&Reply::Hello { version: VERSION, pid: std::process::id() })?;
        let mut session = None;
        loop {
            match requests.next(LOOK_UP) {
                Ok((number, Ok(request))) => {
                    self.interrupts.begin(number);
                    self.follow(&mut session, request)?;
                }
                Ok((_, Err(wrong))) => self.say(&Reply::Wrong(wrong))?,
                Err(RecvTimeoutError::Timeout) if self.shared.is_over() => return Err(Out::Bye(OVER.into())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let left_out = self.interrupts.left_out();
            if left_out > 0 {
                self.say(&Reply::Wrong(format!("{left_out} lines were left out: too many wait")))?;
            }
        }
    }

    fn follow(&self, session: &mut Option<Session>, request: Request) -> Result<(), Out> {
        match (self.with_machine(session)?, request) {
            (Some(session), Request::Line { line, directory }) => {
                directory.iter().for_each(|directory| session.set_directory(directory));
                self.follow_line(session, &line)
            }
            (Some(session), Request::Complete(start)) => {
                let (start, words) = Follower::complete(session, &start);
                Ok(self.say(&Reply::Completions { start, words })?)
            }
            (None, Request::Line { line, .. }) => {
                let answer = Err("interrupted: there is no machine yet".into());
                self.say(&Reply::Command { command: line.trim().into(), answer })?;
                Ok(self.say(&Reply::Done { vcpu: 0, is_over: false })?)
            }
            // The reader keeps interrupts to itself.
            (Some(_), Request::Interrupt) => Ok(()),
            (None, _) => Ok(self.say(&Reply::Completions { start: 0, words: Vec::new() })?),
        }
    }

    /// The session, with a machine to look at: waits for one unless it is interrupted.
    fn with_machine<'a>(&self, session: &'a mut Option<Session>) -> Result<Option<&'a mut Session>, Out> {
        loop {
            if session.is_none() {
                match self.shared.open() {
                    Entry::In(target) => session.insert(Session::new(target)).set_interrupt(self.interrupts.flag()),
                    Entry::NotYet => {}
                    Entry::Refused(why) => return Err(Out::Bye(why)),
                }
            }
            if session.as_mut().is_some_and(|session| !session.is_gone()) {
                return Ok(session.as_mut());
            }
            if self.shared.wait_for_end(LOOK_FOR_MACHINE) {
                return Err(Out::Bye(OVER.into()));
            }
            if self.interrupts.is_set() {
                return Ok(None);
            }
        }
    }

    fn follow_line(&self, session: &mut Session, line: &str) -> Result<(), Out> {
        let mut said = Ok(());
        let followed = session.follow(line, &mut |command, answer| {
            said = self.say(&Reply::Command { command: command.into(), answer });
            if said.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        said?;
        followed.map_err(|lost| Out::Bye(lost.0))?;
        let is_over = session.is_over();
        self.say(&Reply::Done { vcpu: session.current(), is_over })?;
        if is_over { Err(Out::Gone) } else { Ok(()) }
    }
}
