//! The side of the person: a follower like a session, whose answers come from another process.

use std::cell::RefCell;
use std::io::{self, BufReader, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::line::{Line, Lines};
use super::name_of_socket;
use super::wire::{LONGEST_REPLY, Reply, Request, VERSION, line_from_here};
use crate::follow::{Follower, Lost, Tell};
use crate::style::printable;

/// How long a server may take to say what it is.
const GREETING: Duration = Duration::from_secs(5);
/// How long completion may take: nobody waits longer for a Tab.
const COMPLETION: Duration = Duration::from_secs(2);
/// How long a run may leave an interrupt unanswered. Then it hangs, or is stopped itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether what is waited for is to be interrupted.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Why a run cannot be looked into. Each is one line that begins with its path.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Nothing is there, or it may not be opened.
    #[error("{}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is no socket.
    #[error("{}: no socket; `run --control PATH` makes one", path.display())]
    NoSocket {
        /// What it is.
        path: PathBuf,
    },
    /// Nobody listens.
    #[error("{}: nobody listens there; its run is over", path.display())]
    Dead {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody listens who is no run.
    #[error("{}: no run of stallbench is behind it", path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
    },
    /// It speaks another version.
    #[error("{}: speaks version {theirs} of the protocol, and this is version {VERSION}", path.display())]
    OtherVersion {
        /// The socket.
        path: PathBuf,
        /// Its version.
        theirs: u64,
    },
    /// It does not let us in.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it says.
        why: String,
    },
}

/// A session of another process.
#[derive(Debug)]
pub struct Client {
    connection: RefCell<Connection>,
    interrupt: Arc<AtomicBool>,
    current: usize,
    is_over: bool,
}

#[derive(Debug)]
struct Connection {
    lines: Lines<BufReader<UnixStream>>,
    output: UnixStream,
}

impl Client {
    /// Comes into the run with that socket, or with a socket in that directory. While a command is followed it is interrupted where
    /// `interrupt` is set, which is then taken back.
    ///
    /// # Errors
    ///
    /// [`AttachError`] says in one line what is in the way.
    pub fn attach(run: &Path, interrupt: Arc<AtomicBool>) -> Result<Self, AttachError> {
        let path = name_of_socket(run);
        let mut connection = connect(&path)?;
        match connection.reply_before(Instant::now() + GREETING) {
            Ok(Some(Reply::Hello { version: VERSION, .. })) => {}
            Ok(Some(Reply::Hello { version: theirs, .. })) => return Err(AttachError::OtherVersion { path, theirs }),
            Ok(Some(Reply::Bye(why))) => return Err(AttachError::Refused { path, why: harmless(&why) }),
            Ok(_) | Err(_) => return Err(AttachError::Foreign { path }),
        }
        Ok(Self { connection: RefCell::new(connection), interrupt, current: 0, is_over: false })
    }
}

fn connect(path: &Path) -> Result<Connection, AttachError> {
    let unreachable = |source: io::Error| match source.kind() {
        ErrorKind::ConnectionRefused => AttachError::Dead { path: path.to_owned() },
        _ => AttachError::Unreachable { path: path.to_owned(), source },
    };
    if !path.metadata().map_err(unreachable)?.file_type().is_socket() {
        return Err(AttachError::NoSocket { path: path.to_owned() });
    }
    let output = UnixStream::connect(path).map_err(unreachable)?;
    output.set_read_timeout(Some(LOOK_UP)).map_err(unreachable)?;
    // Who reads nothing does not answer either.
    output.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
    let input = output.try_clone().map_err(unreachable)?;
    Ok(Connection { lines: Lines::new(BufReader::new(input), LONGEST_REPLY), output })
}

impl Connection {
    /// Asks for something. Where nobody listens any more, what he said before he went still comes.
    fn ask(&self, request: &Request) {
        let _ = (&self.output).write_all(request.written().as_bytes());
    }

    /// What is said next; `None` where nothing is, for a while.
    fn reply(&mut self) -> Result<Option<Reply>, Lost> {
        match self.lines.next() {
            Ok(Line::Whole(line)) => {
                Reply::read(&line).map(Some).ok_or_else(|| Lost("the run says what is no answer".into()))
            }
            Ok(Line::TooLong) => Err(Lost(format!("the run says a line of more than {LONGEST_REPLY} bytes"))),
            Ok(Line::Begun) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Ok(Line::End) | Err(_) => Err(Lost("the run is gone".into())),
        }
    }

    /// What is said next, if it comes by then.
    fn reply_before(&mut self, deadline: Instant) -> Result<Option<Reply>, Lost> {
        loop {
            match self.reply()? {
                None if Instant::now() < deadline => {}
                reply => return Ok(reply),
            }
        }
    }

    fn complete(&mut self, line: &str) -> Option<(usize, Vec<String>)> {
        self.ask(&Request::Complete(line.to_owned()));
        let deadline = Instant::now() + COMPLETION;
        loop {
            match self.reply_before(deadline).ok()?? {
                Reply::Completions { start, words } if line.is_char_boundary(start) => {
                    return Some((start, words.iter().map(|word| printable(word)).collect()));
                }
                Reply::Bye(_) | Reply::Completions { .. } => return None,
                // Of a request before.
                _ => {}
            }
        }
    }
}

impl Follower for Client {
    fn follow(&mut self, line: &str, tell: &mut Tell<'_>) -> Result<(), Lost> {
        let connection = self.connection.get_mut();
        connection.ask(&line_from_here(line));
        let (mut is_heard, mut interrupted) = (true, None);
        loop {
            if self.interrupt.swap(false, Ordering::SeqCst) {
                // Asked twice, without a word in between.
                if interrupted.replace(Instant::now()).is_some() {
                    return Err(no_answer());
                }
                connection.ask(&Request::Interrupt);
            }
            let reply = connection.reply()?;
            if reply.is_some() {
                interrupted = None;
            } else if interrupted.is_some_and(|at| at.elapsed() >= PATIENCE) {
                return Err(no_answer());
            }
            match reply {
                Some(Reply::Command { command, answer }) if is_heard => {
                    let answer = answer.map(|answer| crate::Answer { text: harmless(&answer.text), ..answer });
                    let answer = answer.map_err(|why| printable(&why));
                    is_heard = tell(&command, answer).is_continue();
                }
                Some(Reply::Wrong(why)) if is_heard => {
                    let _ = tell(line.trim(), Err(printable(&why)));
                    return Ok(());
                }
                Some(Reply::Done { vcpu, is_over }) => {
                    (self.current, self.is_over) = (vcpu, is_over);
                    return Ok(());
                }
                Some(Reply::Bye(why)) => return Err(Lost(harmless(&why))),
                Some(_) | None => {}
            }
        }
    }

    fn interrupt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupt)
    }

    fn complete(&self, line: &str) -> (usize, Vec<String>) {
        let nothing = (line.len(), Vec::new());
        let Ok(mut connection) = self.connection.try_borrow_mut() else { return nothing };
        connection.complete(line).unwrap_or(nothing)
    }

    fn current(&self) -> usize {
        self.current
    }

    fn is_over(&self) -> bool {
        self.is_over
    }
}

fn no_answer() -> Lost {
    Lost("the run does not answer".into())
}

/// A text that moves no terminal's cursor: of control sequences only colours are left (ECMA-48, SGR), whoever it came from.
fn harmless(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = colour(rest).unwrap_or(0);
        if length > 0 {
            kept.push_str(&rest[..length]);
        } else {
            kept.push(if character.is_control() && character != '\n' { '?' } else { character });
        }
        rest = &rest[length.max(character.len_utf8())..];
    }
    kept
}

/// The length of the colour that a text begins with.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..].starts_with('m').then_some(2 + end + 1)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn nothing_but_colours_reaches_the_terminal() {
        assert_eq!(harmless("\u{1b}[1ma\u{1b}[0m\nb\u{1b}[2J\u{9b}c\r\u{1b}"), "\u{1b}[1ma\u{1b}[0m\nb?[2J?c??");
        assert_eq!(harmless("\u{1b}[1;31mé\u{1b}[12"), "\u{1b}[1;31mé?[12");
    }
}
