//! A group of scenarios as Markdown: every cell with what is expected of it and why. docs/table.md is this text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::catalogue::Catalogue;
use super::compile::{Axis, Checked};
use super::error::{Problem, ScenarioError};
use super::expectation::{Expectation, phrase};
use super::knobs::Case;
use super::matrix::Cell;

/// The scenarios of a subject, a group or a name as Markdown.
///
/// # Errors
///
/// The name is unknown, or one of its scenarios is wrong.
pub fn markdown(
    catalogue: &Catalogue,
    name: &str,
    case_named: &dyn Fn(&str) -> Result<Case, Problem>,
) -> Result<String, ScenarioError> {
    let mut sections = String::new();
    let mut total = 0;
    let mut verdicts: BTreeMap<String, usize> = BTreeMap::new();
    for scenario in catalogue.named(name)? {
        let checked = Checked::new(scenario, case_named)?;
        let cells = checked.cells()?;
        total += cells.len();
        for cell in &cells {
            *verdicts.entry(expected_in_words(&cell.expectation)).or_default() += 1;
        }
        section(&mut sections, &checked, &cells);
    }
    let counts: Vec<_> = verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    Ok(format!(
        "# What is expected of the cells of `{name}`, and why\n\n\
         <!-- Made by `stallbench list --markdown {name}`. Change the scenarios in fixtures/scenarios, not this file. -->\n\n\
         {total} cells: {}. A number in parentheses leads to the expectation and its reason below the table; where the number\n\
         of vCPUs makes a difference, it stands before the verdict. Each cell is a scenario of its own:\n\
         `stallbench run 'SCENARIO@vcpus=N,KNOB=VALUE,…'`.\n{sections}",
        counts.join(", ")
    ))
}

fn section(text: &mut String, checked: &Checked, cells: &[Cell]) {
    let _ = write!(text, "\n## {}\n\n{}\n\n", checked.scenario.name(), one_line(checked.scenario.story()));
    let _ = writeln!(text, "{}\n", terms(checked));
    let (rows, columns) = match checked.matrix.split_last() {
        Some((last, rows)) => (rows, Some(last)),
        None => (&[][..], None),
    };
    head(text, rows, columns);
    for row in rows_of(cells, rows.len()) {
        line(text, &row, rows, columns);
    }
    text.push('\n');
    reasons(text, cells);
}

/// The case, and what is the same or alternates in all cells.
fn terms(checked: &Checked) -> String {
    let vcpus: Vec<_> = checked.vcpus.iter().map(usize::to_string).collect();
    let mut text = format!("Case `{}`, {} vCPUs", checked.case.name, vcpus.join(", "));
    for axis in &checked.set {
        let _ = write!(text, ", `{}={}`", axis.knob.name, axis.values.join(""));
    }
    for axis in &checked.alternate {
        let _ = write!(text, "; `{}` alternates between {}", axis.knob.name, axis.values.join(" and "));
    }
    text.push('.');
    text
}

fn head(text: &mut String, rows: &[Axis], columns: Option<&Axis>) {
    let mut titles: Vec<String> = rows.iter().map(|axis| axis.knob.name.to_owned()).collect();
    match columns {
        Some(axis) => titles.extend(axis.values.iter().map(|value| format!("{}={value}", axis.knob.name))),
        None => titles.push("expected".to_owned()),
    }
    let _ = writeln!(text, "| {} |\n|{}", titles.join(" | "), " --- |".repeat(titles.len()));
}

/// Cells that differ in the last axis and in vCPUs only, in the order of the matrix.
fn rows_of(cells: &[Cell], axes: usize) -> Vec<Vec<&Cell>> {
    let mut rows: Vec<Vec<&Cell>> = Vec::new();
    for cell in cells {
        let same = |row: &&mut Vec<&Cell>| row[0].axes[..axes].iter().zip(&cell.axes).all(|(a, b)| a.text == b.text);
        match rows.iter_mut().find(same) {
            Some(row) => row.push(cell),
            None => rows.push(vec![cell]),
        }
    }
    rows
}

fn line(text: &mut String, row: &[&Cell], rows: &[Axis], columns: Option<&Axis>) {
    let mut fields: Vec<String> = row[0].axes[..rows.len()].iter().map(|setting| setting.text.clone()).collect();
    match columns {
        None => fields.push(field(row)),
        Some(axis) => fields.extend(axis.values.iter().map(|value| {
            let members: Vec<_> = row.iter().copied().filter(|cell| cell.axes[rows.len()].text == *value).collect();
            field(&members)
        })),
    }
    let _ = writeln!(text, "| {} |", fields.join(" | "));
}

/// The cells of one field differ in vCPUs only.
fn field(cells: &[&Cell]) -> String {
    let mut rules: Vec<(usize, &Cell, Vec<String>)> = Vec::new();
    for cell in cells {
        match rules.iter_mut().find(|(rule, ..)| *rule == cell.rule) {
            Some((.., vcpus)) => vcpus.push(cell.vcpus.to_string()),
            None => rules.push((cell.rule, cell, vec![cell.vcpus.to_string()])),
        }
    }
    match rules.as_slice() {
        [] => "–".to_owned(),
        [(rule, cell, _)] => verdict(cell, *rule),
        several => {
            let parts =
                several.iter().map(|(rule, cell, vcpus)| format!("{}: {}", vcpus.join(" "), verdict(cell, *rule)));
            parts.collect::<Vec<_>>().join("; ")
        }
    }
}

fn verdict(cell: &Cell, rule: usize) -> String {
    let words = expected_in_words(&cell.expectation);
    if words == "pass" { format!("pass ({})", rule + 1) } else { format!("**{words}** ({})", rule + 1) }
}

fn expected_in_words(expectation: &Expectation) -> String {
    phrase(expectation.verdict, expectation.kind)
}

fn reasons(text: &mut String, cells: &[Cell]) {
    let mut rules: BTreeMap<usize, (usize, &Arc<Expectation>)> = BTreeMap::new();
    for cell in cells {
        rules.entry(cell.rule).or_insert((0, &cell.expectation)).0 += 1;
    }
    for (rule, (count, expectation)) in rules {
        let cells = if count == 1 { "cell" } else { "cells" };
        let because = one_line(&expectation.because);
        let _ = writeln!(text, "{}. {expectation} ({count} {cells}): {because}", rule + 1);
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod test {
    use super::*;

    const FILE: &str = "subject = 's'\nabout = ''\n[[scenario]]\nname = 'n'\ncase = 'c'\nstory = '''Once\nupon a time.'''\n\
        vcpus = [2, 3, 4]\nset = { wait = 0 }\nmatrix = { call = ['llist', 'release'], alloc = ['ok', 'fail'] }\n\
        exclude = [{ call = 'llist', alloc = 'fail' }]\ngroups = ['t']\n\
        [[scenario.expect]]\nwhen = { alloc = 'fail', vcpus = '3..' }\nverdict = 'stall'\nkind = 'deadlock'\n\
        words = { count = 'vcpus-2' }\nbecause = 'no memory'\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = 'all is well'\n";

    #[test]
    fn every_cell_stands_in_the_table_with_its_reason() {
        let case = |name: &str| Ok(Case { name: name.to_owned(), index: 0, knobs: u64::MAX, points: Arc::default() });
        let text = markdown(&Catalogue::new(&[("s", FILE)]), "t", &case).unwrap();
        let body = text.split_once("\n## ").unwrap().1;
        assert_eq!(
            body,
            "s/n\n\nOnce upon a time.\n\nCase `c`, 2, 3, 4 vCPUs, `wait=0`.\n\n\
             | call | alloc=ok | alloc=fail |\n| --- | --- | --- |\n\
             | llist | pass (2) | – |\n\
             | release | pass (2) | 2: pass (2); 3 4: **stall deadlock** (1) |\n\n\
             1. stall deadlock, count=vcpus-2 (2 cells): no memory\n2. pass (7 cells): all is well\n"
        );
        assert!(text.contains("9 cells: 7 pass, 2 stall deadlock."));
    }
}
