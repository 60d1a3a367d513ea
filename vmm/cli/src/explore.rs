//! `stallbench explore`: every schedule of a scenario, and every arrival of an interrupt.

mod model;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use clap::Args;
use stallbench_core::HostKvm;
use stallbench_explore::Settings;
use stallbench_runner::dump::{Dumps, Keep};
use stallbench_runner::evidence::Evidence;
use stallbench_runner::execute::{self, RunPlan};
use stallbench_runner::explore::{self, ExploreRunError, Exploring};
use stallbench_runner::outcome::RunOutcome;
use stallbench_runner::repeat::Repeat;
use stallbench_runner::report::{Kind, Reports, Start};
use stallbench_runner::scenario::{Run, Selection};
use stallbench_runner::session;
use stallbench_state::program::Program;

use crate::exit::{Exit, Failure};
use crate::run::{Kept, Progress, Running, What, exit, open_reports, options, report_kinds, run_plan, tell_dumps};
use crate::{interrupt, output};
use model::MemoryModel;

#[derive(Debug, Args)]
#[command(after_help = "docs/explore.md says what is explored, and what a complete search shows")]
pub(crate) struct Arguments {
    /// States of the machine at most; where there are more, the verdict is budget
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    max_states: u32,
    /// Guests at a time [default: one a host CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// human, jsonl=FILE or junit=FILE, '-' for standard output; repeatable [default: human]
    #[arg(long, value_name = "REPORT")]
    report: Vec<Kind>,
    /// Only what scenarios declare what exploring it comes to ([[scenario.explore]], docs/adding-a-case.md), all of it where nothing is named
    #[arg(long, conflicts_with = "case")]
    declared: bool,
    #[command(flatten)]
    model: MemoryModel,
    #[command(flatten)]
    kept: Kept,
    #[command(flatten)]
    what: What,
}

pub(crate) fn explore(arguments: &Arguments) -> Result<Exit, Failure> {
    let what = &arguments.what;
    if what.is_empty() && !arguments.declared {
        return Err(Failure::usage(
            "a scenario is missing; `stallbench list` has them, and --declared takes all that say what it comes to",
        ));
    }
    if what.order.is_some() {
        return Err(Failure::usage("--order: exploring looks at no order of MTRR programming"));
    }
    let settings = arguments.settings()?;
    let repeat = arguments.repeat(&settings);
    let kinds = report_kinds(&arguments.report)?;
    let declared = arguments.declared.then(|| settings.model.to_string());
    let (subject, selection) = what.select_declared(declared)?;
    let Running::Image(guest) = &subject else {
        return Err(Failure::usage(
            "--payload: nothing says what the vCPUs of a plain guest share, so it cannot be explored",
        ));
    };
    if selection.is_empty() {
        return Err(Failure::nothing_selected("none of these has such cells"));
    }
    arguments.kept.check()?;
    let host = HostKvm::open()?;
    selection.check_host(host.max_vcpus())?;
    let evidence = arguments.kept.evidence(repeat.clone(), subject.bytes())?;
    let dumps = arguments.kept.dumps(repeat, &host, subject.packed());
    let interrupted = interrupt::flag_on_signal()?;
    let progress = Progress::exploring();
    let session =
        Session { arguments, program: guest.program(), host: &host, settings, evidence, dumps, interrupted, progress };
    session.run(&selection, open_reports(&kinds, session.evidence.as_ref()))
}

impl Arguments {
    fn settings(&self) -> Result<Settings, Failure> {
        Ok(Settings { model: self.model.model()?, ..Settings::default() })
    }

    /// How one of these searches is asked for again.
    fn repeat(&self, settings: &Settings) -> Repeat {
        let model = MemoryModel::options(settings.model);
        Repeat::new("explore", format!(" --max-states {}{model}{}", self.max_states, options(&self.what)))
    }

    fn jobs(&self) -> usize {
        let of_host = || thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(of_host, usize::from)
    }
}

/// All that searches need.
struct Session<'a> {
    arguments: &'a Arguments,
    program: &'a Program,
    host: &'a HostKvm,
    settings: Settings,
    evidence: Option<Arc<Evidence>>,
    dumps: Dumps,
    interrupted: Arc<AtomicBool>,
    progress: Progress,
}

impl Session<'_> {
    fn run(&self, selection: &Selection, mut reports: Reports) -> Result<Exit, Failure> {
        reports.begin(&self.start(selection));
        let execute = |run: &Run| self.explore(run);
        let ended = session::run(selection, self.arguments.jobs(), &self.interrupted, &execute, &mut |result| {
            self.progress.suspend(|| reports.result(&result));
        });
        self.progress.finish();
        let failure = ended.failure.map(|error| Failure::host(&error).attempted());
        let failed = reports.end(&ended.summary);
        failed.iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
        let dumped = tell_dumps(&self.dumps);
        failure.map_or_else(|| Ok(exit(&ended.summary, !failed.is_empty() || !dumped)), Err)
    }

    fn explore(&self, run: &Run) -> Result<RunOutcome, ExploreRunError> {
        if let Some(evidence) = &self.evidence {
            evidence.run_begins(run);
        }
        let what = &self.arguments.what;
        let keep = Keep { at_end: self.dumps.when().of(run), on_request: None };
        let plan = RunPlan { keep, ..run_plan(run, what.budget()) };
        let told = |states, frontier| self.progress.states(&run.name, states, frontier);
        let exploring = Exploring {
            settings: &self.settings,
            most_states: self.arguments.max_states as usize,
            interrupt: &self.interrupted,
            progress: &told,
        };
        let outcome = explore::explore(self.host, self.program, &plan, exploring)?;
        Ok(self.dumps.write(run, outcome))
    }

    fn start(&self, selection: &Selection) -> Start {
        let what = &self.arguments.what;
        Start {
            host: self.host.fingerprint().clone(),
            poll_interval_ns: u64::try_from(execute::POLL.as_nanos()).unwrap_or(u64::MAX),
            scenarios: selection.len(),
            seed: what.seed,
            budget_ms: what.budget,
        }
    }
}
