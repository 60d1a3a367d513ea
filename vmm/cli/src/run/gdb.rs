//! `run --gdb ADDRESS`: gdb has the one run from before its first instruction on, and the run ends as it would without.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallbench_debug::Session;
use stallbench_debug::gdb::Listener;
use stallbench_debug::live::LiveTarget;
use stallbench_runner::control::{Attached, Control};
use stallbench_runner::scenario::Selection;

use super::Arguments;
use crate::exit::Failure;
use crate::{gdb, output};

/// How long a machine may take to be there. Some hosts are slow with hundreds of vCPUs.
pub(crate) const MACHINE: Duration = Duration::from_secs(120);

/// Listens, before anything else is done: to look into one run.
pub(super) fn listen(arguments: &Arguments, selection: &Selection) -> Result<Option<Listener>, Failure> {
    let Some(address) = &arguments.gdb else { return Ok(None) };
    match selection.len() {
        1 => gdb::listen(address).map(Some),
        many => Err(Failure::usage(format!("--gdb: {many} runs are selected, and gdb looks into one"))),
    }
}

/// Waits for gdb and serves it on a thread of its own, until it leaves or the run is over.
pub(super) fn serve(
    listener: Listener,
    control: &Control,
    interrupted: &Arc<AtomicBool>,
) -> Result<JoinHandle<()>, Failure> {
    let attached = control.attach(true).map_err(|taken| Failure::usage(taken.to_string()))?;
    let (control, interrupted) = (control.clone(), Arc::clone(interrupted));
    let work = move || look(&listener, &control, attached, &interrupted);
    let thread = thread::Builder::new().name("gdb-server".to_owned()).spawn(work);
    thread.map_err(|error| Failure::host(&error).context("--gdb: start a thread"))
}

fn look(listener: &Listener, control: &Control, attached: Attached, interrupted: &AtomicBool) {
    if !control.wait_for_machine(MACHINE) {
        if !control.is_closed() {
            let seconds = MACHINE.as_secs();
            output::diagnostic(&format!("error: --gdb: no machine within {seconds} s: the run goes on without gdb"));
        }
        return;
    }
    match LiveTarget::new(Box::new(attached)) {
        Ok(target) => drop(gdb::serve(listener, &mut Session::new(Box::new(target)), interrupted)),
        Err(error) => output::diagnostic(&format!("error: --gdb: {error}")),
    }
}
