//! Standard output and standard error. What a command is asked to print goes to the one, everything else to the other; neither
//! panics when its reader has gone.

use std::io::{self, ErrorKind, Write};

use anstream::AutoStream;

use crate::exit::{Exit, Failure};

/// Standard output, with colours where they belong.
pub(crate) fn stdout() -> AutoStream<io::Stdout> {
    anstream::stdout()
}

/// Prints what was asked for. A reader that closes the pipe has seen enough.
pub(crate) fn print(text: &str) -> Result<Exit, Failure> {
    let mut stdout = stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Exit::Success),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Success),
        Err(error) => Err(Failure::new(Exit::ReportFailed, &error).context("write to standard output")),
    }
}

/// A line on standard error; one that cannot be written is lost.
pub(crate) fn diagnostic(line: &str) {
    let _ = writeln!(anstream::stderr(), "{line}");
}
