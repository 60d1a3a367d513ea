//! `stallbench explore`: every schedule of a scenario, and every arrival of an interrupt.

mod model;
mod strategy;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use clap::{Args, ValueEnum};
use stallbench_core::HostKvm;
use stallbench_explore::{Icr, Irq, Model, Search, Settings};
use stallbench_runner::dump::{Dumps, Keep};
use stallbench_runner::evidence::Evidence;
use stallbench_runner::execute::{self, RunPlan};
use stallbench_runner::explore::checkpoint::{Checkpoints, Identity, Saved};
use stallbench_runner::explore::{self, Cut, ExploreRunError, Exploring, Pace};
use stallbench_runner::outcome::{GoOn, RunOutcome};
use stallbench_runner::repeat::Repeat;
use stallbench_runner::report::{Kind, Reports, Start};
use stallbench_runner::scenario::{Run, Selection};
use stallbench_runner::session::{self, SessionError};
use stallbench_runner::story::Story;
use stallbench_runner::trace::{Place, Traces};
use stallbench_state::program::Program;

use crate::exit::{Exit, Failure};
use crate::run::{
    Kept, OfSearches, Running, What, exit, open_reports, options, report_kinds, tell_dumps, trace_options,
};
use crate::timeline::{Timeline, check_new};
use crate::{interrupt, output};
use model::MemoryModel;
use strategy::Schedules;

/// States that can be asked for.
const MOST_STATES: u32 = 100_000_000;
/// Bytes of a MiB.
const MIB: usize = 1 << 20;
/// Memory that can be, in MiB.
const MOST_MEMORY: u32 = 1 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "docs/explore.md says what is explored, and what a complete search shows",
    mut_arg("names", |names| names.help(
        "Scenarios, patterns, subjects, groups, and files or directories of scenarios; what --declared has, without any"
    ))
)]
pub(crate) struct Arguments {
    /// States of the machine at most; where there are more, the verdict is budget
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_STATES)))]
    max_states: u32,
    /// Memory that they take at most, in MiB; where they take more, the verdict is budget
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MEMORY)))]
    max_memory: u32,
    /// Where a search that is interrupted or comes to its limits is kept [default: a file in the directory of its run, without --out in the current directory]
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Go on from a checkpoint; one run must be selected, the same as there
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Guests at a time [default: one a host CPU, fewer with --workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Threads that ask KVM what vCPUs do, for each search: what is found is the same with any number. Most of a search is what KVM takes, so
    /// where CPUs are idle two are faster than one; --jobs uses them for other runs. Beside --max-memory each takes 256 MiB at most, and all
    /// of them as much again
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// human, jsonl=FILE or junit=FILE, '-' for standard output; repeatable [default: human]
    #[arg(long, value_name = "REPORT")]
    report: Vec<Kind>,
    /// Only what scenarios declare what exploring it comes to ([[scenario.explore]], docs/adding-a-case.md), all of it where nothing is named
    #[arg(long, conflicts_with = "case")]
    declared: bool,
    /// Write the schedule to the verdict as a trace, for `stallbench replay`: a new file. One scenario must be selected [default: with --out in the directory of each; of one that is not as expected stallbench-NAME.trace in the current directory]
    #[arg(long, value_name = "FILE")]
    trace_out: Option<PathBuf>,
    /// Tell what of the schedule matters, a column a vCPU: the steps that happen before those who wait come to wait, and by which vCPUs meet
    #[arg(long)]
    explain: bool,
    /// Draw that as a picture: a new file, FILE.svg or FILE.html. One scenario must be selected
    #[arg(long, value_name = "FILE", value_parser = Timeline::parse)]
    timeline: Option<Timeline>,
    #[command(flatten)]
    model: MemoryModel,
    /// Where interrupts and NMIs come: at accesses to what vCPUs share, which is all that matters as long as no handler meets private memory of
    /// what it interrupts (that is checked), or at every instruction
    #[arg(long, value_enum, default_value_t = Places::Visible)]
    irq: Places,
    #[command(flatten)]
    schedules: Schedules,
    #[command(flatten)]
    kept: Kept,
    #[command(flatten)]
    what: What,
}

/// Where interrupts come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Places {
    Visible,
    EveryInsn,
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
    arguments.schedules.check(arguments.resume.is_some() || arguments.checkpoint.is_some())?;
    if arguments.workers > 1 && !arguments.schedules.is_exhaustive() {
        return Err(Failure::usage("--workers: one walk comes after the other; leave out --strategy"));
    }
    let settings = arguments.settings()?;
    let repeat = arguments.repeat(&settings);
    let kinds = report_kinds(&arguments.report)?;
    let declared = arguments.declared.then(|| settings.to_string());
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
    let saved = arguments.saved(&selection, guest.program(), &settings)?;
    arguments.check_trace_out(selection.len())?;
    arguments.timeline.as_ref().map_or(Ok(()), |timeline| timeline.check(selection.len()))?;
    let host = HostKvm::open()?;
    selection.check_host(host.max_vcpus())?;
    let evidence = arguments.kept.evidence(repeat.clone(), subject.bytes())?;
    let dumps = arguments.kept.dumps(repeat, &host, subject.packed());
    let traces = Traces::new(arguments.place_of_traces(), subject.bytes(), trace_options(what));
    let interrupted = interrupt::flag_on_signal()?;
    let progress = OfSearches::new();
    let checkpoints = arguments.checkpoints();
    let program = guest.program();
    let session = Session {
        arguments,
        program,
        host: &host,
        settings,
        evidence,
        dumps,
        saved,
        checkpoints,
        traces,
        undrawn: Mutex::default(),
        interrupted,
        progress,
    };
    session.run(&selection, open_reports(&kinds, session.evidence.as_ref()))
}

impl Arguments {
    fn settings(&self) -> Result<Settings, Failure> {
        let model = self.model.model()?;
        let irq = match self.irq {
            Places::Visible => Irq::Visible,
            Places::EveryInsn if model == Model::Sc => Irq::EveryInsn,
            Places::EveryInsn => return Err(Failure::usage("--irq every-insn: under --model sc alone")),
        };
        if matches!(model, Model::Tso { icr: Icr::Early, .. }) && !self.schedules.is_exhaustive() {
            return Err(Failure::usage(
                "--icr early: what is written later is known to a search of all schedules alone; leave out --strategy",
            ));
        }
        Ok(Settings { model, irq, ..Settings::default() })
    }

    /// How one of these searches is asked for again.
    fn repeat(&self, settings: &Settings) -> Repeat {
        self.repeat_with(settings, self.max_states, self.max_memory, "")
    }

    fn repeat_with(&self, settings: &Settings, max_states: u32, max_memory: u32, more: &str) -> Repeat {
        let schedules = self.schedules.options();
        let (model, options) = (MemoryModel::options(settings.model), options(&self.what));
        let irq = if settings.irq == Irq::EveryInsn { " --irq every-insn" } else { "" };
        let limits = format!(" --max-states {max_states} --max-memory {max_memory}");
        Repeat::new("explore", format!("{limits}{model}{irq}{schedules}{more}{options}"))
    }

    /// The command that goes on from a checkpoint, with the limit raised to which the search came: to twice what it knows already.
    fn go_on(&self, settings: &Settings, run: &Run, search: &Search<'_>, cut: Cut, checkpoint: PathBuf) -> GoOn {
        let (mut max_states, mut max_memory) = (self.max_states, self.max_memory);
        let twice = |limit: u32, known: usize| limit.max(known.try_into().unwrap_or(u32::MAX)).saturating_mul(2);
        match cut {
            Cut::Interrupted => {}
            Cut::States => max_states = twice(max_states, search.counts().states).min(MOST_STATES),
            Cut::Memory => max_memory = twice(max_memory, search.bytes() / MIB).min(MOST_MEMORY),
        }
        let resume = format!(" --resume '{}'", checkpoint.display());
        let command = self.repeat_with(settings, max_states, max_memory, &resume).command(run);
        GoOn { checkpoint, command }
    }

    /// The checkpoint to go on from, if there is one.
    fn saved(&self, selection: &Selection, program: &Program, settings: &Settings) -> Result<Option<Saved>, Failure> {
        let flag = if self.resume.is_some() { "--resume" } else { "--checkpoint" };
        if (self.resume.is_some() || self.checkpoint.is_some()) && selection.len() != 1 {
            return Err(Failure::usage(format!("{flag}: one run must be selected, not {}", selection.len())));
        }
        if let Some(file) = self.checkpoint.as_ref().filter(|file| self.resume.as_ref() != Some(file) && file.exists())
        {
            return Err(Failure::usage(format!("--checkpoint: {} is there already", file.display())));
        }
        let (Some(path), Some(run)) = (&self.resume, selection.get(0)) else { return Ok(None) };
        let identity = Identity::of(&run.name, program, &RunPlan::of(&run, self.what.budget()), settings);
        let saved = Saved::read(path, &identity);
        saved.map(Some).map_err(|error| Failure::usage(format!("--resume: {error}")))
    }

    fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.checkpoint.clone(), self.resume.clone(), self.kept.out().map(Path::to_owned))
    }

    /// Refuses a file that is there already, or that several runs would write.
    fn check_trace_out(&self, runs: usize) -> Result<(), Failure> {
        let Some(file) = &self.trace_out else { return Ok(()) };
        check_new(file, "--trace-out", runs)
    }

    fn place_of_traces(&self) -> Place {
        match (&self.trace_out, self.kept.out()) {
            (Some(file), _) => Place::File(file.clone()),
            (None, Some(out)) => Place::Out(out.to_owned()),
            (None, None) => Place::Here,
        }
    }

    fn jobs(&self) -> usize {
        let of_host = || thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(|| of_host().div_ceil(self.workers.into()), usize::from)
    }
}

/// Why a session ended early. A checkpoint from which a search cannot go on is part of the request.
fn failure(error: &SessionError<ExploreRunError>) -> Failure {
    match error {
        SessionError::Execute(ExploreRunError::Restore(error)) => Failure::new(Exit::Usage, error),
        other => Failure::host(other),
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
    saved: Option<Saved>,
    checkpoints: Checkpoints,
    traces: Traces,
    /// Why the picture could not be drawn.
    undrawn: Mutex<Vec<String>>,
    interrupted: Arc<AtomicBool>,
    progress: OfSearches,
}

impl Session<'_> {
    fn run(&self, selection: &Selection, mut reports: Reports) -> Result<Exit, Failure> {
        reports.begin(&self.start(selection));
        let execute = |run: &Run| self.explore(run);
        let ended = session::run(selection, self.arguments.jobs(), &self.interrupted, &execute, &mut |result| {
            self.progress.suspend(|| reports.result(&result));
        });
        self.progress.finish();
        let failure = ended.failure.map(|error| failure(&error).attempted());
        let failed = reports.end(&ended.summary);
        failed.iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
        let dumped = tell_dumps(&self.dumps);
        let (not_kept, untraced) = (self.checkpoints.failures(), self.traces.failures());
        let undrawn = std::mem::take(&mut *self.undrawn.lock().unwrap_or_else(PoisonError::into_inner));
        undrawn.iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
        let unwritten = not_kept.iter().map(ToString::to_string).chain(untraced.iter().map(ToString::to_string));
        unwritten.for_each(|error| output::diagnostic(&format!("error: {error}")));
        let is_written =
            failed.is_empty() && dumped && not_kept.is_empty() && untraced.is_empty() && undrawn.is_empty();
        failure.map_or_else(|| Ok(exit(&ended.summary, !is_written)), Err)
    }

    fn explore(&self, run: &Run) -> Result<RunOutcome, ExploreRunError> {
        if let Some(evidence) = &self.evidence {
            evidence.run_begins(run);
        }
        let what = &self.arguments.what;
        let keep = Keep { at_end: self.dumps.when().of(run), on_request: None };
        let plan = RunPlan { keep, ..RunPlan::of(run, what.budget()) };
        let told = |pace: &Pace| self.progress.states(&run.name, pace);
        let keep_search = |search: &Search<'_>, cut| self.keep(run, &plan, search, cut);
        let exploring = Exploring {
            settings: &self.settings,
            workers: self.arguments.workers.into(),
            strategy: self.arguments.schedules.strategy(run.seed),
            most_states: self.arguments.max_states as usize,
            most_bytes: self.arguments.max_memory as usize * MIB,
            resume: self.saved.as_ref(),
            checkpoint: &keep_search,
            interrupt: &self.interrupted,
            progress: &told,
        };
        let mut outcome = explore::explore(self.host, self.program, &plan, exploring)?;
        self.draw(run, &outcome);
        outcome.explored.iter_mut().for_each(|explored| explored.explain = self.arguments.explain);
        Ok(self.dumps.write(run, self.traces.write(run, outcome)))
    }

    /// Draws the way to the verdict, where that is asked for; what went wrong is told at the end.
    fn draw(&self, run: &Run, outcome: &RunOutcome) {
        let recorded = outcome.explored.as_ref().and_then(|explored| explored.recorded.as_ref());
        if let (Some(timeline), Some(recorded)) = (&self.arguments.timeline, recorded) {
            let story = Story::of(run.name.to_string(), run.vcpus, &recorded.events, outcome);
            let drawn = timeline.write(&story).map_err(|failure| failure.to_string());
            drawn.unwrap_or_else(|error| self.undrawn.lock().unwrap_or_else(PoisonError::into_inner).push(error));
        }
    }

    /// Leaves a checkpoint of a search.
    fn keep(&self, run: &Run, plan: &RunPlan, search: &Search<'_>, cut: Cut) -> Option<GoOn> {
        let identity = Identity::of(&run.name, self.program, plan, &self.settings);
        let go_on =
            self.arguments.go_on(&self.settings, run, search, cut, self.checkpoints.write(run, &identity, search)?);
        if cut == Cut::Interrupted {
            // What is interrupted is not reported.
            self.progress.suspend(|| output::diagnostic(&format!("go on: {}", go_on.command)));
        }
        Some(go_on)
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
