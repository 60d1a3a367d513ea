//! What a dump of a stalled machine costs: the guest stands still for the first part, the file is written behind it.

use std::process::{self, Command};
use std::time::{Duration, Instant};
use std::{env, fs, io};

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
    let prompted = prompted(&file, runs).map_err(|error| Failure::new(Exit::ReportFailed, &error).context("a dump"))?;
    Ok(vec![
        Figure::times(
            "dump-stopped-4",
            "stop all, read everything, copy memory, go on, 4 spinning vCPUs",
            Some("2 ms"),
            kept,
        ),
        Figure::times("dump-4", "the same, and the dump's file in memory", Some("20 ms"), written),
        Figure::times("dump-read-4", "read that dump", None, read),
        Figure::times(
            "dump-prompt-4",
            "a debugger on it, from its start to what it greets with",
            Some("50 ms"),
            prompted,
        ),
        Figure::bytes("dump-size-4", "size of it", Some("1 MB"), file.len() as u64),
    ])
}

/// Debuggers on a dump: what each takes to say what a prompt begins with, and to end.
fn prompted(dump: &[u8], runs: usize) -> io::Result<Vec<Duration>> {
    let path = env::temp_dir().join(format!("stallbench-{}.core", process::id()));
    fs::write(&path, dump)?;
    let prompt = |_| {
        let began = Instant::now();
        let mut debugger = Command::new(env::current_exe()?);
        debugger.args(["debug", "-c", "about; vcpus", "--dump"]).arg(&path);
        match debugger.output()?.status.success() {
            true => Ok(began.elapsed()),
            false => Err(io::Error::other("the debugger cannot read it")),
        }
    };
    let times = (0..runs).map(prompt).collect();
    fs::remove_file(&path)?;
    times
}
