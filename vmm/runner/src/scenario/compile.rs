//! From a declared scenario to a checked one: every name and value in it is known to the contract and to the case.

use std::sync::Arc;

use stallbench_abi::knob::Knob;
use toml::Spanned;

use super::amount::Amount;
use super::condition::{Condition, Span, Term};
use super::error::{Problem, ScenarioError};
use super::expectation::{Expectation, Pins, Root, kinds_of};
use super::exploration;
use super::file;
use super::injection::Injection;
use super::knobs::{Case, ValuePattern};
use super::{Scenario, file::Texts};
use crate::nearest::did_you_mean;
use crate::oracle::order::Mode;
use crate::outcome::{Strength, Verdict};

/// Most cells of a scenario.
const MOST_CELLS: usize = 100_000;

/// A scenario whose names and values are all known.
#[derive(Debug)]
pub struct Checked {
    /// As declared.
    pub scenario: Arc<Scenario>,
    /// The case that it runs.
    pub case: Case,
    /// The numbers of vCPUs: the first axis.
    pub vcpus: Vec<usize>,
    /// Axes that are multiplied, in the order written.
    pub matrix: Vec<Axis>,
    /// Axes whose value is picked by the parity of the cell.
    pub alternate: Vec<Axis>,
    /// Where vCPUs are held, and what goes wrong.
    pub injection: Injection,
    /// How the order of MTRR programming is looked at.
    pub order: Mode,
    /// Knobs that are the same in every cell.
    pub set: Vec<Axis>,
    pub(super) exclude: Vec<(usize, Condition)>,
    pub(super) rules: Vec<Rule>,
    pub(super) explorations: Vec<exploration::Rule>,
}

/// A knob and its values.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Which knob.
    pub knob: &'static Knob,
    /// Its values, as written.
    pub values: Vec<String>,
    /// Where the values stand in the file.
    pub(super) at: usize,
}

/// An expectation and the cells that it is for.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) when: Condition,
    pub(super) expectation: Arc<Expectation>,
    pub(super) at: usize,
}

impl Checked {
    /// Checks a scenario. `case_named` looks a case up in the image that will run.
    pub fn new(
        scenario: &Arc<Scenario>,
        case_named: &dyn Fn(&str) -> Result<Case, Problem>,
    ) -> Result<Self, ScenarioError> {
        let entry = &scenario.entry;
        let case = case_named(entry.case.get_ref()).map_err(|p| scenario.problem(entry.case.span(), p))?;
        let vcpus = vcpus(scenario, &entry.vcpus)?;
        let set = axes(scenario, &case, &entry.set)?;
        if let Some(axis) = set.iter().find(|axis| axis.values.len() != 1) {
            return Err(scenario.problem(axis.at..axis.at, Problem::NotOne(axis.values.len())));
        }
        let matrix = axes(scenario, &case, &entry.matrix)?;
        let alternate = axes(scenario, &case, &entry.alternate)?;
        once(scenario, [&set, &matrix, &alternate])?;
        let cells = matrix.iter().fold(vcpus.len(), |cells, axis| cells.saturating_mul(axis.values.len()));
        if cells > MOST_CELLS {
            return Err(scenario.problem(entry.name.span(), Problem::TooManyCells(cells, MOST_CELLS)));
        }
        let mut checked = Self {
            scenario: Arc::clone(scenario),
            case,
            vcpus,
            matrix,
            alternate,
            injection: injection(scenario)?,
            order: order(scenario)?,
            set,
            exclude: vec![],
            rules: vec![],
            explorations: vec![],
        };
        for pairs in &entry.exclude {
            let condition = checked.condition(pairs.get_ref())?;
            checked.exclude.push((pairs.span().start, condition));
        }
        for rule in &entry.expect {
            let when = checked.condition(&rule.get_ref().when)?;
            let expectation = Arc::new(expectation(scenario, rule.get_ref(), rule.span().start)?);
            checked.rules.push(Rule { when, expectation, at: rule.span().start });
        }
        for rule in &entry.explore {
            let rule = exploration::Rule::of(&checked, scenario, rule)?;
            checked.explorations.push(rule);
        }
        Ok(checked)
    }

    /// The condition of an expectation, as written: names and the values that each may have. Of one that there is not: nothing.
    pub fn when(&self, rule: usize) -> impl Iterator<Item = (&str, &[String])> {
        let rule = self.scenario.entry.expect.get(rule);
        let pairs = rule.into_iter().flat_map(|rule| &rule.get_ref().when.0);
        pairs.map(|(name, values)| (name.get_ref().as_str(), values.get_ref().0.as_slice()))
    }

    pub(super) fn problem(&self, at: usize, problem: Problem) -> ScenarioError {
        self.scenario.problem(at..at, problem)
    }

    pub(super) fn condition(&self, pairs: &file::Pairs) -> Result<Condition, ScenarioError> {
        let mut condition = Condition::default();
        for (name, values) in &pairs.0 {
            let term = Term::parse(&self.case, name.get_ref(), &values.get_ref().0)
                .and_then(|term| self.on_axis(&term).map(|()| term))
                .map_err(|problem| self.scenario.problem(values.span(), problem))?;
            condition.terms.push(term);
        }
        Ok(condition)
    }

    /// A value that no cell has is a slip of the pen.
    fn on_axis(&self, term: &Term) -> Result<(), Problem> {
        match term {
            Term::Vcpus(spans) => spans.iter().try_for_each(|span| self.vcpus_on_axis(*span)),
            Term::Knob(knob, patterns) => patterns.iter().try_for_each(|(text, pattern)| {
                let Some(axis) = self.axis(knob) else { return Ok(()) };
                if self.fits_axis(axis, *pattern) {
                    return Ok(());
                }
                Err(Problem::OffAxis { knob: knob.name.into(), value: text.clone(), values: axis.values.join(", ") })
            }),
        }
    }

    fn vcpus_on_axis(&self, span: Span) -> Result<(), Problem> {
        if self.vcpus.iter().any(|vcpus| span.contains(*vcpus)) {
            return Ok(());
        }
        let values: Vec<_> = self.vcpus.iter().map(usize::to_string).collect();
        Err(Problem::OffAxis { knob: "vcpus".into(), value: span.from.to_string(), values: values.join(", ") })
    }

    fn fits_axis(&self, axis: &Axis, pattern: ValuePattern) -> bool {
        let fits = |vcpus, text| axis.knob.parse(text, vcpus).is_ok_and(|raw| pattern.fits(raw, vcpus));
        self.vcpus.iter().any(|vcpus| axis.values.iter().any(|text| fits(*vcpus, text)))
    }

    fn axis(&self, knob: &Knob) -> Option<&Axis> {
        self.set.iter().chain(&self.matrix).chain(&self.alternate).find(|axis| axis.knob.number == knob.number)
    }
}

/// Each list by itself first, so that a message names the entry.
fn injection(scenario: &Scenario) -> Result<Injection, ScenarioError> {
    let entry = &scenario.entry;
    for hold in &entry.holds {
        Injection::parse(&[hold.get_ref()], &[]).map_err(|problem| scenario.problem(hold.span(), problem))?;
    }
    for fault in &entry.faults {
        Injection::parse(&[], &[fault.get_ref()]).map_err(|problem| scenario.problem(fault.span(), problem))?;
    }
    let holds: Vec<_> = entry.holds.iter().map(|text| text.get_ref().as_str()).collect();
    let faults: Vec<_> = entry.faults.iter().map(|text| text.get_ref().as_str()).collect();
    Injection::parse(&holds, &faults).map_err(|problem| scenario.problem(entry.name.span(), problem))
}

fn order(scenario: &Scenario) -> Result<Mode, ScenarioError> {
    let Some(text) = &scenario.entry.order else { return Ok(Mode::Off) };
    let found = word(scenario, "order", text, &Mode::ALL.map(Mode::word))?;
    Ok(Mode::ALL.into_iter().find(|mode| mode.word() == found).unwrap_or_default())
}

pub(super) fn vcpus(scenario: &Scenario, values: &Spanned<Texts>) -> Result<Vec<usize>, ScenarioError> {
    let problem = |problem| scenario.problem(values.span(), problem);
    let texts = &values.get_ref().0;
    if texts.is_empty() {
        return Err(problem(Problem::Empty("vcpus")));
    }
    let mut vcpus = Vec::with_capacity(texts.len());
    for text in texts {
        let number = match Span::parse(text) {
            Ok(span) if span.from == span.to => span.from,
            _ => return Err(problem(Problem::BadVcpus(text.clone()))),
        };
        if vcpus.contains(&number) {
            return Err(problem(Problem::Duplicate { what: "value of vcpus", name: text.clone() }));
        }
        vcpus.push(number);
    }
    Ok(vcpus)
}

fn axes(scenario: &Scenario, case: &Case, pairs: &file::Pairs) -> Result<Vec<Axis>, ScenarioError> {
    let axis = |(name, values): &(Spanned<String>, Spanned<Texts>)| {
        let knob = case.knob(name.get_ref()).map_err(|problem| scenario.problem(name.span(), problem))?;
        let texts = values.get_ref().0.clone();
        let problem = |problem| scenario.problem(values.span(), problem);
        if texts.is_empty() {
            return Err(problem(Problem::Empty("this axis")));
        }
        for (index, text) in texts.iter().enumerate() {
            if texts[..index].contains(text) {
                return Err(problem(Problem::Duplicate { what: "value of this axis", name: text.clone() }));
            }
        }
        Ok(Axis { knob, values: texts, at: values.span().start })
    };
    pairs.0.iter().map(axis).collect()
}

fn once(scenario: &Scenario, lists: [&Vec<Axis>; 3]) -> Result<(), ScenarioError> {
    let mut seen = 0_u64;
    for axis in lists.into_iter().flatten() {
        let bit = 1 << axis.knob.number;
        if seen & bit != 0 {
            let problem = Problem::Duplicate { what: "value or axis", name: axis.knob.name.to_owned() };
            return Err(scenario.problem(axis.at..axis.at, problem));
        }
        seen |= bit;
    }
    Ok(())
}

pub(super) fn expectation(scenario: &Scenario, rule: &file::Rule, at: usize) -> Result<Expectation, ScenarioError> {
    let verdict = word(scenario, "verdict", &rule.verdict, &Verdict::WORDS)?;
    let kinds = kinds_of(verdict);
    let kind = rule.kind.as_ref().map(|kind| word(scenario, "kind", kind, &kinds)).transpose()?;
    let problem = |problem| scenario.problem(at..at, problem);
    if verdict == "stall" && kind.is_none() {
        return Err(problem(Problem::Missing { verdict: "stall", what: "a kind" }));
    }
    if rule.contains.is_some() && !["guest-fault", "inconsistent", "breach", "budget"].contains(&verdict) {
        return Err(problem(Problem::Misplaced {
            what: "contains",
            verdict: "guest-fault, inconsistent, breach or budget",
        }));
    }
    if rule.culprit.is_some() && kinds.is_empty() {
        return Err(problem(Problem::Misplaced { what: "culprit", verdict: "stall" }));
    }
    Ok(Expectation {
        verdict,
        kind,
        strength: strength(scenario, verdict, rule.strength.as_ref())?,
        culprit: root(rule.culprit.as_ref()),
        culprit_vcpu: amount(scenario, rule.culprit_vcpu.as_ref())?,
        words: words(scenario, &rule.words)?,
        residual_waits: amount(scenario, rule.residual_waits.as_ref())?,
        contains: rule.contains.as_ref().map(|text| text.get_ref().clone()),
        pins: Pins::default(),
        because: rule.because.trim().to_owned(),
    })
}

pub(super) fn word(
    scenario: &Scenario,
    what: &'static str,
    text: &Spanned<String>,
    words: &[&'static str],
) -> Result<&'static str, ScenarioError> {
    words.iter().copied().find(|word| word == text.get_ref()).ok_or_else(|| {
        let problem = Problem::UnknownWord {
            what,
            word: text.get_ref().clone(),
            expected: if words.is_empty() { "none with this verdict".into() } else { words.join(", ") },
            nearest: did_you_mean(text.get_ref(), words.iter().copied()),
        };
        scenario.problem(text.span(), problem)
    })
}

/// The strength that is declared; a stall is to be proved unless it says otherwise.
fn strength(scenario: &Scenario, verdict: &str, text: Option<&Spanned<String>>) -> Result<Strength, ScenarioError> {
    let Some(text) = text else {
        return Ok(if verdict == "stall" { Strength::Proved } else { Strength::Observed });
    };
    let words = Strength::ALL.map(Strength::word);
    let found = word(scenario, "strength", text, &words)?;
    Ok(Strength::ALL.into_iter().find(|strength| strength.word() == found).unwrap_or(Strength::Observed))
}

fn root(text: Option<&Spanned<String>>) -> Root {
    match text.map(|text| text.get_ref().as_str()) {
        None => Root::Any,
        Some("none") => Root::Nobody,
        Some(site) => Root::Site(site.to_owned()),
    }
}

fn amount(scenario: &Scenario, value: Option<&Spanned<Texts>>) -> Result<Option<Amount>, ScenarioError> {
    value.map(|value| one_amount(value).map_err(|problem| scenario.problem(value.span(), problem))).transpose()
}

fn words(scenario: &Scenario, pairs: &file::Pairs) -> Result<Vec<(String, Amount)>, ScenarioError> {
    let amount = |(name, value): &(Spanned<String>, Spanned<Texts>)| {
        let amount = one_amount(value).map_err(|problem| scenario.problem(value.span(), problem))?;
        Ok((name.get_ref().clone(), amount))
    };
    pairs.0.iter().map(amount).collect()
}

fn one_amount(value: &Spanned<Texts>) -> Result<Amount, Problem> {
    match value.get_ref().0.as_slice() {
        [text] => Amount::parse(text),
        list => Err(Problem::NotOne(list.len())),
    }
}
