//! What is run: the guest, its scenarios and how they are changed; and one run of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use stallbench_core::HostKvm;
use stallbench_runner::control::Controlled;
use stallbench_runner::dump::Keep;
use stallbench_runner::execute::plain::PlainPlan;
use stallbench_runner::execute::{self, ExecuteError, RunPlan};
use stallbench_runner::oracle::order::Mode;
use stallbench_runner::outcome::RunOutcome;
use stallbench_runner::plain::PlainOptions;
use stallbench_runner::scenario::{Run, Selection};
use stallbench_state::dump::Packed;
use stallbench_state::program::PlainProgram;

use super::plain::{self, Flags};
use super::plan;
use crate::exit::Failure;
use crate::guest::{Guest, Subject};

/// What is run.
#[derive(Debug, Default, Args)]
pub(crate) struct What {
    /// Scenarios, patterns, subjects, groups, and files or directories of scenarios; without any, the default catalogue
    #[arg(value_name = "SCENARIO|FILE|DIR")]
    pub(crate) names: Vec<String>,
    /// Run a guest of your own: an image that keeps the contract, one case or all that it has, or any other static ELF64 executable (a plain guest, docs/plain-guests.md)
    #[arg(long, value_name = "FILE.elf")]
    pub(crate) payload: Option<PathBuf>,
    /// Which case of --payload
    #[arg(long, value_name = "NAME", requires = "payload", conflicts_with = "names")]
    pub(crate) case: Option<String>,
    /// Numbers of vCPUs. Of a scenario: any that its expectations cover, instead of those declared; of a subject, a group or everything: only the declared cells that have so many; of a plain guest: any [default: 1]
    #[arg(long, value_name = "N[,N]", value_delimiter = ',')]
    pub(crate) vcpus: Vec<usize>,
    /// Set a knob; what is expected stays as declared
    #[arg(long, value_name = "KNOB=VALUE")]
    pub(crate) set: Vec<String>,
    /// The memory layout of a machine, in place of the one that a scenario programs: docs/layouts.md, or the text of its /proc/mtrr
    #[arg(long, value_name = "FILE")]
    pub(crate) layout: Option<PathBuf>,
    /// Seed of what is random in a guest; each repetition counts it up
    #[arg(long, value_name = "S", default_value = "0", value_parser = parse_seed)]
    pub(crate) seed: u64,
    /// Look at the order in which MTRRs are programmed: off, filter (each access stops its vCPU) or step (the whole procedure, step by step) [default: as the scenario declares]
    #[arg(long, value_name = "HOW", value_parser = str::parse::<Mode>)]
    pub(crate) order: Option<Mode>,
    /// What each run may take, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub(crate) budget: u64,
    #[command(flatten)]
    pub(crate) plain: Flags,
}

fn parse_seed(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected a number from 0 to 2^64-1, in decimal or with 0x".to_owned())
}

impl What {
    /// The runs that are asked for, each once.
    pub(crate) fn select(&self) -> Result<(Running, Selection), Failure> {
        self.select_declared(None)
    }

    /// The same; with a memory model, those alone of which is declared what exploring them under it comes to.
    pub(crate) fn select_declared(&self, model: Option<String>) -> Result<(Running, Selection), Failure> {
        match Subject::open(self.payload.as_deref())? {
            Subject::Image(guest) => {
                self.plain.refuse(self.payload.as_deref())?;
                let selection = plan::selection(self, &guest, model)?;
                Ok((Running::Image(guest), selection))
            }
            Subject::Plain(program) => {
                let options = self.plain.options();
                let selection = plain::selection(self, &program, &options)?;
                Ok((Running::Plain(program, Arc::new(options)), selection))
            }
        }
    }

    /// Whether nothing is named, which is everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.payload.is_none()
    }

    /// What each run may take.
    pub(crate) fn budget(&self) -> Duration {
        Duration::from_millis(self.budget)
    }
}

/// What each run executes.
pub(crate) enum Running {
    Image(Guest),
    Plain(Box<PlainProgram>, Arc<PlainOptions>),
}

/// What all guests have in their plans.
pub(crate) struct Common {
    pub(crate) budget: Duration,
    pub(crate) keep: Keep,
    pub(crate) control: Option<Controlled>,
}

impl Running {
    /// The ELF file.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Image(guest) => guest.program().bytes(),
            Self::Plain(program, _) => program.bytes(),
        }
    }

    /// What makes of it what dumps have in them.
    pub(crate) fn packed(&self) -> Box<dyn FnOnce() -> Packed + Send> {
        match self {
            Self::Image(Guest::BuiltIn(_)) => Box::new(stallbench_image::packed),
            file => {
                let bytes = file.bytes().to_owned();
                Box::new(move || Packed::of(&bytes))
            }
        }
    }

    /// Executes one run.
    pub(crate) fn execute(
        &self,
        host: &HostKvm,
        run: &Run,
        Common { budget, keep, control }: Common,
        interrupted: &AtomicBool,
    ) -> Result<RunOutcome, ExecuteError> {
        match self {
            Self::Image(guest) => {
                let plan = RunPlan { keep, control, ..RunPlan::of(run, budget) };
                execute::execute(host, guest.program(), &plan, interrupted)
            }
            Self::Plain(program, options) => {
                let (options, alone) = (Arc::clone(options), Duration::ZERO);
                let plan = PlainPlan { vcpus: run.vcpus, options, alone, budget, keep, control };
                execute::plain::execute(host, program, &plan, interrupted)
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn seeds_are_decimal_or_hexadecimal() {
        assert_eq!((parse_seed("12"), parse_seed("0xff")), (Ok(12), Ok(255)));
        assert!(parse_seed("x").is_err() && parse_seed("-1").is_err());
    }
}
