//! What a search of all schedules came to.

use core::fmt;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use stallbench_explore::MOST_OWED;

use super::{Words, nanoseconds};
use crate::trace::Recorded;

/// What a search of all schedules knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExploredOutcome {
    /// Every state is known: what is said holds for all schedules.
    pub complete: bool,
    /// The memory model: `sc`, or `tso icr=buffer buffer=256`.
    pub model: String,
    /// States of the machine.
    pub states: usize,
    /// Those of them that were not gone on from.
    pub frontier: usize,
    /// States in which a vCPU could hold back one more store than the model has it do.
    #[serde(skip_serializing_if = "is_nothing")]
    pub full: usize,
    /// All schedules with so many preemptions at most were followed, of a search that does not know all states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<usize>,
    /// Choices that were followed.
    pub transitions: usize,
    /// What KVM was asked for: what a vCPU does from one stop to the next.
    pub passages: u64,
    /// States from which the run can never end: all of them, where all states are known.
    pub stuck: usize,
    /// States in which it is over.
    pub ends: usize,
    /// The named words as the ends have them that were judged, each content once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Words>,
    /// A schedule to the verdict: preemptions, steps, and what happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleOutcome>,
    /// Reports tell what of the way matters.
    #[serde(skip)]
    pub explain: bool,
    /// The way to the verdict, for a trace.
    #[serde(skip)]
    pub recorded: Option<Arc<Recorded>>,
    /// How long the search took.
    #[serde(rename = "took_ns", serialize_with = "nanoseconds")]
    pub took: Duration,
    /// Holds of the scenario that were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Walks that were made in place of a search of all schedules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub walks: Option<WalksOutcome>,
    /// How a search goes on that does not know all states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go_on: Option<GoOn>,
}

/// Walks: one schedule after another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WalksOutcome {
    /// How each chose: `pct`, `random`.
    pub strategy: &'static str,
    /// How many.
    pub walks: u64,
    /// Those that came to no end.
    pub endless: u64,
    /// Who went on in one of them at most: vCPUs, and what was delivered to them.
    pub agents: usize,
    /// Steps of the longest.
    pub steps: usize,
    /// Of how many steps the order has to be met for a bug that is found with that probability; of `pct`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// With which probability each walk finds such a bug at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// How the way was made shorter that found something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimised: Option<MinimisedOutcome>,
}

/// A walk that was made shorter: its schedule is what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MinimisedOutcome {
    /// Its steps, as it was made.
    pub steps: usize,
    /// Its preemptions.
    pub preemptions: usize,
    /// Changes that were tried.
    pub tried: u64,
}

impl fmt::Display for WalksOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { strategy, walks, endless, agents, steps, .. } = self;
        write!(f, "{walks} walks ({strategy}) of up to {steps} steps")?;
        if *endless > 0 {
            write!(f, ", {endless} of them given up on their way")?;
        }
        match (self.depth, self.bound) {
            (Some(depth), Some(bound)) => write!(
                f,
                "; each finds a bug of depth {depth} with a probability of at least 1/({agents}·{steps}^{}) = {bound:.1e}",
                depth.saturating_sub(1)
            ),
            _ => f.write_str("; nothing is known of what they miss"),
        }
    }
}

/// How a search goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoOn {
    /// The file from which.
    pub checkpoint: PathBuf,
    /// The command.
    pub command: String,
}

impl ExploredOutcome {
    /// How far a search came that does not know all states: a fragment.
    pub fn bound(&self) -> String {
        match self.preemptions {
            _ if self.full > 0 => {
                let is_early = self.model.contains("icr=early");
                let early = is_early.then(|| format!(", or send more than {MOST_OWED} interrupts early"));
                let early = early.unwrap_or_default();
                format!("in {} of them a vcpu could hold back more stores than --buffer allows{early}", self.full)
            }
            None => "not complete even without preemptions".to_owned(),
            Some(0) => "complete without preemptions".to_owned(),
            Some(1) => "complete up to 1 preemption".to_owned(),
            Some(most) => format!("complete up to {most} preemptions"),
        }
    }
}

/// A schedule, from the start line on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScheduleOutcome {
    /// How often it leaves a vCPU that could have gone on and got something done.
    pub preemptions: usize,
    /// How many steps it takes.
    pub steps: usize,
    /// After so many of them no schedule leads to the end any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_return: Option<usize>,
    /// What decided it at the last of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turning: Option<TurningOutcome>,
    /// Behind so many of them it goes round: its last step leads to the same state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_from: Option<usize>,
    /// What happens.
    pub legs: Vec<LegOutcome>,
}

/// The last choice at which a run could still come to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TurningOutcome {
    /// What was chosen: `vcpu1 goes on`.
    pub took: String,
    /// What would have saved it: `vcpu1 took vector 0xfb`.
    pub instead: Vec<String>,
}

/// Steps in a row of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LegOutcome {
    /// The vCPU.
    pub vcpu: usize,
    /// Its first step, from 1 on.
    pub first: usize,
    /// Its last step.
    pub last: usize,
    /// What is delivered to it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takes: Option<String>,
    /// A store of its own that others see from here on, which is then all that happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lands: Option<String>,
    /// What it sends before it writes it, which is then all that happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sends: Option<String>,
    /// Where it stands then.
    pub to: String,
}

fn is_nothing(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn search_with_a_full_buffer_is_complete_up_to_no_number_of_preemptions() {
        let full = ExploredOutcome { full: 3, preemptions: Some(1), ..ExploredOutcome::default() };
        assert_eq!(full.bound(), "in 3 of them a vcpu could hold back more stores than --buffer allows");
        assert_eq!(ExploredOutcome { full: 0, ..full }.bound(), "complete up to 1 preemption");
    }
}
