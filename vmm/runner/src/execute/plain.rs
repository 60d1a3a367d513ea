//! One run of a plain guest: a guest that publishes nothing, so that only the machine itself can say what it does.
//!
//! Runs on the caller's thread, which is the monitor of the machine's vCPU threads. What ends a run is an exit, a fault, a proof,
//! or the budget: nothing is concluded from standing still, since nobody knows what progress is. docs/plain-guests.md tells
//! what a guest may expect.

mod ending;
mod monitor;
mod schedule;
mod writers;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use stallbench_core::observe::ObserveError;
use stallbench_core::{HostKvm, Machine, PlainConfig};
use stallbench_state::program::PlainProgram;

use super::{ExecuteError, TURN, is_interrupted, slice};
use crate::control::{self, Bench, Controlled, Guest};
use crate::dump::{Asked, Keep, Moment};
use crate::outcome::RunOutcome;
use crate::plain::{Aps, PlainOptions};
use monitor::Monitor;

/// What to run.
#[derive(Clone, Debug)]
pub struct PlainPlan {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// What is asked for beside the guest.
    pub options: Arc<PlainOptions>,
    /// How long the guest is left alone, without attempts at a proof.
    pub alone: Duration,
    /// Time after which the run ends undecided.
    pub budget: Duration,
    /// When the machine is kept for a dump.
    pub keep: Keep,
    /// The door for who looks into it, where there is one.
    pub control: Option<Controlled>,
}

/// Runs a plain guest once. When `interrupt` is set it ends early with verdict `budget`.
///
/// # Errors
///
/// Only what the host could not do; whatever the guest does is an outcome.
pub fn execute(
    host: &HostKvm,
    program: &PlainProgram,
    plan: &PlainPlan,
    interrupt: &AtomicBool,
) -> Result<RunOutcome, ExecuteError> {
    let interrupted = || is_interrupted(interrupt, plan.control.as_ref());
    let complete = |outcome: &mut RunOutcome| writers::complete(outcome, host, program, plan, &interrupted);
    run(host, program, plan, &interrupted, |_| Ok(()), complete).map(|(outcome, _)| outcome)
}

/// One run, of a machine that is prepared further before it starts. What came out is completed before anybody is told of it. Gives the
/// machine as it ended.
fn run(
    host: &HostKvm,
    program: &PlainProgram,
    plan: &PlainPlan,
    interrupted: &dyn Fn() -> bool,
    prepare: impl FnOnce(&mut Machine) -> Result<(), ObserveError>,
    complete: impl FnOnce(&mut RunOutcome),
) -> Result<(RunOutcome, Machine), ExecuteError> {
    let began = Instant::now();
    let vcpus = plan.vcpus;
    let all_started = plan.options.aps == Aps::Started;
    let config = PlainConfig { vcpus, memory: plan.options.memory, all_started, turn: TURN };
    let machine = Machine::plain(host, &config, program);
    let mut machine = machine.map_err(|source| ExecuteError::Create { vcpus, source })?;
    prepare(&mut machine)?;
    let _shortened = slice::shorten();
    let mut door = plan.control.as_ref().map(Controlled::open);
    control::start(&mut machine, host, door.as_mut()).map_err(|source| ExecuteError::Start { vcpus, source })?;
    let asked = Asked::of(plan.keep.on_request.as_ref());
    let bench = Bench::new(&machine, host, Guest::Plain(program, &plan.options.ghost), door, asked);
    let crowded = vcpus > host.fingerprint().host_cpus;
    let monitor = Monitor::new(&machine, program, plan, crowded, bench);
    let (mut outcome, paused, mut bench) = monitor.run(interrupted)?;
    outcome.wall = began.elapsed().saturating_sub(bench.stood());
    // The machine still stands still.
    if let Some(paused) = paused.filter(|_| !interrupted()) {
        complete(&mut outcome);
        outcome.moment = plan.keep.at_end.wants(&outcome).then(|| Arc::new(Moment::of(&paused)));
        bench.hold_at_end(paused, &outcome, interrupted);
    }
    drop(bench);
    Ok((outcome, machine))
}
