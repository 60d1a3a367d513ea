//! From the end of a plain guest's run to its outcome.

use std::time::Duration;

use stallbench_core::{Console, Fault, Machine};
use stallbench_stall::activity::HeldBack;
use stallbench_stall::code::place;
use stallbench_state::machine::{MachineState, MpState, VcpuState};
use stallbench_state::program::PlainProgram;

use super::monitor::{End, Planned, Proved, could_run};
use crate::execute::ending::STARVED_BELOW;
use crate::execute::{ExecuteError, fault};
use crate::outcome::{
    ConsoleOutcome, ControlOutcome, FaultOutcome, InjectedBy, InjectionOutcome, MtrrOutcome, OrderOutcome,
    ProofOutcome, RunOutcome, VcpuSummary, Verdict, Wait0Outcome, WatchOutcome, Words,
};
use crate::plain::GuestEnd;

/// What a run leaves behind.
pub(super) struct Ending<'e> {
    pub(super) machine: &'e Machine,
    pub(super) program: &'e PlainProgram,
    /// How it was to end.
    pub(super) end: GuestEnd,
    /// `None`: it could not be stopped.
    pub(super) state: Option<&'e MachineState>,
    pub(super) planned: &'e [Planned],
    pub(super) ran: &'e [Duration],
    pub(super) ran_before: Option<&'e [Duration]>,
    pub(super) unproved: Option<&'e str>,
    /// How long the last attempt at a proof took.
    pub(super) latency: Duration,
}

impl Ending<'_> {
    pub(super) fn outcome(&self, end: End) -> Result<RunOutcome, ExecuteError> {
        let mut loops = Vec::new();
        let verdict = match end {
            End::Status(_, 0) | End::Halted => Verdict::Pass,
            End::Status(vcpu, status) => self.died(vcpu, format!("ended with status {status}")),
            End::Fault(_, Fault::Shutdown) if self.end == GuestEnd::Shutdown => Verdict::Pass,
            End::Fault(vcpu, fault) => Verdict::GuestFault(fault::of_kvm(self.program, vcpu, &fault, self.state)),
            End::Stall(Proved { stall, loops: of_each }) => {
                loops = of_each;
                Verdict::Stall(stall)
            }
            End::Failed(error) => return Err(error),
            End::Interrupted => Verdict::Budget { reason: "interrupted".into() },
            End::OverBudget => self.over_budget(),
        };
        let injected = self.injected(&verdict);
        Ok(RunOutcome {
            verdict,
            wall: Duration::ZERO,
            verdict_latency: self.latency,
            mtrr: MtrrOutcome::default(),
            control: ControlOutcome::default(),
            order: OrderOutcome::default(),
            wait0: Wait0Outcome::NotApplicable,
            breaches: Vec::new(),
            residual_waits: 0,
            words: Words::default(),
            slow: None,
            contradictions: Vec::new(),
            proof: ProofOutcome::default(),
            explored: None,
            loops,
            unwatched: None,
            console: console(self.machine.console()),
            vcpu_states: self.summaries(),
            injected,
            log: Vec::new(),
            watch: WatchOutcome::default(),
            dump: None,
            trace: None,
            moment: None,
            interventions: Vec::new(),
        })
    }

    fn died(&self, vcpu: usize, text: String) -> Verdict {
        Verdict::GuestFault(fault::at(self.program, vcpu, text, self.state))
    }

    fn over_budget(&self) -> Verdict {
        let Some(state) = self.state else {
            return Verdict::Starved { reason: "the vCPU threads got too little CPU time to be stopped".into() };
        };
        let starved: Vec<_> = state.vcpus.iter().filter_map(|vcpu| self.starved(vcpu)).collect();
        if !starved.is_empty() {
            return Verdict::Starved { reason: starved.join("; ") };
        }
        let unproved = self.unproved.unwrap_or("no attempt at a proof was made").to_owned();
        let doing = state.vcpus.iter().filter(|vcpu| is_up(vcpu));
        let doing = doing.map(|vcpu| format!("vcpu{} {}", vcpu.index, self.doing(vcpu)));
        Verdict::Budget { reason: [unproved].into_iter().chain(doing).collect::<Vec<_>>().join("; ") }
    }

    /// A vCPU that could have run and that the host did not run.
    fn starved(&self, vcpu: &VcpuState) -> Option<String> {
        let ran = self.ran.get(vcpu.index)?.saturating_sub(*self.ran_before?.get(vcpu.index)?);
        let text =
            || format!("vcpu{} had {} µs of CPU time in the last quarter of the budget", vcpu.index, ran.as_micros());
        (could_run(vcpu) && ran < STARVED_BELOW).then(text)
    }

    fn summaries(&self) -> Vec<VcpuSummary> {
        let summary = |vcpu: &VcpuState| VcpuSummary {
            vcpu: vcpu.index,
            phase: phase(vcpu).into(),
            doing: self.doing(vcpu),
            progress: 0,
            ran: self.ran.get(vcpu.index).copied().unwrap_or_default(),
        };
        self.state.map(|state| state.vcpus.iter().map(summary).collect()).unwrap_or_default()
    }

    /// What a vCPU does, a fragment.
    fn doing(&self, vcpu: &VcpuState) -> String {
        let (Ok(mp_state), Ok(registers)) = (&vcpu.mp_state, &vcpu.registers) else {
            return "is in a state that could not be read".into();
        };
        if !mp_state.is_up() {
            return "was never started".into();
        }
        let place = place(self.program, registers.rip);
        let flag = u8::from(registers.interrupts_enabled());
        let mut text = match mp_state {
            MpState::Halted => format!("halts before {place} with IF={flag}"),
            _ => format!("is at {place}"),
        };
        if let Some(deliverable) = vcpu.deliverable() {
            text.push_str(&format!(", about to take {deliverable}"));
        } else if let Some(held_back) = HeldBack::of(vcpu) {
            text.push_str(&format!(", {held_back}"));
        }
        text
    }

    /// What the host was asked to do. That an NMI is still to come at the end of a budget is its reason, and nothing amiss.
    fn injected(&self, verdict: &Verdict) -> InjectionOutcome {
        let is_over = !matches!(verdict, Verdict::Budget { .. });
        let fault = |planned: &Planned| FaultOutcome {
            what: format!("nmi {}", planned.nmi),
            by: InjectedBy::Host,
            hits: u32::from(planned.sent),
        };
        InjectionOutcome {
            holds: Vec::new(),
            faults: self.planned.iter().filter(|planned| planned.sent || is_over).map(fault).collect(),
        }
    }
}

fn is_up(vcpu: &VcpuState) -> bool {
    vcpu.mp_state.as_ref().is_ok_and(|mp_state| mp_state.is_up())
}

fn phase(vcpu: &VcpuState) -> &'static str {
    match vcpu.mp_state {
        Ok(MpState::Runnable) => "running",
        Ok(MpState::Halted) => "halted",
        Ok(MpState::Uninitialized) => "off",
        Ok(MpState::InitReceived) => "waiting-for-sipi",
        Ok(MpState::SipiReceived) => "starting",
        Ok(MpState::Other(_)) | Err(_) => "unknown",
    }
}

fn console(Console { bytes, dropped }: Console) -> Option<ConsoleOutcome> {
    let text = || String::from_utf8_lossy(&bytes).into_owned();
    (!bytes.is_empty()).then(|| ConsoleOutcome { text: text(), dropped })
}
