//! Standard output as the sink of a report: a reader that closes it has seen enough, and that is no error.

use std::io::{self, ErrorKind, Write};

/// A sink whose reader may go.
#[derive(Debug)]
pub(super) struct Pipe<W> {
    sink: W,
    /// The reader has gone: nothing more is written.
    gone: bool,
}

impl<W: Write> Pipe<W> {
    pub(super) fn new(sink: W) -> Self {
        Self { sink, gone: false }
    }

    /// Does what may find the reader gone; then `instead` is what came of it.
    fn unless_gone<T>(&mut self, instead: T, action: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.gone {
            return Ok(instead);
        }
        match action(&mut self.sink) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(instead)
            }
            other => other,
        }
    }
}

impl<W: Write> Write for Pipe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_gone(bytes.len(), |sink| sink.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_gone((), Write::flush)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// A sink that always fails so.
    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn reader_that_has_gone_is_no_error() {
        let mut pipe = Pipe::new(Fails(ErrorKind::BrokenPipe));
        assert!(pipe.write_all(b"line").is_ok() && pipe.flush().is_ok() && pipe.gone);
    }

    #[test]
    fn full_disk_is_an_error() {
        let mut pipe = Pipe::new(Fails(ErrorKind::StorageFull));
        assert_eq!(pipe.write_all(b"line").unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
