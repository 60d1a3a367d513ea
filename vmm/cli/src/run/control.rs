//! `run --control PATH`: lets `debug --attach` into the runs of this process.

use std::path::Path;
use std::time::Duration;

use stallbench_debug::live::{LiveError, LiveTarget};
use stallbench_debug::remote::{Entry, Server};
use stallbench_debug::socket::{ListenError, Listening};
use stallbench_runner::control::Control;

use super::Arguments;
use crate::exit::Failure;

/// Refuses a socket that cannot be made, before anything else is.
pub(super) fn check(arguments: &Arguments) -> Result<(), Failure> {
    let Some(path) = &arguments.control else { return Ok(()) };
    if arguments.jobs.is_some_and(|jobs| jobs > 1) {
        return Err(Failure::usage("--control: there is one guest to look into, and --jobs asks for more at a time"));
    }
    Listening::check(path).map_err(|error| refused(&error))
}

/// Serves that socket until what this gives is dropped.
pub(super) fn serve(path: &Path, control: &Control) -> Result<Server, Failure> {
    let listening = Listening::at(path).map_err(|error| refused(&error))?;
    let control = control.clone();
    let server = Server::start(listening, move || enter(&control));
    server.map_err(|error| Failure::host(&error).context("--control: start a thread"))
}

fn refused(error: &ListenError) -> Failure {
    Failure::usage(format!("--control {error}"))
}

/// Lets somebody in where there is a machine.
fn enter(control: &Control) -> Entry {
    if !control.wait_for_machine(Duration::ZERO) {
        return Entry::NotYet;
    }
    match control.attach(false).map(|attached| LiveTarget::new(Box::new(attached))) {
        Ok(Ok(target)) => Entry::In(Box::new(target)),
        Ok(Err(LiveError::Gone)) => Entry::NotYet,
        Ok(Err(error)) => Entry::Refused(error.to_string()),
        Err(taken) => Entry::Refused(taken.to_string()),
    }
}
