//! Dumps of runs: which runs leave one, what is in it, and where it lies.
//!
//! The thread that watches a machine keeps its [`Moment`] while it stands still; what writes the file runs after the machine is gone,
//! on the same thread. A file is there as a whole or not at all.

mod files;
mod request;

use std::fmt;
use std::str::FromStr;

use stallbench_core::{Capture, Paused};
use stallbench_state::dump::DumpedMemory;
use stallbench_state::machine::MachineState;

pub(crate) use files::as_a_whole;
pub use files::{DumpWriteError, Dumps};
pub(crate) use request::Asked;
pub use request::{OnRequest, Requests};

use crate::outcome::RunOutcome;
use crate::result::differences;
use crate::scenario::Run;

/// Which runs leave a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// None.
    Never,
    /// Those that are not as expected.
    #[default]
    Unexpected,
    /// All.
    Always,
}

impl When {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Never, Self::Unexpected, Self::Always];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Unexpected => "unexpected",
            Self::Always => "always",
        }
    }

    /// What that means for a run.
    pub fn of(self, run: &Run) -> AtEnd {
        match self {
            Self::Never => AtEnd::Never,
            Self::Unexpected => AtEnd::Unexpected(Box::new(run.clone())),
            Self::Always => AtEnd::Always,
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for When {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|when| when.word() == text).ok_or("expected never, unexpected or always")
    }
}

/// When the machine of a run is kept for a dump; never, unless something is said.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// As it stood at the end.
    pub at_end: AtEnd,
    /// As it stands while it runs, whenever somebody asks.
    pub on_request: Option<OnRequest>,
}

/// Whether the machine of a run is kept as it stood at the end.
#[derive(Clone, Debug, Default)]
pub enum AtEnd {
    /// No.
    #[default]
    Never,
    /// If what comes out is not what this run is to come to.
    Unexpected(Box<Run>),
    /// Yes.
    Always,
}

impl AtEnd {
    /// Whether it is after that outcome.
    pub fn wants(&self, outcome: &RunOutcome) -> bool {
        match self {
            Self::Never => false,
            Self::Unexpected(run) => !differences(run, outcome).is_empty(),
            Self::Always => true,
        }
    }
}

/// A machine as it stood at the end of a run.
#[derive(Clone, Debug)]
pub struct Moment {
    /// All vCPUs, captured in full.
    pub machine: MachineState,
    /// Its memory.
    pub memory: DumpedMemory,
}

impl Moment {
    /// Of a machine that is stopped.
    pub fn of(paused: &Paused<'_>) -> Self {
        Self { machine: paused.capture(Capture::Full), memory: paused.copy_memory() }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::outcome::Verdict;
    use crate::sample;

    #[test]
    fn machine_is_kept_where_its_run_is_not_as_expected() {
        let run = sample::run(2);
        let wants = |when: When, verdict| when.of(&run).wants(&sample::outcome(verdict));
        let budget = || Verdict::Budget { reason: String::new() };
        assert!(wants(When::Unexpected, budget()) && !wants(When::Unexpected, Verdict::Pass));
        assert!(wants(When::Always, Verdict::Pass) && !wants(When::Never, budget()));
    }

    #[test]
    fn choices_are_words() {
        assert_eq!("always".parse(), Ok(When::Always));
        assert_eq!("sometimes".parse::<When>(), Err("expected never, unexpected or always"));
    }
}
