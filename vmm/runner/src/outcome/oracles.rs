//! What the oracles say.

use serde::Serialize;
use serde::ser::Serializer;

use crate::oracle::order::{Finding, Mode, Step};

/// What the MTRR oracle says about the state that KVM reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MtrrOutcome {
    /// Whether all vCPUs that came up agree, hold valid values, and those that the scenario programmed. `None`: not read.
    pub consistent: Option<bool>,
    /// Whether the state differs from that at start. `None`: not read.
    pub changed: Option<bool>,
    /// What is wrong, a line each, bounded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The types of all memory, a region each, bounded; of runs that program a whole layout, where all vCPUs agree.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
}

/// What the oracle of the control registers says at the end of a run that came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ControlOutcome {
    /// Whether all vCPUs that came up agree on CR0.CD and CR4.PGE. `None`: the run did not come to its end, or they were not read.
    pub consistent: Option<bool>,
    /// What differs, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What the oracle of the order of MTRR programming says, of all vCPUs together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OrderOutcome {
    /// How it was looked at.
    pub mode: Mode,
    /// Accesses to MTRRs that were seen.
    pub accesses: u64,
    /// Instructions that were executed step by step.
    pub instructions: u64,
    /// Times that a vCPU was followed through the procedure, step by step.
    pub procedures: u64,
    /// What is known of each step of the manual.
    #[serde(serialize_with = "steps")]
    pub steps: Vec<(Step, Finding)>,
    /// What was violated: the first of each step and vCPU, bounded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<String>,
    /// Why less was seen than the mode shows, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Default for OrderOutcome {
    /// Nobody looked.
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            accesses: 0,
            instructions: 0,
            procedures: 0,
            steps: Step::ALL.into_iter().map(|step| (step, Finding::NotObserved)).collect(),
            violations: Vec::new(),
            reason: None,
        }
    }
}

impl OrderOutcome {
    /// The steps of which this is known.
    pub fn steps_that_are(&self, finding: Finding) -> impl Iterator<Item = Step> {
        self.steps.iter().filter(move |(_, found)| *found == finding).map(|(step, _)| *step)
    }
}

fn steps<S: Serializer>(steps: &[(Step, Finding)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(steps.iter().map(|(step, finding)| (step.word(), finding)))
}

/// What the oracle of the wait=0 contract says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wait0Outcome {
    /// No call with wait=0 waited for its own callback.
    Kept,
    /// One did.
    Broken,
    /// Events were lost, so it cannot be known.
    NotObserved,
    /// The guest keeps no contract.
    NotApplicable,
}
