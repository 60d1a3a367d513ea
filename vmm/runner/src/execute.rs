//! One run: makes a machine, lets it go, watches it without exits, and comes to a verdict.
//!
//! Runs on the caller's thread, which is the monitor of the machine's vCPU threads; it may be one of many. Doorbells wake it
//! and are hints: what ends a run is what the stopped machine shows. docs/stall.md tells how a stall is decided.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stallbench_abi::boot::{BootBlock, MAGIC, Range};
use stallbench_abi::fault::{FAULTS, Fault as InjectedFault};
use stallbench_abi::knob::KNOB_SLOTS;
use stallbench_abi::layout::{ARENA, ARENA_SIZE, GHOST, PAGE};
use stallbench_abi::pause::{HOLDS, Hold};
use stallbench_core::observe::ObserveError;
use stallbench_core::{CreateError, Fault, HostKvm, Machine, MachineConfig, ResumeError, StartError, VcpuError};
use stallbench_stall::Policy;
use stallbench_state::program::Program;
use thiserror::Error;

use crate::control::{self, Bench, Controlled, Guest};
use crate::dump::{Asked, Keep, Moment};
use crate::layout::Layout;
use crate::oracle::order::Mode;
use crate::outcome::RunOutcome;
use crate::scenario::{Injected, Run};

mod cpu_time;
mod ending;
pub(crate) mod fault;
mod last_part;
mod monitor;
mod order;
pub(crate) mod patience;
pub mod plain;
pub(crate) mod proof;
mod quiet;
mod slice;
pub(crate) mod stop;

use monitor::Monitor;
pub(crate) use monitor::ghost;
pub(crate) use quiet::released;

/// What to run.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// Index of the case in the program.
    pub case: usize,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Raw value of each knob, by number.
    pub knobs: [u64; KNOB_SLOTS],
    /// Seed of what is random in the guest.
    pub seed: u64,
    /// Where vCPUs are held, and what goes wrong.
    pub injected: Arc<Injected>,
    /// The layout that it programs, where its case takes one.
    pub layout: Option<Arc<Layout>>,
    /// How the order of MTRR programming is looked at.
    pub order: Mode,
    /// Wall time after which the run ends undecided.
    pub budget: Duration,
    /// When the machine is kept for a dump.
    pub keep: Keep,
    /// The door for who looks into it, where there is one.
    pub control: Option<Controlled>,
}

impl RunPlan {
    /// Of a run that was selected, with nobody looking into it.
    pub fn of(run: &Run, budget: Duration) -> Self {
        Self {
            case: run.case,
            vcpus: run.vcpus,
            knobs: run.knobs,
            seed: run.seed,
            injected: Arc::clone(&run.injected),
            layout: run.layout.clone(),
            order: run.order,
            budget,
            keep: Keep::default(),
            control: None,
        }
    }
}

/// Interval of the polls of a machine's progress words; longer with more than a hundred vCPUs.
pub const POLL: Duration = Duration::from_micros(300);

/// CPU time after which a vCPU lets another one have the CPU, where there are more of them than CPUs. Shorter than a machine's
/// usual turn: vCPUs that wait for each other get nothing done in it, and a verdict needs a turn of each of them, twice.
const TURN: Duration = Duration::from_micros(250);

/// Why a run came to no outcome at all: the host's part, never the guest's.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// The program has no such case.
    #[error("find case {case}: the program has {cases}")]
    NoCase {
        /// Which was asked for.
        case: usize,
        /// How many there are.
        cases: usize,
    },
    /// The machine could not be made.
    #[error("create a machine with {vcpus} vCPUs")]
    Create {
        /// How many were asked for.
        vcpus: usize,
        /// Why.
        #[source]
        source: CreateError,
    },
    /// The order of MTRR programming cannot be looked at on this host.
    #[error("look at the order in which mtrrs are programmed (--order {mode})")]
    Order {
        /// How it was to be looked at.
        mode: Mode,
        /// Why it cannot be.
        #[source]
        source: ObserveError,
    },
    /// KVM refused to watch who writes.
    #[error("watch who writes what the guest waits for")]
    Watch(#[from] ObserveError),
    /// An NMI that was asked for could not be sent.
    #[error("do what the host was asked to do")]
    Nmi(#[from] VcpuError),
    /// The machine could not be made in the state that another was in.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Its threads could not be started.
    #[error("start a machine with {vcpus} vCPUs")]
    Start {
        /// How many were asked for.
        vcpus: usize,
        /// Why.
        #[source]
        source: StartError,
    },
    /// KVM refused to run a vCPU, whatever the guest did.
    #[error("run vcpu {vcpu}: {fault}")]
    Run {
        /// The vCPU.
        vcpu: usize,
        /// What KVM said.
        fault: Fault,
    },
    /// The thread of a vCPU died: a bug of ours.
    #[error("run vcpu {vcpu}: its thread died")]
    ThreadDied {
        /// The vCPU.
        vcpu: usize,
    },
}

/// Runs a case once. When `interrupt` is set it ends early with verdict `budget`.
///
/// # Errors
///
/// Only what the host could not do; whatever the guest does is an outcome.
pub fn execute(
    host: &HostKvm,
    program: &Program,
    plan: &RunPlan,
    interrupt: &AtomicBool,
) -> Result<RunOutcome, ExecuteError> {
    let began = Instant::now();
    let cases = program.cases().len();
    program.cases().get(plan.case).ok_or(ExecuteError::NoCase { case: plan.case, cases })?;
    let vcpus = plan.vcpus;
    let config = MachineConfig { turn: TURN, ..MachineConfig::new(vcpus) };
    let machine = Machine::new(host, &config, program.bytes(), &boot_block(plan));
    let machine = machine.map_err(|source| ExecuteError::Create { vcpus, source })?;
    watch(host, program, plan, machine, began, interrupt)
}

/// Lets a machine go on from a state that another was in, and comes to a verdict.
///
/// # Errors
///
/// As [`execute`]; and where KVM does not take the state.
pub fn resume(
    host: &HostKvm,
    program: &Program,
    plan: &RunPlan,
    moment: &Moment,
    interrupt: &AtomicBool,
) -> Result<RunOutcome, ExecuteError> {
    let began = Instant::now();
    let config = MachineConfig { turn: TURN, ..MachineConfig::new(plan.vcpus) };
    let machine = Machine::resumed(host, &config, &moment.machine, &moment.memory)?;
    watch(host, program, plan, machine, began, interrupt)
}

/// Lets a machine go, and watches it until there is a verdict.
fn watch(
    host: &HostKvm,
    program: &Program,
    plan: &RunPlan,
    mut machine: Machine,
    began: Instant,
    interrupt: &AtomicBool,
) -> Result<RunOutcome, ExecuteError> {
    let vcpus = plan.vcpus;
    let cases = program.cases().len();
    let case = program.cases().get(plan.case).ok_or(ExecuteError::NoCase { case: plan.case, cases })?;
    let order = order::Look::begin(host, program, plan.order, &mut machine)
        .map_err(|source| ExecuteError::Order { mode: plan.order, source })?;
    let _shortened = slice::shorten();
    let mut door = plan.control.as_ref().map(Controlled::open);
    control::start(&mut machine, host, door.as_mut()).map_err(|source| ExecuteError::Start { vcpus, source })?;
    let asked = Asked::of(plan.keep.on_request.as_ref());
    let bench = Bench::new(&machine, host, Guest::Contract(program, &plan.injected), door, asked);
    let expected = crate::oracle::mtrr::Expected::of(case, plan);
    let interrupted = || is_interrupted(interrupt, plan.control.as_ref());
    let policy = policy(vcpus, host.fingerprint().host_cpus);
    let monitor = Monitor::new(&machine, program, policy, began, plan, bench);
    let (outcome, look, mut bench) = monitor.run(&expected, &interrupted)?;
    let mut outcome = order.end(&machine, outcome);
    // The machine still stands still.
    if let Some(look) = look.filter(|_| !interrupted()) {
        outcome.moment = plan.keep.at_end.wants(&outcome).then(|| Arc::new(look.moment()));
        outcome.wall = began.elapsed().saturating_sub(bench.stood());
        bench.hold_at_end(look.into_paused(), &outcome, &interrupted);
    }
    let stood = bench.stood();
    drop(bench);
    drop(machine);
    outcome.wall = began.elapsed().saturating_sub(stood);
    Ok(outcome)
}

/// Whether a run is to end now: all of them, or this one by who looks into it.
fn is_interrupted(interrupt: &AtomicBool, control: Option<&Controlled>) -> bool {
    interrupt.load(Ordering::Relaxed) || control.is_some_and(Controlled::is_ending)
}

/// Where many vCPUs share a CPU, one that has had none of it for a round of turns has only not had its turn.
fn policy(vcpus: usize, host_cpus: usize) -> Policy {
    let usual = Policy::default();
    // At most 255 vCPUs.
    let round = TURN * vcpus.div_ceil(host_cpus.max(1)) as u32;
    Policy { quiet: usual.quiet.max(round), ..usual }
}

/// What a poll may cost at most is a third of it: reading the clocks of a vCPU's thread takes about a microsecond.
fn poll_interval(usual: Duration, vcpus: usize) -> Duration {
    usual.max(Duration::from_micros(3) * vcpus as u32)
}

/// The boot block of a plan.
pub fn boot_block(plan: &RunPlan) -> BootBlock {
    let mut holds = [Hold::default(); HOLDS];
    holds.iter_mut().zip(&plan.injected.holds).for_each(|(slot, (_, hold))| *slot = *hold);
    let mut faults = [InjectedFault::default(); FAULTS];
    faults.iter_mut().zip(&plan.injected.faults).for_each(|(slot, (_, fault))| *slot = *fault);
    BootBlock {
        magic: MAGIC,
        version: stallbench_abi::VERSION,
        // Both fit: the machine refuses more vCPUs than xAPIC ids, and a case is found by its index.
        vcpus: plan.vcpus as u32,
        case: plan.case as u32,
        seed: plan.seed,
        arena: Range { base: ARENA, size: ARENA_SIZE },
        ghost: Range { base: GHOST, size: PAGE },
        knobs: plan.knobs,
        hold_count: plan.injected.holds.len().min(HOLDS) as u32,
        fault_count: plan.injected.faults.len().min(FAULTS) as u32,
        holds,
        faults,
        layout: plan.layout.as_deref().map(Layout::input).unwrap_or_default(),
        ..BootBlock::default()
    }
}
