//! A finished run: what came out, and whether that was expected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::oracle::order::{Finding, Step};
use crate::outcome::{RunOutcome, Verdict};
use crate::scenario::{Expectation, Run};

/// A finished run.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// What was run.
    pub run: Run,
    /// What came out.
    pub outcome: RunOutcome,
    /// What of it is not as expected, a fragment each.
    pub differences: Vec<String>,
}

impl RunResult {
    /// Compares an outcome with what its scenario expects.
    pub fn new(run: Run, outcome: RunOutcome) -> Self {
        let run = Run { expectation: Arc::clone(expected(&run, &outcome)), ..run };
        let differences = differences(&run, &outcome);
        Self { run, outcome, differences }
    }

    /// Compares what a free machine came to from a state that was explored under a memory model with what is expected of that.
    pub fn of_explored(run: Run, model: &str, outcome: RunOutcome) -> Self {
        let run = Run { expectation: Arc::clone(expected_under(&run, model)), ..run };
        Self::new(run, outcome)
    }

    /// Whether everything was as expected.
    pub fn is_as_expected(&self) -> bool {
        self.differences.is_empty()
    }
}

/// What is expected of an outcome: of one that was explored what its scenario says of that, if it does.
fn expected<'r>(run: &'r Run, outcome: &RunOutcome) -> &'r Arc<Expectation> {
    outcome.explored.as_ref().map_or(&run.expectation, |explored| expected_under(run, &explored.model))
}

fn expected_under<'r>(run: &'r Run, model: &str) -> &'r Arc<Expectation> {
    let of_model = run.explorations.iter().find(|exploration| exploration.is_of(model));
    of_model.map_or(&run.expectation, |exploration| exploration.expected(model))
}

/// What of an outcome is not as its scenario expects, a fragment each.
pub(crate) fn differences(run: &Run, outcome: &RunOutcome) -> Vec<String> {
    let mut differences = expected(run, outcome).differences(outcome, run.size);
    differences.extend(outcome.injected.problems());
    differences.extend(unseen_order(run, outcome));
    differences
}

/// The steps of MTRR programming that nobody saw, of those that a pass of this scenario says something about.
fn unseen_order(run: &Run, outcome: &RunOutcome) -> Option<String> {
    let mode = run.declared_order.min(outcome.order.mode);
    let shown = |step: &Step| mode.shows(*step) && outcome.verdict == Verdict::Pass;
    let unseen: Vec<_> = outcome.order.steps_that_are(Finding::NotObserved).filter(shown).map(Step::word).collect();
    let why = outcome.order.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    (!unseen.is_empty()).then(|| format!("mtrr order: {} not observed{why}, expected ok", unseen.join(", ")))
}

/// What all runs together came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Runs that were asked for.
    pub asked: usize,
    /// Runs that came to a verdict.
    pub done: usize,
    /// Those of them that were not as expected.
    pub unexpected: usize,
    /// How often each verdict came out, by its word.
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Whether it ended before all was done.
    pub interrupted: bool,
    /// From the first run's start to the end of the last.
    pub wall: Duration,
}

impl Summary {
    /// Counts a result.
    pub fn count(&mut self, result: &RunResult) {
        self.done += 1;
        self.unexpected += usize::from(!result.is_as_expected());
        *self.verdicts.entry(result.outcome.verdict.word()).or_default() += 1;
    }

    /// `12 stall, 3 pass`, in the order of the glossary.
    pub fn verdicts_in_words(&self) -> String {
        let count = |word: &&'static str| self.verdicts.get(word).map(|count| format!("{count} {word}"));
        Verdict::WORDS.iter().filter_map(count).collect::<Vec<_>>().join(", ")
    }
}
