//! Looking at the machine of a run: copies of it, counters, and proofs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stallbench_core::{Capture, Paused};
use stallbench_debug::live::LiveError;
use stallbench_stall::proof::{Question, Unproved};
use stallbench_stall::report::Stall;
use stallbench_stall::{Analysis, kind_without_waits, proved};
use stallbench_state::dump::Dump;

use super::Opened;
use super::bench::{Bench, Done};
use super::guest::Guest;
use crate::dump::Moment;
use crate::execute::proof::{Reach, prove};
use crate::execute::stop::Captured;
use crate::outcome::{ProofOutcome, StallKind, Strength};
use crate::report::human::{states, time};

/// How long attempts at a proof are made, each deeper than the one before.
const PROVING: Duration = Duration::from_secs(2);

impl Bench<'_> {
    /// A copy of the machine.
    pub(super) fn look(&mut self) -> Done<Dump> {
        let Moment { machine, memory } = self.stopped(|_, paused| Moment::of(paused))?;
        let about = self.door.as_ref().map(Opened::about).unwrap_or_default();
        Ok(Dump { about, machine, memory, payload: self.guest.bytes().to_vec() })
    }

    /// Tries to prove that the machine goes nowhere any more. Its vCPUs are then where they could have come by themselves.
    pub(super) fn prove(&mut self) -> Done<(String, Value)> {
        self.standing()?;
        self.stopped(|bench, paused| bench.proof(paused))
    }

    fn proof(&self, paused: &Paused<'_>) -> (String, Value) {
        let (mut proof, mut reach, began) = (ProofOutcome::default(), Reach::default(), Instant::now());
        loop {
            let question = Question {
                machine: paused.capture(Capture::Control),
                ghost: self.guest.ghost(self.machine),
                host_action: None,
                kept_out: self.kept_out.iter().collect(),
                limits: reach.limits,
            };
            let attempt = prove(paused, self.machine, question);
            let is_shallow = matches!(attempt.result, Err(Unproved::Changing { .. } | Unproved::TooMany { .. }));
            let is_last = began.elapsed() + 4 * attempt.took > PROVING || !reach.extends();
            if proof.note(attempt.result, attempt.took, self.guest.code()) {
                return self.told_proof(paused, &proof);
            }
            if !is_shallow || is_last {
                let why = proof.unproved.clone().unwrap_or_default();
                let text = format!("not proved: {why} ({} steps, {})\n", proof.steps, time(proof.took_in_all));
                return (text, json!({"proved": false, "proof": proof}));
            }
            reach.extend();
        }
    }

    /// What a proof is about, and what stands still.
    fn told_proof(&self, paused: &Paused<'_>, proof: &ProofOutcome) -> (String, Value) {
        let of = states(proof.states.unwrap_or_default());
        let took = time(proof.took);
        let closed = format!("{of}, closed under every order of the vCPUs ({} steps, {took})", proof.steps);
        match self.stall(paused, proof.livelock) {
            None => {
                let text = format!("proved: every vCPU has done its part and rests; {closed}\n");
                (text, json!({"proved": true, "at_rest": true, "proof": proof}))
            }
            Some(stall) => {
                let culprit = stall.culprit.as_ref().map_or_else(String::new, |culprit| {
                    format!("  culprit: vcpu{} in {}: {}\n", culprit.vcpu, culprit.site, culprit.reason)
                });
                let text = format!("proved: {}, nothing can go on; {closed}\n{culprit}", stall.kind);
                (text, json!({"proved": true, "at_rest": false, "stall": stall, "proof": proof}))
            }
        }
    }

    /// The stall of a machine that goes nowhere; `None`: it has nowhere to go.
    fn stall(&self, paused: &Paused<'_>, livelock: bool) -> Option<Stall> {
        let captured = Captured::of(paused, self.machine, Capture::Control, self.kept_out);
        let Guest::Contract(program, _) = self.guest else {
            let kind = if livelock { StallKind::Livelock } else { kind_without_waits(&captured.machine.vcpus) };
            return Some(Stall {
                kind,
                strength: Strength::Proved,
                culprit: None,
                root: Vec::new(),
                waits: Vec::new(),
            });
        };
        let analysis: Analysis<'_> = captured.analysis(self.machine, program);
        (!analysis.is_quiescent()).then(|| proved(&analysis, livelock))
    }
}

impl Bench<'_> {
    /// What KVM counts of each vCPU.
    pub(super) fn statistics(&self) -> Done<Vec<Vec<(String, u64)>>> {
        let uncounted = self.door.as_ref().and_then(|door| door.uncounted.as_deref());
        self.machine.statistics().ok_or_else(|| LiveError::Refused(no_statistics(uncounted)))
    }
}

/// Why there is nothing that KVM counts: what the host failed with, or that it keeps none.
fn no_statistics(failed: Option<&str>) -> String {
    match failed {
        Some(error) => format!("failed to open what kvm counts of each vcpu: {error}"),
        None => "this host does not say what kvm counts of a vcpu".into(),
    }
}
