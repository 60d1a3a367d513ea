//! Lines out of a stream, no longer than they may be.

use std::io::{self, BufRead, ErrorKind};

/// What a stream had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// Part of one; the rest is still to come.
    Begun,
    /// One is longer than it may be; it is left out, all of it.
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

    /// The next, or what has come of it so far: who waits for a line may look at the clock in between.
    ///
    /// # Errors
    ///
    /// What the stream says; of kind `WouldBlock` or `TimedOut` where nothing came in its time.
    pub(super) fn next(&mut self) -> io::Result<Line> {
        let available = match self.input.fill_buf() {
            Ok([]) => return Ok(Line::End),
            Ok(available) => available,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Line::Begun),
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|&byte| byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        let is_too_long = !self.skips && self.begun.len() + part.len() > self.most;
        if !self.skips && !is_too_long {
            self.begun.extend_from_slice(part);
        }
        let taken = part.len() + usize::from(end.is_some());
        self.input.consume(taken);
        let was_told = self.skips;
        self.skips = (was_told || is_too_long) && end.is_none();
        Ok(match end {
            _ if is_too_long => {
                self.begun = Vec::new();
                Line::TooLong
            }
            Some(_) if !was_told => Line::Whole(std::mem::take(&mut self.begun)),
            _ => Line::Begun,
        })
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
                Ok(Line::Begun) => {}
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
    #[test]
    fn line_without_an_end_holds_nobody_and_is_told_of_where_it_gets_too_long() {
        let mut lines = Lines::new(BufReader::with_capacity(2, &b"abcdefgh\ni\n"[..]), 4);
        let begun = std::iter::from_fn(|| lines.next().ok()).take(8).collect::<Vec<_>>();
        let i = Line::Whole(b"i".to_vec());
        assert_eq!(
            begun,
            [Line::Begun, Line::Begun, Line::TooLong, Line::Begun, Line::Begun, Line::Begun, i, Line::End]
        );
    }
}
