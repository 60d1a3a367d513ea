//! The cells of a checked scenario: every point of its matrix, named, with the expectation that applies to it.

use std::fmt::Write as _;
use std::sync::Arc;

use stallbench_abi::knob::{self, KNOB_SLOTS};

use super::compile::{Axis, Checked};
use super::condition::Values;
use super::error::{Problem, ScenarioError};
use super::expectation::Expectation;
use super::exploration::Exploration;
use super::knobs::Setting;

/// One point of a scenario's matrix.
#[derive(Clone, Debug)]
pub struct Cell {
    /// `subject/name@vcpus=4,alloc=fail`.
    pub name: String,
    /// How many vCPUs it has.
    pub vcpus: usize,
    /// The knobs in its name, in the order of the name.
    pub axes: Vec<Setting>,
    /// Raw value of every knob.
    pub raw: [u64; KNOB_SLOTS],
    /// Number of the rule that applies, from 0 on.
    pub rule: usize,
    /// What that rule expects.
    pub expectation: Arc<Expectation>,
    /// What is expected where all of its schedules are explored, the first of a memory model first.
    pub explorations: Vec<Exploration>,
}

/// Which rules and exclusions have been of use.
struct Used {
    rules: Vec<bool>,
    /// Rules whose condition held for a cell that an earlier rule took.
    shadowed: Vec<bool>,
    exclude: Vec<bool>,
}

impl Checked {
    /// All cells as declared. An expectation or exclusion that is for no cell is an error, and a cell without one.
    pub fn cells(&self) -> Result<Vec<Cell>, ScenarioError> {
        let mut used = Used {
            rules: vec![false; self.rules.len()],
            shadowed: vec![false; self.rules.len()],
            exclude: vec![false; self.exclude.len()],
        };
        let mut cells = Vec::new();
        for (index, vcpus) in self.vcpus.iter().enumerate() {
            self.expand(*vcpus, index, &mut used, &mut cells)?;
        }
        self.check_use(&used)?;
        if cells.is_empty() {
            return Err(self.problem(self.scenario.entry.name.span().start, Problem::NoCells));
        }
        Ok(cells)
    }

    /// The cells at a number of vCPUs that the scenario need not declare.
    pub fn cells_at(&self, vcpus: usize) -> Result<Vec<Cell>, ScenarioError> {
        // Undeclared numbers come behind the declared ones, each always at the same place: the name alone decides the cell.
        let index = self.vcpus.iter().position(|v| *v == vcpus).unwrap_or(self.vcpus.len() + vcpus);
        let mut used = Used {
            rules: vec![false; self.rules.len()],
            shadowed: vec![false; self.rules.len()],
            exclude: vec![false; self.exclude.len()],
        };
        let mut cells = Vec::new();
        self.expand(vcpus, index, &mut used, &mut cells).map_err(|error| self.undeclared(error, vcpus))?;
        Ok(cells)
    }

    fn undeclared(&self, error: ScenarioError, vcpus: usize) -> ScenarioError {
        if let ScenarioError::File { problem, .. } = &error
            && let Problem::NotCovered(cell) = problem.as_ref()
            && !self.vcpus.contains(&vcpus)
        {
            return ScenarioError::NotDeclared { cell: cell.clone(), vcpus };
        }
        error
    }

    fn expand(&self, vcpus: usize, first: usize, used: &mut Used, cells: &mut Vec<Cell>) -> Result<(), ScenarioError> {
        let fixed = self.settings(&self.set, |_, _| 0, vcpus)?;
        let mut point = vec![0; self.matrix.len()];
        loop {
            if let Some(cell) = self.cell(vcpus, first, &fixed, &point, used)? {
                cells.push(cell);
            }
            if !advance(&mut point, &self.matrix) {
                return Ok(());
            }
        }
    }

    fn cell(
        &self,
        vcpus: usize,
        first: usize,
        fixed: &[Setting],
        point: &[usize],
        used: &mut Used,
    ) -> Result<Option<Cell>, ScenarioError> {
        let sum = first + point.iter().sum::<usize>();
        let mut axes = self.settings(&self.matrix, |index, _| point[index], vcpus)?;
        axes.extend(self.settings(&self.alternate, |_, axis| sum % axis.values.len(), vcpus)?);
        let raw = raw_values(fixed.iter().chain(&axes));
        let values = Values { vcpus, raw: &raw };
        if let Some(index) = self.exclude.iter().position(|(_, condition)| condition.holds(values)) {
            used.exclude[index] = true;
            return Ok(None);
        }
        let name = self.cell_name(vcpus, &axes);
        let Some(rule) = self.rule(values, used) else {
            let at = self.scenario.entry.name.span().start;
            return Err(self.problem(at, Problem::NotCovered(name)));
        };
        let expectation = Arc::clone(&self.rules[rule].expectation);
        let explorations = self.explorations.iter().filter_map(|rule| rule.of_cell(values, &expectation)).collect();
        Ok(Some(Cell { name, vcpus, axes, raw, rule, expectation, explorations }))
    }

    fn settings(
        &self,
        axes: &[Axis],
        pick: impl Fn(usize, &Axis) -> usize,
        vcpus: usize,
    ) -> Result<Vec<Setting>, ScenarioError> {
        let setting = |(index, axis): (usize, &Axis)| {
            let text = &axis.values[pick(index, axis)];
            Setting::new(axis.knob, text, vcpus).map_err(|problem| self.problem(axis.at, problem))
        };
        axes.iter().enumerate().map(setting).collect()
    }

    fn cell_name(&self, vcpus: usize, axes: &[Setting]) -> String {
        let mut name = format!("{}@vcpus={vcpus}", self.scenario.name());
        for axis in axes {
            let _ = write!(name, ",{}={}", axis.knob.name, axis.text);
        }
        name
    }

    /// The first rule that applies.
    fn rule(&self, values: Values, used: &mut Used) -> Option<usize> {
        let mut first = None;
        for (index, rule) in self.rules.iter().enumerate() {
            match first {
                None if rule.when.holds(values) => {
                    used.rules[index] = true;
                    first = Some(index);
                }
                Some(_) if !used.rules[index] && !used.shadowed[index] => {
                    used.shadowed[index] = rule.when.holds(values);
                }
                _ => {}
            }
        }
        first
    }

    fn check_use(&self, used: &Used) -> Result<(), ScenarioError> {
        if let Some(index) = used.exclude.iter().position(|used| !used) {
            return Err(self.problem(self.exclude[index].0, Problem::ExclusionUnused));
        }
        if let Some(index) = used.rules.iter().position(|used| !used) {
            let why = if used.shadowed[index] { ": those before it take all of its cells" } else { "" };
            return Err(self.problem(self.rules[index].at, Problem::RuleUnused(why)));
        }
        Ok(())
    }
}

/// Raw value of every knob: its default, unless it is set.
pub(super) fn raw_values<'a>(settings: impl Iterator<Item = &'a Setting>) -> [u64; KNOB_SLOTS] {
    let mut raw = [0; KNOB_SLOTS];
    for knob in knob::ALL {
        raw[knob.number as usize] = knob.default_value();
    }
    for setting in settings {
        raw[setting.knob.number as usize] = setting.raw;
    }
    raw
}

/// The next point, the last axis fastest. False behind the last.
fn advance(point: &mut [usize], axes: &[Axis]) -> bool {
    for (index, axis) in point.iter_mut().zip(axes).rev() {
        *index += 1;
        if *index < axis.values.len() {
            return true;
        }
        *index = 0;
    }
    false
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::scenario::{Case, Scenario, read};

    const HEAD: &str = "subject = 's'\nabout = ''\n[[scenario]]\nname = 'n'\ncase = 'c'\nstory = ''\n";

    fn case(name: &str) -> Result<Case, Problem> {
        Ok(Case { name: name.to_owned(), index: 0, knobs: u64::MAX, points: Arc::default() })
    }

    fn scenario(body: &str) -> Arc<Scenario> {
        Arc::clone(&read("x.toml".into(), format!("{HEAD}{body}").into()).unwrap().scenarios[0])
    }

    fn cells(body: &str) -> Result<Vec<Cell>, ScenarioError> {
        Checked::new(&scenario(body), &case)?.cells()
    }

    fn error(body: &str) -> String {
        cells(body).unwrap_err().to_string()
    }

    const PASS: &str = "[[scenario.expect]]\nverdict = 'pass'\nbecause = 'x'\n";

    #[test]
    fn cells_are_the_product_of_the_axes_in_the_order_written() {
        let body =
            format!("vcpus = [2, 4]\nmatrix = {{ call = ['llist', 'release'], alloc = ['ok', 'nth:1'] }}\n{PASS}");
        let cells = cells(&body).unwrap();
        assert_eq!(cells.len(), 8);
        assert_eq!(cells[0].name, "s/n@vcpus=2,call=llist,alloc=ok");
        assert_eq!(cells[7].name, "s/n@vcpus=4,call=release,alloc=nth:1");
    }

    #[test]
    fn alternating_value_follows_the_parity_and_is_resolved() {
        let body = format!(
            "vcpus = [2, 4]\nmatrix = {{ alloc = ['ok', 'fail'] }}\nalternate = {{ initiator = ['0', 'last'] }}\n{PASS}"
        );
        let names: Vec<_> = cells(&body).unwrap().into_iter().map(|cell| cell.name).collect();
        assert_eq!(
            names,
            [
                "s/n@vcpus=2,alloc=ok,initiator=0",
                "s/n@vcpus=2,alloc=fail,initiator=1",
                "s/n@vcpus=4,alloc=ok,initiator=3",
                "s/n@vcpus=4,alloc=fail,initiator=0"
            ]
        );
    }

    #[test]
    fn first_rule_whose_condition_holds_applies() {
        let body = "vcpus = [2, 3, 8]\nmatrix = { alloc = ['ok', 'nth:1'] }\n\
            [[scenario.expect]]\nwhen = { alloc = 'nth', vcpus = ['3..'] }\nverdict='stall'\nkind='deadlock'\nbecause='x'\n\
            [[scenario.expect]]\nverdict='pass'\nbecause='y'\n";
        let rules: Vec<_> = cells(body).unwrap().iter().map(|cell| cell.rule).collect();
        assert_eq!(rules, [1, 1, 1, 0, 1, 0]);
    }

    #[test]
    fn condition_of_a_rule_is_told_as_written() {
        let body = format!(
            "vcpus = [2, 3]\n[[scenario.expect]]\nwhen = {{ vcpus = '3..' }}\nverdict='pass'\nbecause='x'\n{PASS}"
        );
        let checked = Checked::new(&scenario(&body), &case).unwrap();
        assert_eq!(checked.when(0).collect::<Vec<_>>(), [("vcpus", &["3..".to_owned()][..])]);
        assert_eq!((checked.when(1).count(), checked.when(2).count()), (0, 0));
    }

    #[test]
    fn cell_without_expectation_is_named() {
        let message = error("vcpus = [2, 4]\n[[scenario.expect]]\nwhen = { vcpus = 4 }\nverdict='pass'\nbecause=''\n");
        assert_eq!(message, "x.toml:4:8: no [[scenario.expect]] applies to cell s/n@vcpus=2");
    }

    #[test]
    fn rule_for_no_cell_is_an_error_that_says_when_it_is_shadowed() {
        let message = error(&format!("vcpus = [2]\n{PASS}{PASS}"));
        assert_eq!(message, "x.toml:11:1: this expectation applies to no cell: those before it take all of its cells");
        let message = error(&format!(
            "vcpus = [2]\nset = {{ wait = 1 }}\n[[scenario.expect]]\nwhen = {{ wait = 0 }}\nverdict='pass'\nbecause=''\n{PASS}"
        ));
        assert!(message.contains("'0' is on no axis of this scenario: wait has 1"), "{message}");
    }

    #[test]
    fn excluded_cells_do_not_exist_and_vain_exclusions_are_errors() {
        let axes = "vcpus = [2]\nmatrix = { alloc = ['ok', 'fail'], arch = ['generic', 'own-helper'] }\n";
        let body = format!("{axes}exclude = [{{ arch = 'own-helper', alloc = ['fail'] }}]\n{PASS}");
        assert_eq!(cells(&body).unwrap().len(), 3);
        let body = format!("{axes}exclude = [{{ vcpus = [2], call = 'llist' }}]\n{PASS}");
        assert!(error(&body).ends_with("this exclusion excludes no cell"));
    }

    #[test]
    fn unknown_value_on_an_axis_names_file_and_line() {
        let message = error(&format!("vcpus = [2]\nmatrix = {{ alloc = ['ok', 'fial'] }}\n{PASS}"));
        assert!(message.starts_with("x.toml:8:20: 'fial' is no value of alloc: no such word"), "{message}");
        assert!(message.contains("did you mean fail"), "{message}");
    }

    #[test]
    fn knob_that_is_set_and_on_an_axis_is_an_error() {
        let message = error(&format!("vcpus = [2]\nset = {{ wait = 0 }}\nmatrix = {{ wait = [0, 1] }}\n{PASS}"));
        assert!(message.contains("a second value or axis named 'wait'"), "{message}");
    }

    #[test]
    fn vcpus_of_zero_and_too_many_are_errors() {
        assert!(error(&format!("vcpus = [0]\n{PASS}")).contains("'0' is no number of vCPUs, expected 1 to 255"));
        assert!(error(&format!("vcpus = [256]\n{PASS}")).contains("'256' is no number of vCPUs"));
    }

    #[test]
    fn matrix_beyond_all_measure_is_refused() {
        let numbers: Vec<_> = (1..=64).map(|n| n.to_string()).collect();
        let numbers = numbers.join(", ");
        let body = format!(
            "vcpus = [2]\nmatrix = {{ calls = [{numbers}], bound = [{numbers}], mtrr-size = [{numbers}] }}\n{PASS}"
        );
        assert!(error(&body).contains("262144 cells, more than the 100000"), "{}", error(&body));
    }

    #[test]
    fn undeclared_vcpus_need_a_rule_that_covers_them() {
        let body = "vcpus = [2, 4]\n[[scenario.expect]]\nwhen = { vcpus = [2, 4] }\nverdict='pass'\nbecause=''\n";
        let checked = Checked::new(&scenario(body), &case).unwrap();
        assert_eq!(checked.cells_at(5).unwrap_err().to_string(), "s/n@vcpus=5: no expectation is declared for 5 vCPUs");
        assert_eq!(checked.cells_at(4).unwrap()[0].name, "s/n@vcpus=4");
    }

    #[test]
    fn stall_without_kind_and_misplaced_keys_are_errors() {
        let rule = |text: &str| error(&format!("vcpus = [2]\n[[scenario.expect]]\n{text}\nbecause=''\n"));
        assert!(rule("verdict='stall'").contains("verdict 'stall' needs a kind"));
        assert!(rule("verdict='pass'\nkind='deadlock'").contains("unknown kind 'deadlock', expected none"));
        assert!(rule("verdict='pas'").contains("did you mean pass"));
        assert!(
            rule("verdict='pass'\ncontains='x'")
                .contains("contains belongs to verdict 'guest-fault, inconsistent, breach or budget' only")
        );
    }
}
