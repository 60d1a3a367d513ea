//! A client that has come: a thread reads its packets, so that a Ctrl-C is seen whatever the server does meanwhile.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::frame::{Frame, Frames};
use super::listener::Stream;

/// Packets that may wait. gdb waits for the answer to each; who sends more than that is hung up on, for while nobody takes them nobody
/// would see that it goes.
const WAITING: usize = 64;

/// What there is of a client.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    /// Nothing, so far.
    Nothing,
    /// It has gone.
    Gone,
}

/// What is known of a client while something is done for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Presence {
    /// It has said Ctrl-C, or is gone; taken back by what is interrupted.
    pub(super) interrupt: Arc<AtomicBool>,
    is_gone: Arc<AtomicBool>,
    /// It came by a TCP port: nobody knows which user it is.
    pub(super) is_by_tcp: bool,
}

impl Presence {
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    /// Takes back an interrupt that came too late for what was asked before; that of a client that is gone stays.
    pub(super) fn forget_interrupt(&self) {
        self.interrupt.store(false, Ordering::SeqCst);
        if self.is_gone() {
            self.interrupt.store(true, Ordering::SeqCst);
        }
    }

    fn leave(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
        self.interrupt.store(true, Ordering::SeqCst);
    }
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    stream: Stream,
    frames: Receiver<Frame>,
    pub(super) presence: Presence,
}

impl Client {
    /// Reads from now on.
    pub(super) fn new(stream: Stream) -> io::Result<Self> {
        let (sender, frames) = sync_channel(WAITING);
        let presence = Presence { is_by_tcp: stream.is_tcp(), ..Presence::default() };
        let (read_from, of_thread) = (stream.again()?, presence.clone());
        thread::Builder::new().name("gdb".to_owned()).spawn(move || {
            read(read_from, &sender, &of_thread.interrupt);
            of_thread.leave();
        })?;
        Ok(Self { stream, frames, presence })
    }

    /// What it sends next, if it does so in time.
    pub(super) fn next(&self, timeout: Duration) -> Next {
        match self.frames.recv_timeout(timeout) {
            Ok(frame) => Next::Frame(frame),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::Gone,
        }
    }

    /// Sends it bytes.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }
}

impl Drop for Client {
    /// The thread sees the end of the stream, or that nobody takes its packets.
    fn drop(&mut self) {
        self.stream.close();
    }
}

fn read(mut stream: Stream, sender: &SyncSender<Frame>, interrupt: &AtomicBool) {
    let (mut frames, mut bytes) = (Frames::default(), [0; 4096]);
    loop {
        let length = match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for frame in bytes[..length].iter().filter_map(|byte| frames.push(*byte)) {
            interrupt.fetch_or(frame == Frame::Interrupt, Ordering::SeqCst);
            if sender.try_send(frame).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn pair() -> (UnixStream, Client) {
        let (near, far) = UnixStream::pair().expect("the host has some");
        (near, Client::new(Stream::Unix(far)).expect("a thread"))
    }

    fn gone(client: &Client) {
        let began = Instant::now();
        while !client.presence.is_gone() {
            assert!(began.elapsed() < DEADLINE, "it is not missed");
            thread::yield_now();
        }
    }

    #[test]
    fn interrupt_of_who_is_gone_is_not_taken_back() {
        let (mut near, client) = pair();
        near.write_all(b"\x03").expect("it listens");
        assert!(matches!(client.next(DEADLINE), Next::Frame(Frame::Interrupt)));
        client.presence.forget_interrupt();
        assert!(!client.presence.interrupt.load(Ordering::SeqCst));
        drop(near);
        gone(&client);
        client.presence.forget_interrupt();
        assert!(client.presence.interrupt.load(Ordering::SeqCst));
    }

    #[test]
    fn who_waits_for_no_answer_is_hung_up_on() {
        let (mut near, client) = pair();
        let _ = near.write_all(&b"$g#67".repeat(WAITING + 1));
        gone(&client);
        let taken = std::iter::from_fn(|| matches!(client.next(DEADLINE), Next::Frame(_)).then_some(())).count();
        assert_eq!(taken, WAITING);
    }
}
