//! Whole processes: this binary runs itself, as a user would.

use std::env;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::figure::Figure;
use crate::exit::{Exit, Failure};

/// Times `stallbench run NAMES`.
pub(super) fn figure(
    name: &str,
    what: &str,
    aim: &'static str,
    names: &[&str],
    runs: usize,
) -> Result<Figure, Failure> {
    let times = (0..runs).map(|_| once(names)).collect::<Result<_, _>>()?;
    Ok(Figure::times(name, what, Some(aim), times))
}

fn once(names: &[&str]) -> Result<Duration, Failure> {
    let wrong = |error: &std::io::Error| Failure::new(Exit::HostUnusable, error).context("run this binary");
    let binary = env::current_exe().map_err(|error| wrong(&error))?;
    let started = Instant::now();
    let status = Command::new(binary)
        .arg("run")
        .args(names)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .map_err(|error| wrong(&error))?;
    let time = started.elapsed();
    if status.success() {
        return Ok(time);
    }
    let message = format!("run {} ended with {status}: its time says nothing", names.join(" "));
    Err(Failure::unexpected(message))
}
