//! The patterns as Markdown: what happened, the fix, and the scenarios that show both. docs/patterns.md is this text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::catalogue::Catalogue;
use super::compile::Checked;
use super::error::{Problem, ScenarioError};
use super::expectation::{Expectation, phrase};
use super::knobs::Case;
use super::twins::{Difference, differences};
use super::{Pattern, Scenario};

/// All patterns of a catalogue as Markdown.
///
/// # Errors
///
/// A file or one of the scenarios is wrong.
pub fn patterns_markdown(
    catalogue: &Catalogue,
    case_named: &dyn Fn(&str) -> Result<Case, Problem>,
) -> Result<String, ScenarioError> {
    let patterns = catalogue.patterns()?;
    let mut overview = String::new();
    let mut sections = String::new();
    for pattern in &patterns {
        let scenarios = catalogue.scenarios_of(pattern)?;
        let checked: Vec<_> = scenarios.iter().map(|s| Checked::new(s, case_named)).collect::<Result<_, _>>()?;
        overview_line(&mut overview, pattern, &checked)?;
        section(&mut sections, catalogue, pattern, &checked, case_named)?;
    }
    Ok(format!(
        "# The patterns: {} ways to wait for ever, and their fixes\n\n\
         <!-- Made by `stallbench list --markdown patterns`. Change the patterns in fixtures/scenarios, not this file. -->\n\n\
         Each happened, or was seen to be possible by those who fixed it. `stallbench run C07` runs the scenarios of one: the bug, whose\n\
         verdict is as declared when it shows, and the fix, which passes. `stallbench run patterns` runs all of them.\n\n\
         | | pattern | when | the bug comes out as |\n| --- | --- | --- | --- |\n{overview}{sections}",
        patterns.len()
    ))
}

fn overview_line(text: &mut String, pattern: &Pattern, scenarios: &[Checked]) -> Result<(), ScenarioError> {
    let mut verdicts: BTreeMap<String, ()> = BTreeMap::new();
    for checked in scenarios {
        for cell in checked.cells()? {
            verdicts.insert(phrase(cell.expectation.verdict, cell.expectation.kind), ());
        }
    }
    let verdicts: Vec<_> = verdicts.into_keys().filter(|verdict| verdict != "pass").collect();
    let anchor = anchor(&heading(pattern));
    let _ = writeln!(
        text,
        "| [{}](#{anchor}) | {} | {} | {} |",
        pattern.id(),
        field(pattern.title()),
        field(or_unknown(pattern.when())),
        verdicts.join(", ")
    );
    Ok(())
}

fn section(
    text: &mut String,
    catalogue: &Catalogue,
    pattern: &Pattern,
    scenarios: &[Checked],
    case_named: &dyn Fn(&str) -> Result<Case, Problem>,
) -> Result<(), ScenarioError> {
    let _ = writeln!(text, "\n## {}\n", heading(pattern));
    let _ = writeln!(text, "{}. Subject `{}`, {}.\n", pattern.title(), pattern.subject(), or_unknown(pattern.when()));
    let _ = writeln!(text, "{}\n", one_line(pattern.story()));
    let _ = writeln!(text, "- Fix: {}", one_line(or_unknown(pattern.fix())));
    let _ = writeln!(text, "- Step: {}", one_line(pattern.step()));
    for twins in catalogue.twins(pattern)? {
        let [bug, fixed] = [Checked::new(twins.bug, case_named)?, Checked::new(twins.fixed, case_named)?];
        let differences: Vec<_> = differences(&bug, &fixed).iter().map(difference).collect();
        let _ = writeln!(text, "- `{}` and its fix differ in {}", twins.bug.name(), differences.join(", "));
    }
    text.push_str("\n| scenario | case and knobs | vCPUs | expected | because |\n| --- | --- | --- | --- | --- |\n");
    for checked in scenarios {
        rows(text, checked)?;
    }
    Ok(())
}

fn difference(difference: &Difference) -> String {
    let values = |values: &[String]| values.join(", ");
    format!("`{}`: {} became {}", difference.knob.name, values(&difference.bug), values(&difference.fixed))
}

/// A row for each expectation of a scenario, with the vCPUs of the cells that it is for.
fn rows(text: &mut String, checked: &Checked) -> Result<(), ScenarioError> {
    let mut rules: BTreeMap<usize, (Arc<Expectation>, Vec<usize>)> = BTreeMap::new();
    for cell in checked.cells()? {
        let (_, vcpus) = rules.entry(cell.rule).or_insert_with(|| (Arc::clone(&cell.expectation), Vec::new()));
        if !vcpus.contains(&cell.vcpus) {
            vcpus.push(cell.vcpus);
        }
    }
    for (expectation, vcpus) in rules.values() {
        let vcpus: Vec<_> = vcpus.iter().map(usize::to_string).collect();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            checked.scenario.name(),
            field(&case_and_knobs(checked)),
            vcpus.join(", "),
            field(&expectation.to_string()),
            field(&expectation.because)
        );
    }
    Ok(())
}

fn case_and_knobs(checked: &Checked) -> String {
    let mut text = format!("`{}`", checked.case.name);
    for axis in &checked.set {
        let _ = write!(text, ", `{}={}`", axis.knob.name, axis.values.join(""));
    }
    for axis in checked.matrix.iter().chain(&checked.alternate) {
        let _ = write!(text, ", `{}` {}", axis.knob.name, axis.values.join(" or "));
    }
    for (what, injected) in checked.injection.texts() {
        let _ = write!(text, "; {what} `{}`", one_line(injected));
    }
    text
}

fn heading(pattern: &Pattern) -> String {
    format!("{} {}", pattern.id(), pattern.name())
}

/// What a heading is called in links.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

/// What nobody has verified is not claimed.
fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "not verified" } else { text }
}

/// A text in a field of a table.
fn field(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The scenarios of all patterns: what the name [`ALL_PATTERNS`] stands for.
pub(super) fn of_patterns(catalogue: &Catalogue) -> Result<Vec<&Arc<Scenario>>, ScenarioError> {
    let mut scenarios = catalogue.scenarios()?;
    scenarios.retain(|scenario| scenario.pattern().is_some());
    Ok(scenarios)
}

/// The name of all patterns together, for `run` and `list`.
pub const ALL_PATTERNS: &str = "patterns";

#[cfg(test)]
mod test {
    use super::*;

    const FILE: &str = "subject = 's'\nabout = ''\n\
        [[pattern]]\nid = 'C07'\nname = 'stops'\ntitle = 'Three | stops'\nwhen = '2013'\nstory = '''Once\nupon.'''\nstep = 'lock'\n\
        [[scenario]]\nname = 'a'\npattern = 'C07'\ncase = 'c'\nstory = ''\nvcpus = [2, 3]\nset = { wait = 0 }\n\
        [[scenario.expect]]\nwhen = { vcpus = 2 }\nverdict = 'stall'\nkind = 'deadlock'\nculprit = 'none'\nbecause = 'cycle'\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = 'no cycle'\n\
        [[scenario]]\nname = 'a-fixed'\npattern = 'C07'\ncase = 'c'\nstory = ''\nvcpus = [2]\nset = { wait = 1 }\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = 'a lock'\n";

    #[test]
    fn story_fix_and_every_expectation_stand_in_the_page() {
        let case = |name: &str| {
            Ok(Case { name: name.to_owned(), index: 0, knobs: u64::MAX, points: std::sync::Arc::default() })
        };
        let text = patterns_markdown(&Catalogue::new(&[("s", FILE)]), &case).unwrap();
        assert!(text.contains("<!-- Made by `stallbench list --markdown patterns`."), "{text}");
        assert!(text.contains("| [C07](#c07-stops) | Three \\| stops | 2013 | stall deadlock |\n"), "{text}");
        let body = text.split_once("\n## ").unwrap().1;
        assert_eq!(
            body,
            "C07 stops\n\nThree | stops. Subject `s`, 2013.\n\nOnce upon.\n\n\
             - Fix: not verified\n- Step: lock\n- `s/a` and its fix differ in `wait`: 0 became 1\n\n\
             | scenario | case and knobs | vCPUs | expected | because |\n| --- | --- | --- | --- | --- |\n\
             | `s/a` | `c`, `wait=0` | 2 | stall deadlock, no culprit | cycle |\n\
             | `s/a` | `c`, `wait=0` | 3 | pass | no cycle |\n\
             | `s/a-fixed` | `c`, `wait=1` | 2 | pass | a lock |\n"
        );
    }
}
