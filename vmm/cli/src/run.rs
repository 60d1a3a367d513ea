//! `stallbench run`: real guests on real KVM, in the order asked for, on several threads.

mod control;
mod gdb;
mod kept;
mod plain;
mod plan;
mod progress;
mod what;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use clap::Args;
use stallbench_core::HostKvm;
use stallbench_debug::gdb::Address;
use stallbench_runner::control::Control;
use stallbench_runner::dump::{Dumps, Keep, Requests};
use stallbench_runner::evidence::Evidence;
use stallbench_runner::execute::{self, ExecuteError};
use stallbench_runner::outcome::RunOutcome;
use stallbench_runner::repeat::Repeat;
use stallbench_runner::report::{Human, Kind, Reports, Start};
use stallbench_runner::result::Summary;
use stallbench_runner::scenario::{Run, Selection};
use stallbench_runner::session;

use crate::exit::{Exit, Failure};
use crate::{interrupt, output};
pub(crate) use gdb::MACHINE;
pub(crate) use kept::{Kept, dumps_on_request, tell as tell_dumps};
pub(crate) use plan::{on_request, options, report_kinds, trace_options};
pub(crate) use progress::{OfSearches, Progress};
pub(crate) use what::{Common, Running, What};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How often each cell runs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,
    /// Guests at a time [default: one a host CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    #[command(flatten)]
    kept: Kept,
    /// Let `stallbench debug --attach PATH` look into the runs while they last: a new socket there, for this user alone. Means --jobs 1
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Wait for gdb before the first instruction: at `unix:PATH`, `HOST:PORT`, or `:PORT` of this machine alone (docs/gdb.md). One run must be selected
    #[arg(long, value_name = "ADDRESS", value_parser = crate::gdb::parse, conflicts_with = "control")]
    gdb: Option<Address>,
    /// human, jsonl=FILE or junit=FILE, '-' for standard output; repeatable [default: human]
    #[arg(long, value_name = "REPORT")]
    report: Vec<Kind>,
    #[command(flatten)]
    what: What,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let kinds = plan::report_kinds(&arguments.report)?;
    let (subject, mut selection) = arguments.what.select()?;
    selection.repeat = arguments.repeat;
    if selection.is_empty() {
        return Err(Failure::nothing_selected(&plan::why_nothing(&arguments.what)));
    }
    arguments.kept.check()?;
    control::check(arguments)?;
    let listener = gdb::listen(arguments, &selection)?;
    let host = HostKvm::open()?;
    selection.check_host(host.max_vcpus())?;
    let repeat = Repeat::new("run", plan::options(&arguments.what));
    let evidence = arguments.kept.evidence(repeat.clone(), subject.bytes())?;
    let dumps = Arc::new(arguments.kept.dumps(repeat, &host, subject.packed()));
    let requests = Requests::default();
    let interrupted = interrupt::flag_on_signal()?;
    interrupt::ask_on_quit(&requests)?;
    let progress = Progress::new(selection.len());
    let reports = open_reports(&kinds, evidence.as_ref());
    let control = (arguments.control.is_some() || listener.is_some()).then(Control::new);
    let socket = arguments.control.as_deref().zip(control.as_ref());
    let server = socket.map(|(path, control)| control::serve(path, control)).transpose()?;
    let of_gdb = listener.zip(control.as_ref()).map(|(listener, control)| gdb::serve(listener, control, &interrupted));
    let of_gdb = of_gdb.transpose()?.zip(control.clone());
    let session =
        Session { arguments, subject, selection, host, evidence, dumps, requests, interrupted, control, progress };
    let ended = session.run(reports);
    // Whoever is in gets to know, once all is reported.
    drop(server);
    if let Some((gdb, control)) = of_gdb {
        control.close();
        // A thread that panicked has said so.
        let _ = gdb.join();
    }
    ended
}

/// All that a session needs.
struct Session<'a> {
    arguments: &'a Arguments,
    subject: Running,
    selection: Selection,
    host: HostKvm,
    evidence: Option<Arc<Evidence>>,
    dumps: Arc<Dumps>,
    /// Asked by SIGQUIT.
    requests: Requests,
    interrupted: Arc<AtomicBool>,
    /// The door for who looks into runs, where there is one.
    control: Option<Control>,
    progress: Progress,
}

impl Session<'_> {
    fn run(self, mut reports: Reports) -> Result<Exit, Failure> {
        reports.begin(&self.start());
        let mut so_far = Summary { asked: self.selection.len(), ..Summary::default() };
        let execute = |run: &Run| self.execute(run);
        let ended = session::run(&self.selection, self.jobs(), &self.interrupted, &execute, &mut |result| {
            so_far.count(&result);
            self.progress.suspend(|| reports.result(&result));
            self.progress.advance(&so_far);
        });
        self.progress.finish();
        let summary = ended.summary;
        let failure = ended.failure.map(|error| Failure::host(&error));
        let failed = reports.end(&summary);
        failed.iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
        let dumped = kept::tell(&self.dumps);
        failure.map_or_else(|| Ok(exit(&summary, !failed.is_empty() || !dumped)), Err)
    }

    fn execute(&self, run: &Run) -> Result<RunOutcome, ExecuteError> {
        if let Some(evidence) = &self.evidence {
            evidence.run_begins(run);
        }
        let outcome = self.outcome(run)?;
        Ok(self.dumps.write(run, outcome))
    }

    fn outcome(&self, run: &Run) -> Result<RunOutcome, ExecuteError> {
        let keep = self.keep(run);
        let control = self.control.as_ref().map(|control| control.of(run, self.dumps.about(run)));
        let plan = Common { budget: self.arguments.what.budget(), keep, control };
        self.subject.execute(&self.host, run, plan, &self.interrupted)
    }

    /// When the machine of a run is kept: at its end, and on SIGQUIT, which ends nothing.
    fn keep(&self, run: &Run) -> Keep {
        let on_request = plan::on_request(&self.requests, &self.dumps, run);
        Keep { at_end: self.dumps.when().of(run), on_request: Some(on_request) }
    }

    fn start(&self) -> Start {
        Start {
            host: self.host.fingerprint().clone(),
            poll_interval_ns: u64::try_from(execute::POLL.as_nanos()).unwrap_or(u64::MAX),
            scenarios: self.selection.len(),
            seed: self.arguments.what.seed,
            budget_ms: self.arguments.what.budget,
        }
    }

    fn jobs(&self) -> usize {
        if self.control.is_some() {
            return 1;
        }
        let of_host = || thread::available_parallelism().map_or(1, usize::from);
        self.arguments.jobs.map_or_else(of_host, usize::from)
    }
}

/// The worst thing that happened decides.
pub(crate) fn exit(summary: &Summary, report_failed: bool) -> Exit {
    if summary.interrupted {
        Exit::Interrupted
    } else if report_failed {
        Exit::ReportFailed
    } else if summary.unexpected > 0 {
        Exit::Unexpected
    } else {
        Exit::Success
    }
}

pub(crate) fn open_reports(kinds: &[Kind], evidence: Option<&Arc<Evidence>>) -> Reports {
    let mut reports = Reports::default();
    for kind in kinds {
        let report = match kind.open(output::stdout()) {
            Ok(None) => Ok(Box::new(Human::new(output::stdout())) as _),
            Ok(Some(report)) => Ok(report),
            Err(error) => Err(error),
        };
        reports.add(kind.to_string(), report);
    }
    if let Some(evidence) = evidence {
        reports.add("--out".to_owned(), Ok(Box::new(Arc::clone(evidence))));
    }
    reports
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn interrupt_outweighs_reports_and_reports_outweigh_results() {
        let summary = |unexpected, interrupted| Summary { unexpected, interrupted, ..Summary::default() };
        assert_eq!(exit(&summary(1, true), true), Exit::Interrupted);
        assert_eq!(exit(&summary(1, false), true), Exit::ReportFailed);
        assert_eq!(exit(&summary(1, false), false), Exit::Unexpected);
        assert_eq!(exit(&summary(0, false), false), Exit::Success);
    }
}
