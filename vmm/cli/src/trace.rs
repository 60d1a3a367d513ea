//! A trace as a file, and the run that it is of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use stallbench_explore::Trace;
use stallbench_runner::execute::RunPlan;
use stallbench_runner::replay::ReplayError;
use stallbench_runner::scenario::Run;
use stallbench_runner::trace::ROUND;
use stallbench_state::program::Program;

use crate::exit::{Exit, Failure};
use crate::guest::{Guest, read_at_most};
use crate::run::{Running, What};

/// Most bytes of a file that are read: some hundred a step.
const MOST_BYTES: u64 = 256 << 20;

/// What a trace is followed with, where that is not what it says itself.
#[derive(Debug, Default, Args)]
pub(crate) struct With {
    /// The payload that is run in the place of the one that the trace names: an ELF file. Places are then those of its symbols, and states
    /// are not compared
    #[arg(long, value_name = "ELF")]
    pub(crate) payload: Option<PathBuf>,
    /// What the free machine at its end may take, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub(crate) budget: u64,
}

/// A trace, and all that it takes to follow it.
pub(crate) struct Traced {
    pub(crate) trace: Trace,
    pub(crate) run: Run,
    subject: Running,
    budget: Duration,
}

impl Traced {
    /// Reads a trace, and finds the run that it is of.
    pub(crate) fn open(file: &Path, with: &With) -> Result<Self, Failure> {
        let in_file = |failure: Failure| failure.context(file.display());
        let bytes = read_at_most(MOST_BYTES, "a trace", file).map_err(in_file)?;
        let text = String::from_utf8(bytes).map_err(|_| in_file(Failure::usage("is no trace: it is no text")))?;
        let trace = Trace::parse(&text).map_err(|error| in_file(Failure::new(Exit::Usage, &error)))?;
        let what = what(&trace, with, file);
        let (subject, selection) = what.select().map_err(in_file)?;
        let [run] = selection.cells.as_slice() else {
            return Err(in_file(Failure::usage(format!("{} is no single scenario", trace.of.scenario))));
        };
        if run.is_plain() {
            return Err(in_file(Failure::usage("its payload keeps no contract, so it cannot be driven")));
        }
        Ok(Self { run: run.clone(), trace, subject, budget: what.budget() })
    }

    /// The step behind which its end was before, where it goes round.
    pub(crate) fn round_from(&self) -> Option<usize> {
        let mut options = self.trace.of.options.iter();
        options.find(|(key, _)| key == ROUND).and_then(|(_, step)| step.parse().ok())
    }

    pub(crate) fn guest(&self) -> Result<&Guest, Failure> {
        match &self.subject {
            Running::Image(guest) => Ok(guest),
            Running::Plain(..) => Err(Failure::usage("its payload keeps no contract, so it cannot be driven")),
        }
    }

    pub(crate) fn program(&self) -> Result<&Program, Failure> {
        self.guest().map(Guest::program)
    }

    pub(crate) fn plan(&self) -> RunPlan {
        RunPlan::of(&self.run, self.budget)
    }
}

/// The request that a trace stands for. Its files lie where they lay, or beside it.
fn what(trace: &Trace, with: &With, file: &Path) -> What {
    let of = &trace.of;
    let options = |key: &'static str| of.options.iter().filter(move |(other, _)| other == key).map(|(_, value)| value);
    let path = |value: &String| {
        let (as_said, beside) =
            (PathBuf::from(value), Path::new(value).file_name().map(|name| file.with_file_name(name)));
        if as_said.exists() { as_said } else { beside.filter(|beside| beside.exists()).unwrap_or(as_said) }
    };
    let files = options("file").map(|value| path(value).display().to_string());
    What {
        names: files.chain([of.scenario.clone()]).collect(),
        payload: with.payload.clone().or_else(|| options("payload-file").next().map(path)),
        set: options("set").cloned().collect(),
        layout: options("layout").next().map(path),
        seed: of.seed,
        budget: with.budget,
        ..What::default()
    }
}

/// Why a trace could not be followed.
pub(crate) fn failure(error: &ReplayError, file: &Path) -> Failure {
    let failure = match error {
        error if error.is_of_request() => Failure::new(Exit::Usage, error),
        ReplayError::Explore(error @ stallbench_explore::ExploreError::Refused(_)) => {
            return Failure::unexpected(format!("{}: {error}", file.display()));
        }
        error => Failure::host(error),
    };
    failure.attempted().context(file.display())
}
