//! gdb's remote protocol over a machine: every vCPU a thread, its registers, memory by its own page tables, and every command of the
//! debugger behind `monitor`. A dump can be looked at; a machine that can run on stops, steps and is written to as well.
//!
//! One client at a time, and its bytes are not trusted: what is no packet gets an error, and the conversation goes on.
//!
//! | module | what it owns |
//! |---|---|
//! | `address`, `listener` | where gdb is waited for |
//! | `client`, `frame` | a client, and its bytes as packets |
//! | `conversation` | packets in, packets out |
//! | `machine` | the machine as gdb sees it: threads, registers, memory |
//! | `resume`, `stops` | how it goes on, and where it stops |
//! | `registers`, `threads`, `file`, `monitor` | what gdb is told of registers and threads, the guest's file, commands |

mod address;
mod client;
mod conversation;
mod error;
mod file;
mod frame;
mod listener;
mod machine;
mod monitor;
mod registers;
mod resume;
mod stops;
mod threads;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gdbstub::stub::DisconnectReason;

pub use address::Address;
use client::{Client, Next};
use conversation::Conversation;
pub use error::GdbError;
pub use listener::Listener;
use listener::Stream;
use machine::Machine;

use crate::session::Session;

/// How often it is looked whether a client has come, or the machine has gone.
const TICK: Duration = Duration::from_millis(10);

/// How long somebody may say nothing before others are let in.
const GRACE: Duration = Duration::from_secs(1);

/// How it ended with gdb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// gdb was detached, or it vanished: whatever the machine does, it does alone.
    Left,
    /// gdb ended the run.
    Killed,
    /// The run has come to its end, and gdb knows.
    Over,
    /// Somebody else has interrupted it, or the machine is gone.
    Interrupted,
}

/// Waits for gdb and does what it says, until it leaves or `interrupted` is set; gdb sets it too, where it ends the run.
pub fn serve(listener: &Listener, session: &mut Session, interrupted: &AtomicBool) -> Ended {
    let mut conversation = Conversation::new(Machine::new(session));
    let mut waiting = None;
    while let Some(stream) = waiting.take().or_else(|| next_client(listener, &mut conversation, interrupted)) {
        let Ok(mut client) = Client::new(stream) else { continue };
        conversation.machine.serve(client.presence.clone());
        let mut others = Others { listener, waiting: &mut waiting, since: Instant::now() };
        let ended = converse(&mut conversation, &mut client, &mut others, interrupted);
        // Somebody who never spoke gdb's language was not gdb.
        if conversation.is_gdb || ended != Ended::Left {
            return ended;
        }
        conversation = conversation.with_another_client();
    }
    Ended::Interrupted
}

fn next_client(listener: &Listener, conversation: &mut Conversation<'_>, interrupted: &AtomicBool) -> Option<Stream> {
    while !interrupted.load(Ordering::Relaxed) && !conversation.machine.is_gone() {
        match listener.accept() {
            Ok(Some(stream)) => return Some(stream),
            // A host that cannot now, out of descriptors say, may later.
            Ok(None) | Err(_) => thread::park_timeout(TICK),
        }
    }
    None
}

fn converse(
    conversation: &mut Conversation<'_>,
    client: &mut Client,
    others: &mut Others<'_>,
    interrupted: &AtomicBool,
) -> Ended {
    loop {
        let timeout = if conversation.is_running() { Duration::ZERO } else { TICK };
        let answer = match client.next(timeout) {
            Next::Frame(frame) => conversation.take(frame),
            Next::Gone => return Ended::Left,
            Next::Nothing if conversation.is_running() => conversation.wait(),
            Next::Nothing if conversation.machine.is_gone() => return Ended::Interrupted,
            Next::Nothing => Vec::new(),
        };
        if client.send(&answer).is_err() {
            return Ended::Left;
        }
        match conversation.over() {
            None => {}
            Some(DisconnectReason::Kill) => {
                interrupted.store(true, Ordering::Relaxed);
                conversation.machine.end();
                return Ended::Killed;
            }
            Some(DisconnectReason::Disconnect) => return Ended::Left,
            Some(_) => return Ended::Over,
        }
        if interrupted.load(Ordering::Relaxed) {
            return Ended::Interrupted;
        }
        if others.come(conversation.is_gdb) {
            return Ended::Left;
        }
    }
}

/// Who comes while somebody is in.
struct Others<'l> {
    listener: &'l Listener,
    waiting: &'l mut Option<Stream>,
    since: Instant,
}

impl Others<'_> {
    /// gdb is in alone: whoever else comes sees the end at once. Somebody who is in for a while and has not spoken gdb's language
    /// gives way: whether somebody waits for that.
    fn come(&mut self, is_gdb: bool) -> bool {
        if !is_gdb && self.since.elapsed() < GRACE {
            return false;
        }
        let other = self.listener.accept().ok().flatten();
        *self.waiting = other.filter(|_| !is_gdb);
        self.waiting.is_some()
    }
}
