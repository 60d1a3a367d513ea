//! From the end of a run to its outcome: the verdict, with the oracles, and everything that a report shows.
//!
//! The machine stands still meanwhile, where it could be stopped.

use std::time::Duration;

use stallbench_abi::boot::BootBlock;
use stallbench_abi::knob::IRQ_OFF_BUDGET;
use stallbench_abi::layout::BOOT_BLOCK;
use stallbench_abi::text;
use stallbench_core::Machine;
use stallbench_stall::activity::Activity;
use stallbench_stall::conclude::lasting_contradictions;
use stallbench_stall::slow::slow;
use stallbench_stall::{Analysis, Watch};
use stallbench_state::machine::MpState;
use stallbench_state::memory::{Memory, read_plain};
use stallbench_state::program::Program;
use stallbench_state::published::{Published, Ring, events};

use super::cpu_time::CpuTime;
use super::monitor::{End, slow_outcome};
use super::stop::Captured;
use super::{ExecuteError, fault};
use crate::oracle::calls::Calls;
use crate::oracle::mtrr::{self, Expected};
use crate::oracle::{control, irq_off, lifetime};
use crate::outcome::{
    Breach, Contradiction, ControlOutcome, InjectionOutcome, MtrrOutcome, OrderOutcome, ProofOutcome, RunOutcome,
    SlowOutcome, VcpuSummary, Verdict, WatchOutcome, Words,
};

/// CPU time below which a vCPU that could have run was not run, in the last part of the budget.
pub(super) const STARVED_BELOW: Duration = Duration::from_micros(300);

/// What a run leaves behind.
pub(super) struct Ending<'e> {
    pub(super) machine: &'e Machine,
    pub(super) program: &'e Program,
    /// `None`: it could not be stopped.
    pub(super) captured: Option<&'e Captured>,
    pub(super) expected: &'e Expected,
    pub(super) cpu_time: &'e CpuTime,
    pub(super) ran_before: Option<&'e [Duration]>,
    pub(super) denied: &'e [Contradiction],
    pub(super) cache_off: Option<&'e Breach>,
    pub(super) watch: &'e Watch,
    pub(super) latency: Duration,
}

impl Ending<'_> {
    pub(super) fn outcome(&self, end: End) -> Result<RunOutcome, ExecuteError> {
        let analysis = self.captured.map(|captured| captured.analysis(self.machine, self.program));
        let analysis = analysis.as_ref();
        let is_at_rest = matches!(end, End::AtRest);
        let undecided = matches!(end, End::OverBudget);
        let rings = self.rings();
        let calls = Calls::of(self.program, &rings);
        let breaches = self.breaches(&rings);
        let mtrr = self.mtrr(is_at_rest);
        let control = self.control(is_at_rest);
        let contradictions = analysis.map(|analysis| self.contradictions(analysis, is_at_rest)).unwrap_or_default();
        let verdict =
            self.verdict(end, analysis, (&mtrr, &control), calls.breach.iter().chain(&breaches), &contradictions)?;
        Ok(RunOutcome {
            proof: ProofOutcome::default(),
            explored: None,
            verdict,
            wall: Duration::ZERO,
            verdict_latency: self.latency,
            mtrr,
            control,
            wait0: calls.wait0(),
            breaches,
            residual_waits: calls.residual_waits,
            words: self.words(),
            slow: self.slow(analysis, undecided),
            contradictions,
            vcpu_states: analysis.map(|analysis| self.vcpus(analysis)).unwrap_or_default(),
            loops: Vec::new(),
            unwatched: None,
            console: None,
            order: OrderOutcome::default(),
            injected: InjectionOutcome::default(),
            log: Vec::new(),
            watch: WatchOutcome::default(),
            dump: None,
            trace: None,
            moment: None,
            interventions: Vec::new(),
        })
    }

    /// Every breach but that of a call's promise, in the order of their kinds.
    fn breaches(&self, rings: &[Ring]) -> Vec<Breach> {
        let memory = self.machine.memory();
        let asked: BootBlock = read_plain(memory, BOOT_BLOCK).unwrap_or_default();
        let clock = Published::read(memory, 0).ghost.event_clock;
        let irq_off = irq_off::breaches(memory, rings, clock, asked.knob(&IRQ_OFF_BUDGET));
        lifetime::breaches(memory, rings).into_iter().chain(self.cache_off.cloned()).chain(irq_off).collect()
    }

    /// The events of each vCPU.
    fn rings(&self) -> Vec<Ring> {
        (0..self.machine.vcpus()).map(|vcpu| events(self.machine.memory(), vcpu)).collect()
    }

    fn verdict<'b>(
        &self,
        end: End,
        analysis: Option<&Analysis<'_>>,
        state: (&MtrrOutcome, &ControlOutcome),
        breaches: impl Iterator<Item = &'b Breach>,
        contradictions: &[Contradiction],
    ) -> Result<Verdict, ExecuteError> {
        Ok(match end {
            End::AtRest => at_rest(state, breaches),
            End::Stall(stall) => Verdict::Stall(stall),
            End::Epitaph(vcpu) => Verdict::GuestFault(fault::of_epitaph(self.program, self.machine.memory(), vcpu)),
            End::Fault(vcpu, fault) => {
                let state = self.captured.map(|captured| &captured.machine);
                Verdict::GuestFault(fault::of_kvm(self.program, vcpu, &fault, state))
            }
            End::Failed(error) => return Err(error),
            End::Interrupted => Verdict::Budget { reason: "interrupted".into() },
            End::OverBudget => self.over_budget(analysis, contradictions),
        })
    }

    fn mtrr(&self, is_at_rest: bool) -> MtrrOutcome {
        let judge = |captured: &Captured| mtrr::judge(&captured.machine, is_at_rest.then_some(self.expected));
        self.captured.map(judge).unwrap_or_default()
    }

    fn control(&self, is_at_rest: bool) -> ControlOutcome {
        let captured = self.captured.filter(|_| is_at_rest);
        captured.map(|captured| control::judge(&captured.machine)).unwrap_or_default()
    }

    /// A claim can be ahead of the machine for a few instructions, so one look is not enough, unless all rest.
    fn contradictions(&self, analysis: &Analysis<'_>, is_at_rest: bool) -> Vec<Contradiction> {
        if is_at_rest {
            return analysis.contradictions().cloned().collect();
        }
        lasting_contradictions(self.denied, analysis)
    }

    fn over_budget(&self, analysis: Option<&Analysis<'_>>, contradictions: &[Contradiction]) -> Verdict {
        let Some(analysis) = analysis else {
            return Verdict::Starved { reason: "the vCPU threads got too little CPU time to be stopped".into() };
        };
        // Who waits is not what holds things up: the root of the waits comes first.
        let root = slow(analysis).map(|slow| {
            let ran = self.watch.ran_since_progress(slow.vcpu).as_millis();
            format!("{slow}, and had {ran} ms of CPU time since the last progress")
        });
        let starved: Vec<_> = (0..self.machine.vcpus()).filter_map(|vcpu| self.starved(vcpu)).collect();
        if !starved.is_empty() {
            return Verdict::Starved { reason: root.into_iter().chain(starved).collect::<Vec<_>>().join("; ") };
        }
        let doing = busy(analysis).map(|vcpu| format!("vcpu{vcpu} {}", analysis.doing(vcpu)));
        let denied = contradictions.iter().map(ToString::to_string);
        let since = format!("last progress {} ms before the end", self.latency.as_millis());
        Verdict::Budget { reason: denied.chain(root).chain(doing).chain([since]).collect::<Vec<_>>().join("; ") }
    }

    /// Who is busy at the end of a run that came to none.
    fn slow(&self, analysis: Option<&Analysis<'_>>, undecided: bool) -> Option<SlowOutcome> {
        analysis.filter(|_| undecided).and_then(|analysis| slow_outcome(analysis, self.watch))
    }

    /// A vCPU that could have run and that the host did not run.
    fn starved(&self, vcpu: usize) -> Option<String> {
        let captured = self.captured.filter(|captured| !captured.kept_out.contains(vcpu))?;
        let state = captured.machine.vcpus.get(vcpu)?;
        let could_run = state.mp_state == Ok(MpState::Runnable) || state.deliverable().is_some();
        let is_up = state.mp_state.as_ref().is_ok_and(|mp_state| mp_state.is_up());
        let ran = self.cpu_time.counts().get(vcpu)?.saturating_sub(*self.ran_before?.get(vcpu)?);
        let text = || format!("vcpu{vcpu} had {} µs of CPU time in the last quarter of the budget", ran.as_micros());
        (is_up && could_run && ran < STARVED_BELOW).then(text)
    }

    fn words(&self) -> Words {
        let memory = self.machine.memory();
        let published = Published::read(memory, 0);
        let named = published.ghost.words.iter().filter_map(|word| {
            let name = text::of(&word.name);
            let value = match word.width {
                4 => u64::from(memory.read_u32(word.address)?),
                8 => memory.read_u64(word.address)?,
                _ => return None,
            };
            (!name.is_empty()).then(|| (name.to_owned(), value))
        });
        Words(named.collect())
    }

    fn vcpus(&self, analysis: &Analysis<'_>) -> Vec<VcpuSummary> {
        let published = self.captured.map(|captured| captured.published.vcpus.as_slice()).unwrap_or_default();
        let summary = |(vcpu, ran): (usize, &Duration)| VcpuSummary {
            vcpu,
            phase: published.get(vcpu).map(|page| page.phase.to_string()).unwrap_or_default(),
            doing: analysis.doing(vcpu),
            progress: published.get(vcpu).map(|page| page.progress).unwrap_or_default(),
            ran: *ran,
        };
        self.cpu_time.had().iter().enumerate().map(summary).collect()
    }
}

/// The verdict of a run that came to its end.
fn at_rest<'b>(
    (mtrr, control): (&MtrrOutcome, &ControlOutcome),
    mut breaches: impl Iterator<Item = &'b Breach>,
) -> Verdict {
    for (what, consistent, problems) in [
        ("the MTRRs", mtrr.consistent, &mtrr.problems),
        ("the control registers", control.consistent, &control.problems),
    ] {
        if consistent != Some(true) {
            let reason = problems.first().cloned().unwrap_or_else(|| format!("{what} were not read"));
            return Verdict::Inconsistent { reason };
        }
    }
    breaches.next().map_or(Verdict::Pass, |breach| Verdict::Breach(breach.clone()))
}

/// The vCPUs that do something, or wait for it.
fn busy(analysis: &Analysis<'_>) -> impl Iterator<Item = usize> {
    let rests = |activity: &Activity<'_>| matches!(activity, Activity::Idle | Activity::Absent(_));
    let busy: Vec<_> = (0..analysis.vcpus.len()).filter(|&vcpu| !rests(&analysis.vcpus[vcpu].activity)).collect();
    busy.into_iter()
}

#[cfg(test)]
mod test {
    use std::iter;

    use super::*;
    use crate::outcome::BreachKind;

    fn mtrr(consistent: Option<bool>) -> MtrrOutcome {
        MtrrOutcome { consistent, ..MtrrOutcome::default() }
    }

    fn control(consistent: Option<bool>) -> ControlOutcome {
        ControlOutcome { consistent, ..ControlOutcome::default() }
    }

    #[test]
    fn run_at_rest_passes_only_with_registers_that_were_read_and_agree() {
        let all = [Some(true), Some(false), None];
        for (m, c) in all.into_iter().flat_map(|m| all.map(|c| (m, c))) {
            let expected = if (m, c) == (Some(true), Some(true)) { "pass" } else { "inconsistent" };
            assert_eq!(at_rest((&mtrr(m), &control(c)), iter::empty()).word(), expected, "{m:?} {c:?}");
        }
    }

    #[test]
    fn run_at_rest_with_a_broken_promise_is_a_breach() {
        let breach = |kind| Breach { kind, vcpu: 0, site: "call_many".into(), reason: String::new() };
        let breaches = BreachKind::ALL.map(breach);
        for (i, kind) in BreachKind::ALL.into_iter().enumerate() {
            assert_eq!(
                at_rest((&mtrr(Some(true)), &control(Some(true))), breaches[i..].iter()).kind(),
                Some(kind.word())
            );
        }
    }
}
