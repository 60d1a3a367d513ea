//! Proving a stall of a machine that is stopped: the prover of `stall`, taken from vCPU to vCPU by `core`.

use std::time::{Duration, Instant};

use stallbench_core::{Machine, Paused, StepError, Visited, Visitor};
use stallbench_stall::proof::{Limits, Next, Proof, Prover, Question, Steps, Unproved};
use stallbench_state::machine::Registers;
use stallbench_state::memory::Memory;

/// How long one visit to all vCPUs may take: so much, and as much more for each step, but no more than that. It is bounded by steps; this
/// is for an instruction that does not end, and emulated hosts take 100 µs a step.
const VISIT: Duration = Duration::from_secs(5);
const VISIT_STEP: Duration = Duration::from_micros(100);
const LONGEST_VISIT: Duration = Duration::from_secs(30);
/// How far the first attempts go: some spins, and not much time that a guest which is alive goes without.
pub(crate) const FIRST: Limits = Limits { steps: 400, states: 256 };
/// How far any attempt goes.
pub(crate) const FARTHEST: Limits = Limits { steps: 40_000, states: 32_768 };

/// What became of an attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) result: Result<Proof, Unproved>,
    /// How long it took; the machine stood still meanwhile.
    pub(crate) took: Duration,
}

/// Tries to prove that a machine goes nowhere any more. Its vCPUs are where they could have come by themselves afterwards.
pub(crate) fn prove(paused: &Paused<'_>, machine: &Machine, question: Question) -> Attempt {
    let began = Instant::now();
    let within = visit(question.limits.steps, question.machine.vcpus.len());
    let mut tour = Tour(Prover::new(question));
    let result = loop {
        match tour.0.next(machine.memory()) {
            Next::Done(result) => break *result,
            Next::Visit => match paused.visit(tour, within) {
                Ok(visited) => tour = visited,
                Err(error) => break Err(Unproved::NoSteps { vcpu: 0, why: error.to_string() }),
            },
        }
    };
    Attempt { result, took: began.elapsed() }
}

/// How long a visit may take that makes at most so many steps of each vCPU.
fn visit(steps: usize, vcpus: usize) -> Duration {
    let steps = u32::try_from(steps.saturating_mul(vcpus)).unwrap_or(u32::MAX);
    VISIT.saturating_add(VISIT_STEP.saturating_mul(steps)).min(LONGEST_VISIT)
}

/// Attempts that reach farther each time, and are farther apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    pub(crate) limits: Limits,
}

impl Default for Reach {
    fn default() -> Self {
        Self { limits: FIRST }
    }
}

impl Reach {
    /// Whether an attempt can go farther.
    pub(crate) fn extends(&self) -> bool {
        self.limits != FARTHEST
    }

    /// After an attempt in vain.
    pub(crate) fn extend(&mut self) {
        self.limits.steps = (self.limits.steps * 4).min(FARTHEST.steps);
        self.limits.states = (self.limits.states * 4).min(FARTHEST.states);
    }
}

/// A prover on its way from vCPU to vCPU.
#[derive(Debug)]
struct Tour(Prover);

impl Visitor for Tour {
    fn visit(&mut self, vcpu: &mut Visited<'_>) {
        self.0.visit(&mut Stepped(vcpu));
    }
}

/// A vCPU as a prover sees it.
struct Stepped<'v, 'a>(&'v mut Visited<'a>);

impl Steps for Stepped<'_, '_> {
    fn vcpu(&self) -> usize {
        self.0.index()
    }

    fn memory(&self) -> &dyn Memory {
        self.0.memory()
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        self.0.write(address, bytes)
    }

    fn has_breakpoints(&self) -> bool {
        self.0.has_breakpoints()
    }

    fn registers(&mut self) -> Result<Registers, String> {
        self.0.registers().map_err(text)
    }

    fn place(&mut self, registers: &Registers) -> Result<(), String> {
        self.0.place(registers).map_err(text)
    }

    fn step(&mut self) -> Result<Registers, String> {
        self.0.step().map_err(text)
    }
}

fn text(error: StepError) -> String {
    error.to_string()
}
