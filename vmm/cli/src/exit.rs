//! Exit codes, and failures that lead to one. docs/exit-codes.md says the same to users.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use stallbench_core::{HostError, remedy_of_exhaustion};
use stallbench_runner::evidence::EvidenceError;
use stallbench_runner::scenario::ScenarioError;
use stallbench_state::program::ProgramError;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All was as expected.
    Success = 0,
    /// The request is wrong: usage, an unknown name or value, a file that cannot be read or is not what it should be.
    Usage = 2,
    /// Nothing was selected.
    NothingSelected = 4,
    /// This host cannot run guests.
    HostUnusable = 96,
    /// Something was not as expected.
    Unexpected = 100,
    /// A report could not be written.
    ReportFailed = 110,
    /// Interrupted; results so far are kept.
    Interrupted = 130,
}

impl Exit {
    /// That of several things: of the first that was not as expected.
    pub(crate) fn or(self, next: Self) -> Self {
        if self == Self::Success { next } else { self }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do what it was asked for: one line, and the exit code that goes with it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
}

impl Failure {
    /// A request that is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into() }
    }

    /// A request that is right, and of which nothing is left.
    pub(crate) fn nothing_selected(why: &str) -> Self {
        Self { exit: Exit::NothingSelected, message: format!("nothing selected: {why}") }
    }

    /// Something that was not as expected, so that there is nothing to show for it.
    pub(crate) fn unexpected(message: String) -> Self {
        Self { exit: Exit::Unexpected, message }
    }

    /// A failure with the causes of an error in its line.
    pub(crate) fn new(exit: Exit, error: &dyn Error) -> Self {
        Self { exit, message: chain(error) }
    }

    /// The same as something that was tried: what errors of libraries are fragments of.
    pub(crate) fn attempted(mut self) -> Self {
        self.message = format!("failed to {}", self.message);
        self
    }

    /// What the host could not do, with what helps where that is known.
    pub(crate) fn host(error: &(dyn Error + 'static)) -> Self {
        let failure = Self::new(Exit::HostUnusable, error);
        match remedy_of_exhaustion(error) {
            Some(remedy) => Self { message: format!("{}; {remedy}", failure.message), ..failure },
            None => failure,
        }
    }

    /// The same with something before it.
    pub(crate) fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error and its causes in one line. A cause that the text before it has already is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<ScenarioError> for Failure {
    fn from(error: ScenarioError) -> Self {
        Self::new(Exit::Usage, &error)
    }
}

impl From<EvidenceError> for Failure {
    fn from(error: EvidenceError) -> Self {
        Self::new(Exit::Usage, &error)
    }
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self::new(Exit::Usage, &error)
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let failure = Self::new(Exit::HostUnusable, &error);
        Self { message: format!("{}; {}", failure.message, error.remedy()), ..failure }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/exit-codes.md");

    #[test]
    fn every_exit_code_is_documented() {
        let all = [
            Exit::Success,
            Exit::Usage,
            Exit::NothingSelected,
            Exit::HostUnusable,
            Exit::Unexpected,
            Exit::ReportFailed,
            Exit::Interrupted,
        ];
        for exit in all {
            assert!(DOCUMENT.contains(&format!("\n| {} |", exit as u8)), "{exit:?}");
        }
    }

    #[test]
    fn causes_are_in_the_line_once() {
        let source = std::io::Error::other("disk on fire");
        let error = EvidenceError::Unwritable { path: "out".into(), source };
        assert_eq!(Failure::from(error).to_string(), "--out out: disk on fire");
        let threads = std::io::Error::from_raw_os_error(11);
        assert!(Failure::host(&threads).to_string().contains("; too many threads: "));
        let missing = HostError::Absent;
        assert!(Failure::from(missing).to_string().starts_with("/dev/kvm does not exist; "));
    }
}
