//! Outcomes made up for unit tests.

use core::time::Duration;

use crate::outcome::{MtrrOutcome, RunOutcome, Verdict, Wait0Outcome, WatchOutcome, Words};

pub(crate) fn outcome(verdict: Verdict) -> RunOutcome {
    RunOutcome {
        verdict,
        wall: Duration::from_millis(38),
        verdict_latency: Duration::from_micros(2_500),
        mtrr: MtrrOutcome { consistent: Some(true), changed: Some(false), problems: vec![] },
        wait0: Wait0Outcome::Kept,
        residual_waits: 0,
        words: Words::default(),
        contradictions: vec![],
        vcpu_states: vec![],
        log: vec![],
        watch: WatchOutcome::default(),
    }
}
