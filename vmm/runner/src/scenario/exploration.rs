//! What a scenario expects where all of its schedules are explored: `[[scenario.explore]]`.
//!
//! Beside what is expected of a run it can pin what the search knows: how many states and transitions there are, from how many states
//! no schedule leads to the end, and how many preemptions the shown schedule has. They are the same on every host.

use std::sync::Arc;

use super::Scenario;
use super::compile::{Checked, expectation, vcpus, word};
use super::condition::{Condition, Values};
use super::error::{Problem, ScenarioError};
use super::expectation::{Expectation, Pins};
use super::file;
use super::matrix::Cell;

/// The words of memory models, as [`stallbench_explore::Model`] has them.
const MODELS: [&str; 2] = ["sc", "tso"];
/// The words for when others see a write to the x2APIC's interrupt command register.
const ICR: [&str; 3] = ["ordered", "buffer", "early"];

/// What is expected of a cell under a memory model.
#[derive(Clone, Debug)]
pub struct Exploration {
    /// Words that the model's name has: `tso`, `icr=buffer`.
    model: Vec<String>,
    /// What is expected, where interrupts come at stops.
    pub expectation: Arc<Expectation>,
    /// The same where they come at every instruction: with as many more states, nothing is pinned.
    unpinned: Arc<Expectation>,
    /// Whether it is among those that are explored where nothing is named.
    pub is_default: bool,
}

/// As it is declared: for some cells.
#[derive(Debug)]
pub(super) struct Rule {
    vcpus: Vec<usize>,
    when: Condition,
    model: Vec<String>,
    pins: Pins,
    /// Where that is not what is expected of a run.
    expectation: Option<Expectation>,
    is_default: bool,
    at: usize,
}

impl Exploration {
    /// Whether it is for a search under a model, as that is written: `tso icr=buffer buffer=16`.
    pub fn is_of(&self, model: &str) -> bool {
        let words = model.split_whitespace();
        self.model.iter().all(|word| words.clone().any(|other| other == word))
    }

    /// What is expected of a search under a model that it is for.
    pub fn expected(&self, model: &str) -> &Arc<Expectation> {
        let is_pinned = model.split_whitespace().all(|word| !word.starts_with("irq="));
        if is_pinned { &self.expectation } else { &self.unpinned }
    }

    /// The model that it is for, in words.
    pub fn model(&self) -> String {
        self.model.join(" ")
    }
}

impl Rule {
    pub(super) fn of(
        checked: &Checked,
        scenario: &Scenario,
        rule: &toml::Spanned<file::Exploration>,
    ) -> Result<Self, ScenarioError> {
        let (at, rule) = (rule.span().start, rule.get_ref());
        let problem = |problem| scenario.problem(at..at, problem);
        let model = rule.model.as_ref().map_or(Ok(MODELS[0]), |model| word(scenario, "model", model, &MODELS))?;
        let icr = rule.icr.as_ref().map(|icr| word(scenario, "icr", icr, &ICR)).transpose()?;
        if icr.is_some() && model == MODELS[0] {
            return Err(problem(Problem::OtherModel { what: "icr", model: MODELS[1] }));
        }
        let expected = rule.expect.as_ref();
        Ok(Self {
            vcpus: vcpus(scenario, &rule.vcpus)?,
            when: checked.condition(&rule.when)?,
            model: [model.to_owned()].into_iter().chain(icr.map(|icr| format!("icr={icr}"))).collect(),
            pins: Pins {
                states: rule.states,
                transitions: rule.transitions,
                stuck: rule.stuck,
                preemptions: rule.preemptions,
            },
            expectation: expected.map(|rule| expectation(scenario, rule.get_ref(), rule.span().start)).transpose()?,
            is_default: rule.default,
            at,
        })
    }

    /// What it makes of a cell of which that is expected when it runs; nothing where it is for others.
    pub(super) fn of_cell(&self, values: Values, run: &Expectation) -> Option<Exploration> {
        let is_of = self.vcpus.contains(&values.vcpus) && self.when.holds(values);
        let expected = || self.expectation.as_ref().unwrap_or(run).clone();
        is_of.then(|| Exploration {
            model: self.model.clone(),
            is_default: self.is_default,
            expectation: Arc::new(Expectation { pins: self.pins, ..expected() }),
            unpinned: Arc::new(expected()),
        })
    }
}

impl Checked {
    /// The cells of which the scenario says what exploring them comes to, also where their number of vCPUs is none that it is run with.
    ///
    /// # Errors
    ///
    /// One of these says it of no cell.
    pub fn explored_cells(&self) -> Result<Vec<Cell>, ScenarioError> {
        let mut numbers: Vec<_> = self.explorations.iter().flat_map(|rule| rule.vcpus.iter().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut cells = Vec::new();
        for vcpus in numbers {
            cells.extend(self.cells_at(vcpus)?);
        }
        let is_of = |rule: &Rule, cell: &Cell| {
            rule.of_cell(Values { vcpus: cell.vcpus, raw: &cell.raw }, &cell.expectation).is_some()
        };
        if let Some(rule) = self.explorations.iter().find(|rule| !cells.iter().any(|cell| is_of(rule, cell))) {
            return Err(self.problem(rule.at, Problem::RuleUnused("")));
        }
        cells.retain(|cell| !cell.explorations.is_empty());
        Ok(cells)
    }
}

#[cfg(test)]
mod test {
    use super::super::knobs::Case;
    use super::super::read;
    use super::*;

    const HEAD: &str = "subject = 's'\nabout = ''\n[[scenario]]\nname = 'n'\ncase = 'c'\nstory = ''\nvcpus = [4]\n\
        matrix = { alloc = ['ok', 'fail'] }\n\
        [[scenario.expect]]\nverdict = 'stall'\nkind = 'deadlock'\nbecause = 'x'\n";

    fn cells(body: &str) -> Result<Vec<Cell>, ScenarioError> {
        let case = |name: &str| Ok(Case { name: name.into(), index: 0, knobs: u64::MAX, points: Arc::default() });
        let subject = read("x.toml".into(), format!("{HEAD}{body}").into())?;
        Checked::new(&subject.scenarios[0], &case)?.explored_cells()
    }

    fn error(body: &str) -> String {
        cells(body).unwrap_err().to_string()
    }

    #[test]
    fn cells_that_are_explored_need_not_be_run_and_take_over_what_is_expected_of_a_run() {
        let cells =
            cells("[[scenario.explore]]\nvcpus = [2, 3]\nwhen = { alloc = 'fail' }\nstates = 7\nstuck = 1\n").unwrap();
        let names: Vec<_> = cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(names, ["s/n@vcpus=2,alloc=fail", "s/n@vcpus=3,alloc=fail"]);
        let expected = &cells[0].explorations[0].expectation;
        assert_eq!((expected.verdict, expected.kind), ("stall", Some("deadlock")));
        assert_eq!(expected.pins, Pins { states: Some(7), stuck: Some(1), ..Pins::default() });
    }

    #[test]
    fn exploration_under_another_model_can_expect_something_else() {
        let body = "[[scenario.explore]]\nvcpus = 2\n[[scenario.explore]]\nvcpus = 2\nmodel = 'tso'\nicr = 'buffer'\n\
            [scenario.explore.expect]\nverdict = 'pass'\nbecause = 'y'\n";
        let cell = &cells(body).unwrap()[0];
        let of = |model: &str| {
            let of = cell.explorations.iter().find(|exploration| exploration.is_of(model));
            of.map(|exploration| exploration.expectation.verdict)
        };
        assert_eq!(of("sc"), Some("stall"));
        assert_eq!(of("tso icr=buffer buffer=16"), Some("pass"));
        assert_eq!(of("tso icr=ordered buffer=16"), None);
    }

    #[test]
    fn what_is_pinned_is_pinned_of_interrupts_at_stops() {
        let body = "[[scenario.explore]]\nvcpus = 2\nstates = 7\n\
            [scenario.explore.expect]\nverdict = 'pass'\nbecause = 'y'\n";
        let cell = &cells(body).unwrap()[0];
        let [stops, every] = ["sc", "sc irq=every-insn"].map(|model| {
            let exploration = cell.explorations.iter().find(|exploration| exploration.is_of(model)).unwrap();
            let expected = exploration.expected(model);
            (expected.verdict, expected.pins.states)
        });
        assert_eq!((stops, every), (("pass", Some(7)), ("pass", None)));
    }

    #[test]
    fn exploration_of_no_cell_and_words_that_are_none_are_errors() {
        assert!(error("[[scenario.explore]]\nvcpus = 2\nwhen = { alloc = 'nth:1' }\n").contains("is on no axis"));
        assert!(error("[[scenario.explore]]\nvcpus = 0\n").contains("no number of vCPUs"));
        let message = error("[[scenario.explore]]\nvcpus = 2\nmodel = 'tos'\n");
        assert!(message.contains("unknown model 'tos', expected sc, tso"), "{message}");
        let message = error("[[scenario.explore]]\nvcpus = 2\nicr = 'early'\n");
        assert!(message.ends_with("icr belongs to model 'tso' only"), "{message}");
        assert!(error("[[scenario.explore]]\nstates = 2\n").contains("missing field `vcpus`"));
        let beside = "[[scenario.explore]]\nvcpus = 2\nwhen = { vcpus = 3 }\n";
        assert!(error(beside).contains("3"), "{}", error(beside));
    }
}
