//! `stallbench replay`: the way of a trace once more, every step on KVM.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use stallbench_core::HostKvm;
use stallbench_debug::gdb::Address;
use stallbench_explore::StateHash;
use stallbench_runner::replay::Replay;
use stallbench_runner::report::block;
use stallbench_runner::result::RunResult;
use stallbench_runner::story::Story;
use stallbench_runner::trace::words;

use crate::exit::{Exit, Failure};
use crate::timeline::Timeline;
use crate::trace::{Traced, With, failure};
use crate::{debug, gdb, interrupt, output};

#[derive(Debug, Args)]
#[command(
    after_help = "docs/explore.md says what a trace holds, and what is compared; `stallbench debug --trace FILE` looks at each step"
)]
pub(crate) struct Arguments {
    /// The traces, as `stallbench explore` writes them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Go no further than behind this step, and tell where the vCPUs stand then
    #[arg(long, value_name = "STEP")]
    stop_at: Option<usize>,
    /// Let gdb look at the machine behind the last step: `unix:PATH`, `HOST:PORT`, or `:PORT` of this machine alone (docs/gdb.md)
    #[arg(long, value_name = "ADDRESS", value_parser = gdb::parse, conflicts_with = "repeat")]
    gdb: Option<Address>,
    /// Tell what of it matters, a column a vCPU
    #[arg(long, conflicts_with = "stop_at")]
    explain: bool,
    /// Draw that as a picture: a new file, FILE.svg or FILE.html
    #[arg(long, value_name = "FILE", value_parser = Timeline::parse, conflicts_with = "stop_at")]
    timeline: Option<Timeline>,
    /// Go this way so often: each time all states have to be the same
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,
    #[command(flatten)]
    with: With,
}

/// What a trace ends in whose search did not know all states.
const NO_VERDICT: &str = "budget";

/// Goes the ways of all files. One that is none, or differs, keeps nobody from the next.
pub(crate) fn replay(arguments: &Arguments) -> Result<Exit, Failure> {
    if let [file] = &arguments.files[..] {
        return one(arguments, file);
    }
    only_of_one(arguments)?;
    let opened = arguments.files.iter().map(|file| (file, Traced::open(file, &arguments.with)));
    let (mut first, mut ways) = (Exit::Success, Vec::new());
    for (file, traced) in opened {
        match traced {
            Ok(traced) => ways.push((file, traced)),
            Err(failure) => first = first.or(told_of(&failure)),
        }
    }
    if ways.is_empty() {
        return Ok(first);
    }
    let (host, interrupted) = (HostKvm::open()?, interrupt::flag_on_signal()?);
    for (file, traced) in &ways {
        match follow(arguments, file, traced, &host, &interrupted) {
            Ok(Exit::Interrupted) => return Ok(Exit::Interrupted),
            Ok(exit) => first = first.or(exit),
            Err(failure) => first = first.or(told_of(&failure)),
        }
    }
    Ok(first)
}

/// What cannot be asked for of several traces.
fn only_of_one(arguments: &Arguments) -> Result<(), Failure> {
    let asked = [
        ("--stop-at", arguments.stop_at.is_some()),
        ("--gdb", arguments.gdb.is_some()),
        ("--timeline", arguments.timeline.is_some()),
    ];
    match asked.into_iter().find(|(_, is_asked)| *is_asked) {
        Some((option, _)) => {
            let files = arguments.files.len();
            Err(Failure::usage(format!("{option} is about one trace, and there are {files}: give it one of them")))
        }
        None => Ok(()),
    }
}

fn told_of(failure: &Failure) -> Exit {
    output::diagnostic(&format!("error: {failure}"));
    failure.exit
}

fn one(arguments: &Arguments, file: &Path) -> Result<Exit, Failure> {
    let traced = Traced::open(file, &arguments.with)?;
    arguments.timeline.as_ref().map_or(Ok(()), |timeline| timeline.check(1))?;
    let most = arguments.stop_at.unwrap_or(usize::MAX);
    if most != usize::MAX && most > traced.trace.steps.len() {
        let steps = traced.trace.steps.len();
        return Err(Failure::usage(format!("--stop-at {most}: {} has {steps} steps", file.display())));
    }
    if let Some(address) = &arguments.gdb {
        return gdb::look_at(address, &mut debug::stepping(traced, file, most)?);
    }
    let (host, interrupted) = (HostKvm::open()?, interrupt::flag_on_signal()?);
    follow(arguments, file, &traced, &host, &interrupted)
}

fn follow(
    arguments: &Arguments,
    file: &Path,
    traced: &Traced,
    host: &HostKvm,
    interrupted: &AtomicBool,
) -> Result<Exit, Failure> {
    let most = arguments.stop_at.unwrap_or(usize::MAX);
    let mut replay = once(host, traced, file, most)?;
    let chain = replay.chain();
    for number in 2..=arguments.repeat {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(Exit::Interrupted);
        }
        same(chain, once(host, traced, file, most)?.chain(), number, file)?;
    }
    output::print(&told(traced, &replay, arguments))?;
    if arguments.stop_at.is_some() {
        return output::print(&standing(&replay));
    }
    if let Some(step) = traced.round_from() {
        return round(&replay, step, file);
    }
    let outcome = replay.verdict(host, traced.program()?, interrupted).map_err(|error| failure(&error, file))?;
    let now = words(&outcome.verdict);
    let story = Story::of(traced.run.name.to_string(), traced.run.vcpus, replay.events(), &outcome);
    let (told, text) = (arguments.explain.then(|| story.text()), arguments.timeline.as_ref());
    text.map_or(Ok(()), |timeline| timeline.write(&story))?;
    let result = RunResult::of_explored(traced.run.clone(), &traced.trace.of.model, outcome);
    output::print(&block(&result, false))?;
    output::print(&told.unwrap_or_default())?;
    let recorded = &traced.trace.verdict;
    if *recorded == now {
        return Ok(Exit::Success);
    }
    if recorded == NO_VERDICT {
        let why = "the search came to no verdict; this is what a free machine comes to from the end of its way";
        return output::print(&format!("  {why}\n"));
    }
    Err(Failure::unexpected(format!("{}: the trace ends in '{recorded}', now it is '{now}'", file.display())))
}

/// Goes the way; a difference is a failure.
pub(crate) fn once<'p>(host: &HostKvm, traced: &'p Traced, file: &Path, most: usize) -> Result<Replay<'p>, Failure> {
    let replay = Replay::new(host, traced.program()?, &traced.plan(), &traced.trace, most);
    let replay = replay.map_err(|error| failure(&error, file))?;
    match replay.difference() {
        Some(difference) => Err(Failure::unexpected(format!("{}: {difference}", file.display()))),
        None => Ok(replay),
    }
}

fn same(first: StateHash, now: StateHash, number: u32, file: &Path) -> Result<(), Failure> {
    if first == now {
        return Ok(());
    }
    let file = file.display();
    Err(Failure::unexpected(format!("{file}: replay {number} came through states {now}, the first through {first}")))
}

fn told(traced: &Traced, replay: &Replay<'_>, arguments: &Arguments) -> String {
    let (steps, all) = (replay.events().len(), traced.trace.steps.len());
    let of = if steps == all { String::new() } else { format!(" of {all}") };
    let times = if arguments.repeat == 1 { String::new() } else { format!(", {} times", arguments.repeat) };
    let (name, model) = (&traced.run.name, &traced.trace.of.model);
    let rebased = "of another payload: places are those of symbols, states were not compared";
    let how = if replay.is_rebased() { rebased } else { "each as in the trace" };
    format!("{name} ({model}): {steps}{of} steps{times}, {how}; states {}\n", replay.chain())
}

/// No free machine shows a round, for another schedule leads out of it.
fn round(replay: &Replay<'_>, step: usize, file: &Path) -> Result<Exit, Failure> {
    let last = replay.events().len();
    if replay.is_back(step) {
        return output::print(&format!(
            "  goes round: behind step {last} the machine is as it was behind step {step}\n"
        ));
    }
    let file = file.display();
    Err(Failure::unexpected(format!("{file}: behind step {last} the machine is not as it was behind step {step}")))
}

fn standing(replay: &Replay<'_>) -> String {
    let places = replay.standing(replay.events().len());
    places.iter().enumerate().map(|(vcpu, place)| format!("  vcpu{vcpu:<3} at {place}\n")).collect()
}
