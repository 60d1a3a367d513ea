//! The `stallbench` binary: arguments in, exit code out. One file a command; everything else is in the library crates.

mod bench;
mod debug;
mod dump;
mod exit;
mod explore;
mod gdb;
mod guest;
mod host;
mod interrupt;
mod list;
mod output;
mod replay;
mod run;
mod timeline;
mod trace;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{Exit, Failure};

/// A test bench for processors that wait for each other for ever.
#[derive(Debug, Parser)]
#[command(name = "stallbench", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "Exit codes: 0 all as expected · 2 the request is wrong · 4 nothing selected · 96 host not usable · \
100 something was not as expected · 101 a bug of stallbench · 110 a report could not be written · 130 interrupted";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios: real guests on real KVM
    Run(Box<run::Arguments>),
    /// Try every schedule of a scenario, and every arrival of an interrupt
    Explore(Box<explore::Arguments>),
    /// Go the way of a trace once more, every step on KVM, and compare
    Replay(replay::Arguments),
    /// List patterns, scenarios, cases and knobs; tell the story of one
    List(list::Arguments),
    /// Check the certificate of a proved stall, on a fresh machine and by another way than it was made
    Verify(verify::Arguments),
    /// Look at a machine that was dumped or that runs: every vCPU, decoded, in the words of the protocol
    Debug(Box<debug::Arguments>),
    /// Write a dump of a machine that runs, without ending its run
    Dump(dump::Arguments),
    /// What this KVM host is and can do, and what each missing thing costs
    Host(host::Arguments),
    /// The cost of this host's primitives, and of stallbench on top of them
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    match interrupt::survive_file_limit().and_then(|()| follow(command)) {
        Ok(exit) => exit.into(),
        Err(failure) => report(&failure),
    }
}

fn follow(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Explore(arguments) => explore::explore(&arguments),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::List(arguments) => list::list(&arguments),
        Command::Verify(arguments) => verify::verify(&arguments),
        Command::Debug(arguments) => debug::debug(&arguments),
        Command::Dump(arguments) => dump::dump(&arguments),
        Command::Host(arguments) => host::host(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
    }
}

fn report(failure: &Failure) -> ExitCode {
    output::diagnostic(&format!("error: {failure}"));
    failure.exit.into()
}

#[cfg(test)]
mod test {
    use clap::CommandFactory;

    #[test]
    fn arguments_are_well_formed() {
        super::Arguments::command().debug_assert();
    }
}
