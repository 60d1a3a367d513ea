//! A client that has come: a thread reads its packets, so that a Ctrl-C is seen whatever the server does meanwhile.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::frame::{Frame, Frames};
use super::listener::Stream;

/// Packets that may wait; then the client does.
const WAITING: usize = 16;

/// What there is of a client.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    /// Nothing, so far.
    Nothing,
    /// It has gone.
    Gone,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    stream: Stream,
    frames: Receiver<Frame>,
}

impl Client {
    /// Reads from now on. `interrupt` is set when it says Ctrl-C, and when it goes.
    pub(super) fn new(stream: Stream, interrupt: Arc<AtomicBool>) -> io::Result<Self> {
        let (sender, frames) = sync_channel(WAITING);
        let read_from = stream.again()?;
        thread::Builder::new().name("gdb".to_owned()).spawn(move || {
            read(read_from, &sender, &interrupt);
            interrupt.store(true, Ordering::Relaxed);
        })?;
        Ok(Self { stream, frames })
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
            interrupt.fetch_or(frame == Frame::Interrupt, Ordering::Relaxed);
            if sender.send(frame).is_err() {
                return;
            }
        }
    }
}
