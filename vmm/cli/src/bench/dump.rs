//! What a dump of a stalled machine costs: the guest stands still for the first part, the file is written behind it.

use std::time::Instant;

use stallbench_core::HostKvm;
use stallbench_runner::dump::Moment;
use stallbench_state::dump::{About, Dump, Parts};

use super::figure::Figure;
use super::machine::{DEADLINE, machine, settle, start, the_run};
use crate::exit::{Exit, Failure};
use crate::guest::Guest;

/// Stops a stalled machine, keeps it, and writes it to memory, as often as that.
pub(super) fn figures(host: &HostKvm, guest: &Guest, name: &str, runs: usize) -> Result<Vec<Figure>, Failure> {
    let run = the_run(guest, name, None)?;
    let mut stalled = machine(host, guest, &run)?;
    start(&mut stalled)?;
    settle(&stalled);
    let payload = guest.packed();
    let about = About { run: run.name.to_string(), ..About::default() };
    let (mut kept, mut written, mut read, mut file) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let began = Instant::now();
        let paused = stalled.pause(DEADLINE).map_err(|error| Failure::host(&error))?;
        let moment = Moment::of(&paused);
        paused.resume();
        kept.push(began.elapsed());
        file.clear();
        let parts = Parts { about: &about, machine: &moment.machine, memory: &moment.memory, payload: &payload };
        parts.write(&mut file).map_err(|error| Failure::new(Exit::ReportFailed, &error))?;
        written.push(began.elapsed());
        let began = Instant::now();
        Dump::read(&file).map_err(|error| Failure::new(Exit::Unexpected, &error).attempted())?;
        read.push(began.elapsed());
    }
    Ok(vec![
        Figure::times(
            "dump-stopped-4",
            "stop all, read everything, copy memory, go on, 4 spinning vCPUs",
            Some("2 ms"),
            kept,
        ),
        Figure::times("dump-4", "the same, and the dump's file in memory", Some("20 ms"), written),
        Figure::times("dump-read-4", "read that dump", None, read),
        Figure::bytes("dump-size-4", "size of it", Some("1 MB"), file.len() as u64),
    ])
}
