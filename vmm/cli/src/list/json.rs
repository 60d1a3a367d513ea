//! The catalogue as one JSON object, see docs/json.md.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use stallbench_abi::knob::{self, Knob, Values};
use stallbench_runner::report::SCHEMA_VERSION;
use stallbench_runner::scenario::{
    Amount, Axis, Catalogue, Cell, Checked, Exploration, Pattern, Root, Scenario, ScenarioError,
};

use super::words::{patterns_named, rules};
use crate::exit::Failure;
use crate::guest::Guest;

/// What is named, or everything.
pub(super) fn everything(
    catalogue: &Catalogue,
    names: &[String],
    guest: &Guest,
    with_scenarios: bool,
) -> Result<String, Failure> {
    let mut scenarios = Vec::new();
    if names.is_empty() && with_scenarios {
        scenarios.extend(catalogue.scenarios()?);
    }
    for name in names {
        scenarios.extend(catalogue.named(name)?);
    }
    let patterns = patterns_shown(catalogue, names, with_scenarios, &scenarios)?;
    let patterns: Vec<Value> = patterns.iter().map(|p| pattern(catalogue, p)).collect::<Result<_, _>>()?;
    let scenarios: Vec<Value> =
        scenarios.iter().map(|s| scenario(s, &Checked::new(s, &|name| guest.case(name))?)).collect::<Result<_, _>>()?;
    let value = json!({
        "schema_version": SCHEMA_VERSION,
        "patterns": patterns,
        "scenarios": scenarios,
        "cases": cases(guest),
        "knobs": knob::ALL.iter().map(|knob| knob_json(knob)).collect::<Vec<_>>(),
    });
    Ok(format!("{value}\n"))
}

/// All patterns, or those that are named and those that a named scenario shows.
fn patterns_shown<'a>(
    catalogue: &'a Catalogue,
    names: &[String],
    with_scenarios: bool,
    scenarios: &[&Arc<Scenario>],
) -> Result<Vec<&'a Pattern>, ScenarioError> {
    if !with_scenarios {
        return Ok(Vec::new());
    }
    let mut patterns = catalogue.patterns()?;
    if !names.is_empty() {
        let mut ids: HashSet<&str> = scenarios.iter().filter_map(|scenario| scenario.pattern()).collect();
        for name in names {
            ids.extend(patterns_named(catalogue, name)?.iter().map(|pattern| pattern.id()));
        }
        patterns.retain(|pattern| ids.contains(pattern.id()));
    }
    Ok(patterns)
}

fn pattern(catalogue: &Catalogue, pattern: &Pattern) -> Result<Value, ScenarioError> {
    let twins = catalogue.twins(pattern)?;
    let twins: Vec<_> = twins.iter().map(|t| json!({ "bug": t.bug.name(), "fixed": t.fixed.name() })).collect();
    let unless_empty = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    Ok(json!({
        "pattern": pattern.id(),
        "name": pattern.name(),
        "title": pattern.title(),
        "subject": pattern.subject(),
        "when": unless_empty(pattern.when()),
        "story": pattern.story(),
        "fix": unless_empty(pattern.fix()),
        "step": pattern.step(),
        "scenarios": catalogue.scenarios_of(pattern)?.iter().map(|scenario| scenario.name()).collect::<Vec<_>>(),
        "twins": twins,
    }))
}

fn scenario(scenario: &Scenario, checked: &Checked) -> Result<Value, ScenarioError> {
    let cells = checked.cells()?;
    let expectations: Vec<Value> = rules(&cells).into_iter().map(|rule| expectation(checked, &cells, &rule)).collect();
    Ok(json!({
        "scenario": scenario.name(),
        "subject": scenario.subject(),
        "case": scenario.case(),
        "story": scenario.story(),
        "pattern": scenario.pattern(),
        "groups": scenario.groups().collect::<Vec<_>>(),
        "default": scenario.is_default(),
        "vcpus": checked.vcpus,
        "set": axes(&checked.set),
        "matrix": axes(&checked.matrix),
        "alternate": axes(&checked.alternate),
        "order": scenario.order(),
        "holds": checked.injection.holds().collect::<Vec<_>>(),
        "faults": checked.injection.faults().map(|(by, what)| json!({ "what": what, "by": by })).collect::<Vec<_>>(),
        "expectations": expectations,
        "explored": checked.explored_cells()?.iter().flat_map(explored).collect::<Vec<_>>(),
    }))
}

/// What exploring a cell comes to, for each memory model.
fn explored(cell: &Cell) -> Vec<Value> {
    let of_model = |exploration: &Exploration| {
        let expectation = &exploration.expectation;
        json!({
            "cell": cell.name,
            "model": exploration.model(),
            "verdict": expectation.verdict,
            "kind": expectation.kind,
            "states": expectation.pins.states,
            "transitions": expectation.pins.transitions,
            "stuck": expectation.pins.stuck,
            "preemptions": expectation.pins.preemptions,
            "because": expectation.because,
        })
    };
    cell.explorations.iter().map(of_model).collect()
}

fn axes(axes: &[Axis]) -> Value {
    axes.iter().map(|axis| (axis.knob.name.to_owned(), json!(axis.values))).collect::<Map<_, _>>().into()
}

fn expectation(checked: &Checked, cells: &[Cell], rule: &[usize]) -> Value {
    let expectation = &cells[rule[0]].expectation;
    let words: Map<_, _> =
        expectation.words.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
    let when: Map<_, _> =
        checked.when(cells[rule[0]].rule).map(|(name, values)| (name.to_owned(), values.into())).collect();
    let amount = |amount: Option<Amount>| amount.map(|amount| amount.to_string());
    json!({
        "when": when,
        "verdict": expectation.verdict,
        "kind": expectation.kind,
        "strength": expectation.strength,
        "culprit": match &expectation.culprit {
            Root::Any => Value::Null,
            Root::Nobody => "none".into(),
            Root::Site(site) => site.as_str().into(),
        },
        "culprit_vcpu": amount(expectation.culprit_vcpu),
        "words": words,
        "residual_waits": amount(expectation.residual_waits),
        "contains": expectation.contains,
        "because": expectation.because,
        "cells": rule.iter().map(|index| cells[*index].name.as_str()).collect::<Vec<_>>(),
    })
}

fn cases(guest: &Guest) -> Vec<Value> {
    let case = |info: &stallbench_state::program::CaseInfo| {
        let knobs: Vec<_> = knob::ALL.iter().filter(|knob| info.takes(knob.number)).map(|knob| knob.name).collect();
        json!({ "case": info.name, "summary": info.summary, "knobs": knobs })
    };
    guest.program().cases().iter().map(case).collect()
}

fn knob_json(knob: &Knob) -> Value {
    let values = match knob.values {
        Values::Words(words) => words
            .iter()
            .map(|word| json!({ "word": word.word, "takes_number": word.takes_number(), "what": word.what }))
            .collect(),
        Values::Number { default, min, max } => json!({ "default": default, "min": min, "max": max }),
        Values::Vcpu => json!("vcpu"),
    };
    json!({ "knob": knob.name, "what": knob.what, "values": values })
}
