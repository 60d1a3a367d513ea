//! What attempts at a proof came to.

use core::time::Duration;
use std::sync::Arc;

use serde::Serialize;
use stallbench_stall::code::Code;
use stallbench_stall::proof::{Proof, Unproved};

use super::nanoseconds;

/// What attempts at a proof came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProofOutcome {
    /// How many were made.
    pub attempts: u64,
    /// Instructions that the last one stepped.
    pub steps: usize,
    /// States of the machine that the proof is about: all combinations of those of its components. In JSON if a number of 64
    /// bits holds them.
    #[serde(skip_serializing_if = "is_no_number")]
    pub states: Option<u128>,
    /// How long the machine stood still for the last attempt, in nanoseconds.
    #[serde(rename = "took_ns", serialize_with = "nanoseconds")]
    pub took: Duration,
    /// How long it stood still for all of them, in nanoseconds.
    #[serde(rename = "took_in_all_ns", serialize_with = "nanoseconds")]
    pub took_in_all: Duration,
    /// Why the last one came to no proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unproved: Option<String>,
    /// Memory that vCPUs pass to each other changes for ever.
    #[serde(skip)]
    pub livelock: bool,
    /// The proof itself.
    #[serde(skip)]
    pub proof: Option<Arc<Proof>>,
}

/// Whether JSON has no number for it.
fn is_no_number(states: &Option<u128>) -> bool {
    states.is_none_or(|states| states > u64::MAX.into())
}

impl ProofOutcome {
    /// Whether none was tried.
    pub fn is_empty(&self) -> bool {
        self.attempts == 0
    }

    /// Takes in what came of an attempt: whether it is a proof.
    pub fn note(&mut self, result: Result<Proof, Unproved>, took: Duration, code: &dyn Code) -> bool {
        self.attempts += 1;
        (self.took, self.took_in_all) = (took, self.took_in_all + took);
        match result {
            Ok(proof) => {
                (self.steps, self.livelock, self.unproved) = (proof.steps, proof.livelock, None);
                self.states = Some(proof.states());
                self.proof = Some(Arc::new(proof));
                true
            }
            Err(unproved) => {
                self.unproved = Some(unproved.told(code));
                false
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// 255 vCPUs in a loop of eight instructions have 2^765 states.
    #[test]
    fn states_beyond_any_number_of_json_are_left_out_of_it() {
        let json = |states| serde_json::to_value(ProofOutcome { states: Some(states), ..ProofOutcome::default() });
        assert_eq!(json(4096).expect("a number")["states"], 4096);
        assert_eq!(json(u128::MAX).expect("no number").get("states"), None);
    }
}
