//! Outcomes made up for unit tests.

use core::time::Duration;
use std::sync::Arc;

use stallbench_state::machine::{Unread, VcpuState};

use crate::oracle::order::Mode;
use crate::outcome::{
    ControlOutcome, InjectionOutcome, MtrrOutcome, OrderOutcome, ProofOutcome, RunOutcome, Verdict, Wait0Outcome,
    WatchOutcome, Words,
};
use crate::scenario::{Expectation, Run, Selection, Size};

/// The number of vCPUs, and the place in its selection, of the run that tests cut short.
pub(crate) const CUT: usize = 20;

pub(crate) fn outcome(verdict: Verdict) -> RunOutcome {
    RunOutcome {
        proof: ProofOutcome::default(),
        explored: None,
        verdict,
        wall: Duration::from_millis(38),
        verdict_latency: Duration::from_micros(2_500),
        mtrr: MtrrOutcome { consistent: Some(true), changed: Some(false), ..MtrrOutcome::default() },
        control: ControlOutcome { consistent: Some(true), problems: vec![] },
        wait0: Wait0Outcome::Kept,
        breaches: vec![],
        residual_waits: 0,
        words: Words::default(),
        slow: None,
        contradictions: vec![],
        vcpu_states: vec![],
        loops: vec![],
        unwatched: None,
        console: None,
        order: OrderOutcome::default(),
        injected: InjectionOutcome::default(),
        log: vec![],
        watch: WatchOutcome::default(),
        dump: None,
        trace: None,
        moment: None,
        interventions: Vec::new(),
    }
}

/// Runs that shall pass; each has as many vCPUs as its place says.
pub(crate) fn selection(count: usize) -> Selection {
    Selection { cells: (0..count).map(run).collect(), repeat: 1 }
}

/// A vCPU of which nothing was read.
pub(crate) fn vcpu() -> VcpuState {
    let unread = || Unread { what: "registers".into(), reason: "not needed".into() };
    VcpuState {
        index: 0,
        registers: Err(unread()),
        system: Err(unread()),
        apic: Err(unread()),
        events: Err(unread()),
        mp_state: Err(unread()),
        mtrr: None,
        msrs: None,
        ran: Duration::ZERO,
    }
}

pub(crate) fn run(vcpus: usize) -> Run {
    Run {
        scenario: "call/sample".into(),
        name: format!("call/sample@vcpus={vcpus}").into(),
        case: 0,
        case_name: "sample".into(),
        vcpus,
        knobs: [0; 64],
        set: vec![],
        seed: 0,
        repetition: 0,
        layout: None,
        alternating: 0,
        injected: Arc::default(),
        order: Mode::Off,
        declared_order: Mode::Off,
        expectation: Arc::new(Expectation::pass("made up")),
        explorations: Arc::default(),
        size: Size { vcpus, initiator: 0 },
    }
}
