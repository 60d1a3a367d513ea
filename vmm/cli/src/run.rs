//! `stallbench run`: real guests on real KVM, in the order asked for, on several threads.

mod control;
mod plain;
mod plan;
mod progress;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use clap::Args;
use stallbench_core::HostKvm;
use stallbench_runner::control::Control;
use stallbench_runner::dump::{Dumps, Keep, Moment, OnRequest, Requests, When};
use stallbench_runner::evidence::Evidence;
use stallbench_runner::execute::plain::PlainPlan;
use stallbench_runner::execute::{self, ExecuteError, RunPlan};
use stallbench_runner::oracle::order::Mode;
use stallbench_runner::outcome::RunOutcome;
use stallbench_runner::plain::PlainOptions;
use stallbench_runner::report::{Human, Kind, Reports, Start};
use stallbench_runner::result::Summary;
use stallbench_runner::scenario::{Run, Selection};
use stallbench_runner::session;
use stallbench_state::dump::Packed;
use stallbench_state::program::PlainProgram;

use crate::exit::{Exit, Failure};
use crate::guest::{Guest, Subject};
use crate::{interrupt, output};
pub(crate) use plan::run_plan;
use progress::Progress;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Scenarios, patterns, subjects, groups, and files or directories of scenarios; without any, the default catalogue
    #[arg(value_name = "SCENARIO|FILE|DIR")]
    names: Vec<String>,
    /// Run a guest of your own: an image that keeps the contract, one case or all that it has, or any other static ELF64 executable (a plain guest, docs/plain-guests.md)
    #[arg(long, value_name = "FILE.elf")]
    payload: Option<PathBuf>,
    /// Which case of --payload
    #[arg(long, value_name = "NAME", requires = "payload", conflicts_with = "names")]
    case: Option<String>,
    /// Numbers of vCPUs. Of a scenario: any that its expectations cover, instead of those declared; of a subject, a group or everything: only the declared cells that have so many; of a plain guest: any [default: 1]
    #[arg(long, value_name = "N[,N]", value_delimiter = ',')]
    vcpus: Vec<usize>,
    /// Set a knob; what is expected stays as declared
    #[arg(long, value_name = "KNOB=VALUE")]
    set: Vec<String>,
    /// The memory layout of a machine, in place of the one that a scenario programs: docs/layouts.md, or the text of its /proc/mtrr
    #[arg(long, value_name = "FILE")]
    layout: Option<PathBuf>,
    /// How often each cell runs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,
    /// Guests at a time [default: one a host CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Seed of what is random in a guest; each repetition counts it up
    #[arg(long, value_name = "S", default_value = "0", value_parser = parse_seed)]
    seed: u64,
    /// Look at the order in which MTRRs are programmed: off, filter (each access stops its vCPU) or step (the whole procedure, step by step) [default: as the scenario declares]
    #[arg(long, value_name = "HOW", value_parser = str::parse::<Mode>)]
    order: Option<Mode>,
    /// What each run may take, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    budget: u64,
    /// A new directory for the evidence of each run
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write a dump of the machine at the end of a run, for `stallbench debug --dump` and gdb: never, unexpected (of each run that is not as expected) or always; it lies in the directory of the run, without --out in the current directory
    #[arg(long, value_name = "WHEN", default_value = "unexpected", value_parser = str::parse::<When>)]
    dump: When,
    /// Let `stallbench debug --attach PATH` look into the runs while they last: a new socket there, for this user alone. Means --jobs 1
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// human, jsonl=FILE or junit=FILE, '-' for standard output; repeatable [default: human]
    #[arg(long, value_name = "REPORT")]
    report: Vec<Kind>,
    #[command(flatten)]
    plain: plain::Flags,
}

fn parse_seed(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected a number from 0 to 2^64-1, in decimal or with 0x".to_owned())
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let kinds = plan::report_kinds(&arguments.report)?;
    let (subject, selection) = select(arguments)?;
    if selection.is_empty() {
        return Err(Failure::nothing_selected(&plan::why_nothing(arguments)));
    }
    plan::check_out(arguments)?;
    control::check(arguments)?;
    let host = HostKvm::open()?;
    selection.check_host(host.max_vcpus())?;
    let evidence = plan::evidence(arguments, subject.bytes())?;
    let dumps = Arc::new(plan::dumps(arguments, &host, subject.packed()));
    let requests = Requests::default();
    let interrupted = interrupt::flag_on_signal()?;
    interrupt::ask_on_quit(&requests)?;
    let progress = Progress::new(selection.len());
    let reports = open_reports(&kinds, evidence.as_ref());
    let control = arguments.control.as_ref().map(|_| Control::new());
    let socket = arguments.control.as_deref().zip(control.as_ref());
    let server = socket.map(|(path, control)| control::serve(path, control)).transpose()?;
    let session =
        Session { arguments, subject, selection, host, evidence, dumps, requests, interrupted, control, progress };
    let ended = session.run(reports);
    // Whoever is in gets to know, once all is reported.
    drop(server);
    ended
}

/// What is run, and how often.
fn select(arguments: &Arguments) -> Result<(Running, Selection), Failure> {
    match Subject::open(arguments.payload.as_deref())? {
        Subject::Image(guest) => {
            arguments.plain.refuse(arguments.payload.as_deref())?;
            let selection = plan::selection(arguments, &guest)?;
            Ok((Running::Image(guest), selection))
        }
        Subject::Plain(program) => {
            let options = arguments.plain.options();
            let selection = plain::selection(arguments, &program, &options)?;
            Ok((Running::Plain(program, Arc::new(options)), selection))
        }
    }
}

/// What each run executes.
enum Running {
    Image(Guest),
    Plain(Box<PlainProgram>, Arc<PlainOptions>),
}

impl Running {
    /// The ELF file.
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Image(guest) => guest.program().bytes(),
            Self::Plain(program, _) => program.bytes(),
        }
    }

    /// What makes of it what dumps have in them.
    fn packed(&self) -> Box<dyn FnOnce() -> Packed + Send> {
        match self {
            Self::Image(Guest::BuiltIn(_)) => Box::new(stallbench_image::packed),
            file => {
                let bytes = file.bytes().to_owned();
                Box::new(move || Packed::of(&bytes))
            }
        }
    }
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
        self.tell_dumps_left_out();
        let undumped = self.dumps.failures();
        let errors = failed.iter().map(ToString::to_string).chain(undumped.iter().map(ToString::to_string));
        let errors: Vec<_> = errors.collect();
        errors.iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
        failure.map_or_else(|| Ok(exit(&summary, !errors.is_empty())), Err)
    }

    fn tell_dumps_left_out(&self) {
        let left_out = self.dumps.left_out();
        if left_out > 0 {
            output::diagnostic(&format!("{left_out} more unexpected runs left no dump here; --out DIR keeps all"));
        }
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
        let budget = Duration::from_millis(self.arguments.budget);
        match &self.subject {
            Running::Image(guest) => {
                let plan = RunPlan { keep, control, ..run_plan(run, budget) };
                execute::execute(&self.host, guest.program(), &plan, &self.interrupted)
            }
            Running::Plain(program, options) => {
                let (options, alone) = (Arc::clone(options), Duration::ZERO);
                let plan = PlainPlan { vcpus: run.vcpus, options, alone, budget, keep, control };
                execute::plain::execute(&self.host, program, &plan, &self.interrupted)
            }
        }
    }

    /// When the machine of a run is kept: at its end, and on SIGQUIT, which ends nothing.
    fn keep(&self, run: &Run) -> Keep {
        let (dumps, of) = (Arc::clone(&self.dumps), run.clone());
        let take = move |moment: &Moment| {
            if let Some(path) = dumps.write_running(&of, moment) {
                output::diagnostic(&format!("dump: {}", path.display()));
            }
        };
        let on_request = OnRequest { requests: self.requests.clone(), take: Arc::new(take) };
        Keep { at_end: self.dumps.when().of(run), on_request: Some(on_request) }
    }

    fn start(&self) -> Start {
        Start {
            host: self.host.fingerprint().clone(),
            poll_interval_ns: u64::try_from(execute::POLL.as_nanos()).unwrap_or(u64::MAX),
            scenarios: self.selection.len(),
            seed: self.arguments.seed,
            budget_ms: self.arguments.budget,
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
fn exit(summary: &Summary, report_failed: bool) -> Exit {
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

fn open_reports(kinds: &[Kind], evidence: Option<&Arc<Evidence>>) -> Reports {
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

    #[test]
    fn seeds_are_decimal_or_hexadecimal() {
        assert_eq!((parse_seed("12"), parse_seed("0xff")), (Ok(12), Ok(255)));
        assert!(parse_seed("x").is_err() && parse_seed("-1").is_err());
    }
}
