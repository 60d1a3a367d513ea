//! Lines out of a stream, no longer than they may be.

use std::io::{self, BufRead, ErrorKind};

/// What a stream had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// One that was longer than it may be; it was left out.
    TooLong,
    /// No more lines. What stood there without an end is lost.
    End,
}

/// A stream as lines. Reading may be taken up again after a time-out: nothing is lost.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    most: usize,
    begun: Vec<u8>,
    /// The rest of this line is left out.
    skips: bool,
}

impl<R: BufRead> Lines<R> {
    /// Lines of so many bytes at most.
    pub(super) fn new(input: R, most: usize) -> Self {
        Self { input, most, begun: Vec::new(), skips: false }
    }

    /// The next.
    ///
    /// # Errors
    ///
    /// What the stream says; of kind `WouldBlock` or `TimedOut` where nothing came in its time.
    pub(super) fn next(&mut self) -> io::Result<Line> {
        loop {
            let available = match self.input.fill_buf() {
                Ok([]) => return Ok(Line::End),
                Ok(available) => available,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = available.iter().position(|&byte| byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            self.skips |= self.begun.len() + part.len() > self.most;
            if self.skips {
                self.begun.clear();
            } else {
                self.begun.extend_from_slice(part);
            }
            let taken = part.len() + usize::from(end.is_some());
            self.input.consume(taken);
            if end.is_some() {
                let begun = std::mem::take(&mut self.begun);
                return Ok(if std::mem::take(&mut self.skips) { Line::TooLong } else { Line::Whole(begun) });
            }
        }
    }
}

#[cfg(test)]
mod test {
    use std::io::{BufReader, Read};

    use super::*;

    /// Gives a byte, then nothing in its time, and so on.
    struct Slow<'a>(&'a [u8], bool);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(ErrorKind::WouldBlock.into()) } else { self.0.read(&mut buffer[..1]) }
        }
    }

    fn lines(text: &str, most: usize) -> Vec<Line> {
        let mut lines = Lines::new(BufReader::new(Slow(text.as_bytes(), false)), most);
        let mut all = Vec::new();
        while all.last() != Some(&Line::End) {
            match lines.next() {
                Ok(line) => all.push(line),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        all
    }

    #[test]
    fn line_that_is_too_long_costs_no_other_and_nothing_is_lost_meanwhile() {
        let whole = |text: &str| Line::Whole(text.into());
        assert_eq!(
            lines("abcd\n\nabcde\nab\nabc", 4),
            [whole("abcd"), whole(""), Line::TooLong, whole("ab"), Line::End]
        );
    }
}
