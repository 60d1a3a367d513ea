//! `stallbench debug`: commands over a machine, from a prompt, a pipe or the command line.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use stallbench_debug::gdb::Address;
use stallbench_debug::tui::{self, Ended};
use stallbench_debug::{Answer, Follower, Session, printable, printable_json, prompt};
use stallbench_state::dump::Dump;

use crate::exit::{Exit, Failure};
use crate::run::What;
use crate::trace::{Traced, With};
use crate::{gdb, guest, interrupt, output};

mod attached;
mod pipe;
mod scenario;
mod trace;

pub(crate) use attached::attach;
pub(crate) use trace::stepping;

/// Most bytes of a file that are read: guests have little memory, and pages of zeros take no room.
const MOST_BYTES: u64 = 1 << 30;

/// Arguments that only a run of one's own takes.
const OF_RUNS: [&str; 16] = [
    "names",
    "payload",
    "case",
    "vcpus",
    "set",
    "layout",
    "seed",
    "order",
    "budget",
    "memory",
    "aps",
    "end",
    "expect",
    "ghost",
    "nmi",
    "suspect_every",
];

#[derive(Debug, Args)]
#[command(after_help = "docs/debugger.md tells of the commands, by a walk through a deadlock; `-c help` lists them")]
pub(crate) struct Arguments {
    /// The dump to look at, in the place of a run
    #[arg(long, value_name = "FILE", conflicts_with_all = OF_RUNS)]
    dump: Option<PathBuf>,
    /// The trace to look at, step by step, in the place of a run: `stallbench explore` writes it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dump", "attach"], conflicts_with_all = OF_RUNS)]
    trace: Option<PathBuf>,
    /// The run to look into, while it lasts: the socket of its --control, or a directory with a socket `control` in it. Leaving lets the run go on
    #[arg(long, value_name = "RUN", conflicts_with = "dump", conflicts_with_all = OF_RUNS)]
    attach: Option<PathBuf>,
    /// Follow these commands, `;` between them, and end; without, they are read from the terminal or a pipe
    #[arg(short, long = "command", value_name = "COMMANDS")]
    command: Option<String>,
    /// One JSON object a command, each on a line
    #[arg(long)]
    json: bool,
    /// Show it on the whole terminal, again and again: vCPUs, waits, IPIs and exits a second
    #[arg(long, conflicts_with_all = ["command", "json"])]
    tui: bool,
    /// Let gdb look at it: `unix:PATH`, `HOST:PORT`, or `:PORT` of this machine alone (docs/gdb.md)
    #[arg(long, value_name = "ADDRESS", value_parser = gdb::parse, conflicts_with_all = ["command", "json", "tui", "attach"])]
    gdb: Option<Address>,
    #[command(flatten)]
    what: What,
}

pub(crate) fn debug(arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.tui && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Failure::usage("--tui: standard input and output are not a terminal"));
    }
    if let Some(file) = &arguments.trace {
        let mut session = stepping(Traced::open(file, &With::default())?, file, usize::MAX)?;
        return match &arguments.gdb {
            Some(address) => gdb::look_at(address, &mut session),
            None => talk(session, arguments),
        };
    }
    match (&arguments.dump, &arguments.attach) {
        (Some(dump), _) if let Some(address) = &arguments.gdb => {
            gdb::look_at(address, &mut Session::new(Box::new(open(dump)?)))
        }
        (Some(dump), _) => talk(Session::new(Box::new(open(dump)?)), arguments),
        (None, Some(run)) => talk(attach(run)?, arguments),
        (None, None) if arguments.what.is_empty() => {
            Err(Failure::usage("a scenario, --payload, --dump, --trace or --attach is missing"))
        }
        (None, None) if let Some(address) = &arguments.gdb => {
            let listener = gdb::listen(address)?;
            scenario::look_into(&arguments.what, |run| run.with_gdb(&listener))
        }
        (None, None) => scenario::look_into(&arguments.what, |run| talk(run, arguments)),
    }
}

/// Follows what comes from wherever commands are to come from.
fn talk(mut follower: impl Follower, arguments: &Arguments) -> Result<Exit, Failure> {
    let stdin = io::stdin();
    match &arguments.command {
        None if arguments.tui => on_screen(&mut follower),
        Some(line) => Ok(worst(Exit::Success, follow(&mut follower, line, arguments.json)?)),
        None if stdin.is_terminal() && !arguments.json => at_prompt(follower),
        None => from_pipe(&mut follower, stdin.lock(), arguments.json),
    }
}

/// Shows it until somebody leaves.
fn on_screen(follower: &mut impl Follower) -> Result<Exit, Failure> {
    let terminate = interrupt::flag_on_termination()?;
    match tui::show(follower, &terminate) {
        Ok(Ended::Left) => Ok(Exit::Success),
        Ok(Ended::Terminated) => Ok(Exit::Interrupted),
        Err(error) => Err(Failure::new(Exit::Usage, &error).context("--tui: the terminal")),
    }
}

fn open(path: &Path) -> Result<Dump, Failure> {
    let in_file = |failure: Failure| failure.context(format_args!("--dump {}", path.display()));
    let bytes = guest::read_at_most(MOST_BYTES, "a dump", path).map_err(in_file)?;
    Dump::read(&bytes).map_err(|error| in_file(Failure::new(Exit::Usage, &error).attempted()))
}

/// Greets with what can be known at a glance, and follows what is typed.
fn at_prompt(mut follower: impl Follower) -> Result<Exit, Failure> {
    follower.set_ask(Box::new(prompt::ask));
    follow(&mut follower, "about; vcpus", false)?;
    let mut failure = None;
    let each = |follower: &mut _, line: &str| match follow(follower, line, false) {
        Ok(_) => Ok(()),
        Err(broken) => {
            failure = Some(broken);
            Err(io::ErrorKind::BrokenPipe.into())
        }
    };
    match (prompt::prompt(follower, each), failure) {
        (Ok(()), _) => Ok(Exit::Success),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(Failure::new(Exit::Usage, &error).context("the terminal")),
    }
}

fn from_pipe(follower: &mut impl Follower, mut input: impl BufRead, json: bool) -> Result<Exit, Failure> {
    let mut exit = Exit::Success;
    while !follower.is_over() {
        let line =
            pipe::next(&mut input).map_err(|error| Failure::new(Exit::Usage, &error).context("standard input"))?;
        let one = match line {
            None => break,
            Some(Ok(line)) => follow(follower, &line, json)?,
            Some(Err(wrong)) => refuse("", &format!("standard input: {wrong}"), json)?,
        };
        exit = worst(exit, one);
    }
    Ok(exit)
}

fn worst(one: Exit, other: Exit) -> Exit {
    if one == Exit::Success { other } else { one }
}

/// Follows the commands of a line and prints what each comes to.
pub(crate) fn follow(follower: &mut impl Follower, line: &str, json: bool) -> Result<Exit, Failure> {
    let (mut exit, mut failure) = (Exit::Success, None);
    let mut tell = |command: &str, answer: Result<Answer, String>| match print(command, answer, json) {
        Ok(one) => {
            exit = worst(exit, one);
            ControlFlow::Continue(())
        }
        Err(broken) => {
            failure = Some(broken);
            ControlFlow::Break(())
        }
    };
    follower.follow(line, &mut tell).map_err(|lost| Failure::usage(lost.to_string()))?;
    failure.map_or(Ok(exit), Err)
}

fn print(command: &str, answer: Result<Answer, String>, json: bool) -> Result<Exit, Failure> {
    match (answer, json) {
        (Ok(answer), true) => print_json(&json!({"command": command, "data": answer.data})),
        (Ok(answer), false) => output::print(&answer.text),
        (Err(error), _) => refuse(command, &error, json),
    }
}

fn print_json(value: &Value) -> Result<Exit, Failure> {
    output::print(&format!("{}\n", printable_json(value)))
}

fn refuse(command: &str, error: &str, json: bool) -> Result<Exit, Failure> {
    if json {
        print_json(&json!({"command": command, "error": error}))?;
    } else {
        // What was asked for before it comes first, wherever the two go.
        let _ = io::stdout().flush();
        output::diagnostic(&format!("error: {}", printable(error)));
    }
    Ok(Exit::Usage)
}
