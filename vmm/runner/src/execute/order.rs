//! Looking at the order of MTRR programming, where a run asks for it, and what it makes of the verdict.

use std::mem::offset_of;
use std::sync::Arc;

use stallbench_abi::image::EdgeKind;
use stallbench_abi::layout::{private, private_area};
use stallbench_abi::vcpu::{Phase, VcpuPage};
use stallbench_core::observe::{ObserveError, Procedure};
use stallbench_core::{HostKvm, Machine};
use stallbench_stall::set::VcpuSet;
use stallbench_state::memory::Memory;
use stallbench_state::program::Program;

use crate::oracle::order::{MSRS, Mode, Recorder, Run, Step, Violation, judge};
use crate::outcome::{Breach, BreachKind, OrderOutcome, RunOutcome, Verdict};

/// Violations that a report lists.
const LISTED: usize = 16;
/// Why nothing was stepped.
const NO_EDGES: &str = "the image does not say where its procedure begins and ends";

/// The look at one run.
#[derive(Debug)]
pub(super) struct Look {
    mode: Mode,
    recorder: Option<Arc<Recorder>>,
    /// Why less is seen than was asked for.
    reason: Option<&'static str>,
}

impl Look {
    /// Before the machine starts.
    pub(super) fn begin(
        host: &HostKvm,
        program: &Program,
        mode: Mode,
        machine: &mut Machine,
    ) -> Result<Self, ObserveError> {
        if mode == Mode::Off {
            return Ok(Self { mode, recorder: None, reason: None });
        }
        let procedure = Procedure { entries: program.edges(EdgeKind::ENTRY), exits: program.edges(EdgeKind::EXIT) };
        let has_edges = !procedure.entries.is_empty() && !procedure.exits.is_empty();
        let reason = (mode == Mode::Step && !has_edges).then_some(NO_EDGES);
        let stepped = Some(procedure).filter(|_| mode == Mode::Step && has_edges);
        let recorder = Arc::new(Recorder::new(machine.vcpus()));
        machine.observe(host, MSRS, stepped, Arc::clone(&recorder) as _)?;
        Ok(Self { mode, recorder: Some(recorder), reason })
    }

    /// Behind its end. A pass becomes what the first violation is, and so does a breach that a stop happened to find of caches
    /// that were off at the wrong time: here it has its step. Any other verdict stays.
    pub(super) fn end(self, machine: &Machine, outcome: RunOutcome) -> RunOutcome {
        let Some(recorder) = &self.recorder else { return outcome };
        let finished = matches!(outcome.verdict, Verdict::Pass | Verdict::Inconsistent { .. } | Verdict::Breach(_));
        let judged = judge(Run { mode: self.mode, online: online(machine), finished }, recorder);
        let order = OrderOutcome {
            mode: self.mode,
            accesses: judged.accesses,
            instructions: judged.instructions,
            procedures: judged.visits,
            steps: Step::ALL.into_iter().map(|step| (step, judged.finding(step))).collect(),
            violations: judged.violations.iter().take(LISTED).map(ToString::to_string).collect(),
            reason: judged.gap.or(self.reason).map(str::to_owned),
        };
        let verdict = match (outcome.verdict, judged.violations.first()) {
            (Verdict::Pass, Some(first)) => verdict_of(first),
            (Verdict::Breach(Breach { kind: BreachKind::CacheOff, .. }), Some(first)) => verdict_of(first),
            (verdict, _) => verdict,
        };
        RunOutcome { verdict, order, ..outcome }
    }
}

fn verdict_of(violation: &Violation) -> Verdict {
    match violation.step.breach() {
        Some(kind) => Verdict::Breach(Breach {
            kind,
            vcpu: violation.vcpu,
            site: format!("step {}", violation.step.number()),
            reason: violation.what.clone(),
        }),
        None => Verdict::Inconsistent { reason: violation.to_string() },
    }
}

/// The vCPUs that have come up, as they publish.
fn online(machine: &Machine) -> VcpuSet {
    let phase = |vcpu: usize| {
        let address = private(vcpu) + private_area::PAGE_PUBLISHED + offset_of!(VcpuPage, phase) as u64;
        Phase(machine.memory().read_u32(address).unwrap_or_default())
    };
    (0..machine.vcpus()).filter(|vcpu| matches!(phase(*vcpu), Phase::ONLINE | Phase::CASE | Phase::FINISHED)).collect()
}
