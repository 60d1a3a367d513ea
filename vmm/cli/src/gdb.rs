//! `--gdb`: where gdb is waited for, and what the user is told of it.

use std::sync::atomic::AtomicBool;

use stallbench_debug::Session;
use stallbench_debug::gdb::{self, Address, Ended, GdbError, Listener};

use crate::exit::{Exit, Failure};
use crate::{interrupt, output};

/// Listens, before anything runs.
pub(crate) fn listen(address: &Address) -> Result<Listener, Failure> {
    let listener = Listener::bind(address).map_err(|error| Failure::new(Exit::Usage, &error).context("--gdb"))?;
    if let Some(who) = listener.is_open_to() {
        output::diagnostic(&format!("warning: --gdb {address}: {who} can control the guest; unix:PATH is yours alone"));
    }
    Ok(listener)
}

/// Reads `--gdb`.
pub(crate) fn parse(text: &str) -> Result<Address, GdbError> {
    text.parse()
}

/// Lets gdb look at a dump.
pub(crate) fn look_at(address: &Address, session: &mut Session) -> Result<Exit, Failure> {
    let (listener, interrupted) = (listen(address)?, interrupt::flag_on_signal()?);
    Ok(exit(serve(&listener, session, &interrupted)))
}

/// The exit code of somebody who only looks.
pub(crate) fn exit(ended: Ended) -> Exit {
    match ended {
        Ended::Interrupted => Exit::Interrupted,
        Ended::Left | Ended::Killed | Ended::Over => Exit::Success,
    }
}

/// Says how to connect, and serves gdb until it leaves.
pub(crate) fn serve(listener: &Listener, session: &mut Session, interrupted: &AtomicBool) -> Ended {
    let at = match listener.address() {
        Address::Unix(path) => path.display().to_string(),
        tcp => tcp.to_string(),
    };
    let quoted = at.replace('\'', r"'\''");
    output::diagnostic(&format!("waiting for gdb: gdb -ex 'target remote {quoted}' (it is sent the guest's file)"));
    gdb::serve(listener, session, interrupted)
}
