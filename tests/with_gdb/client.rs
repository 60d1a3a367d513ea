//! A client that speaks gdb's protocol as well or as badly as it is told to.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use crate::server::DEADLINE;

pub(crate) struct Client(UnixStream);

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    /// One that is let in: whoever was there before may not have been missed yet.
    pub(crate) fn let_in(socket: &Path) -> Self {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < DEADLINE, "nobody is let in");
            let mut client = Self::new(socket);
            client.send(b"$#00");
            if client.byte() == Some(b'+') {
                assert_eq!(client.answer(), "", "to a packet that says nothing");
                return client;
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Sends a packet and gives the body of the answer.
    pub(crate) fn ask(&mut self, body: &str) -> String {
        let sum = body.bytes().fold(0_u8, |sum, byte| sum.wrapping_add(byte));
        self.send(format!("${body}#{sum:02x}").as_bytes());
        self.answer()
    }

    /// The body of the next packet.
    pub(crate) fn answer(&mut self) -> String {
        let begins = std::iter::from_fn(|| self.byte()).any(|byte| byte == b'$');
        assert!(begins, "the server has closed the connection");
        let body = std::iter::from_fn(|| self.byte().filter(|byte| *byte != b'#')).collect();
        let _checksum = [self.byte(), self.byte()];
        String::from_utf8(body).unwrap()
    }

    /// The next byte; none at the end.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(length) => (length == 1).then_some(byte[0]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }
}
