//! `stallbench explore`: every schedule of a scenario, and every arrival of an interrupt.

use std::thread;

use clap::Args;
use stallbench_core::HostKvm;
use stallbench_explore::Settings;
use stallbench_runner::execute;
use stallbench_runner::explore::{self, Exploring};
use stallbench_runner::report::{Kind, Start};
use stallbench_runner::result::Summary;
use stallbench_runner::scenario::Run;
use stallbench_runner::session;

use crate::exit::{Exit, Failure};
use crate::run::{Progress, Running, What, exit, open_reports, report_kinds, run_plan};
use crate::{interrupt, output};

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
    #[command(flatten)]
    what: What,
}

pub(crate) fn explore(arguments: &Arguments) -> Result<Exit, Failure> {
    let what = &arguments.what;
    if what.is_empty() {
        return Err(Failure::usage("a scenario is missing; `stallbench list` has them"));
    }
    if what.order.is_some() {
        return Err(Failure::usage("--order: exploring looks at no order of MTRR programming"));
    }
    let kinds = report_kinds(&arguments.report)?;
    let (subject, selection) = what.select()?;
    let Running::Image(guest) = &subject else {
        return Err(Failure::usage(
            "--payload: nothing says what the vCPUs of a plain guest share, so it cannot be explored",
        ));
    };
    if selection.is_empty() {
        return Err(Failure::nothing_selected("none of these has such cells"));
    }
    let host = HostKvm::open()?;
    selection.check_host(host.max_vcpus())?;
    let interrupted = interrupt::flag_on_signal()?;
    let progress = Progress::exploring();
    let mut reports = open_reports(&kinds, None);
    reports.begin(&Start {
        host: host.fingerprint().clone(),
        poll_interval_ns: u64::try_from(execute::POLL.as_nanos()).unwrap_or(u64::MAX),
        scenarios: selection.len(),
        seed: what.seed,
        budget_ms: what.budget,
    });
    let settings = Settings::default();
    let execute = |run: &Run| {
        let told = |states, frontier| progress.states(&run.name, states, frontier);
        let exploring = Exploring {
            settings: &settings,
            most_states: arguments.max_states as usize,
            interrupt: &interrupted,
            progress: &told,
        };
        explore::explore(&host, guest.program(), &run_plan(run, what.budget()), exploring)
    };
    let jobs = arguments.jobs.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
    let mut so_far = Summary::default();
    let ended = session::run(&selection, jobs, &interrupted, &execute, &mut |result| {
        so_far.count(&result);
        progress.suspend(|| reports.result(&result));
    });
    progress.finish();
    let failure = ended.failure.map(|error| Failure::host(&error).attempted());
    let failed = reports.end(&ended.summary);
    failed.iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
    failure.map_or_else(|| Ok(exit(&ended.summary, !failed.is_empty())), Err)
}
