//! A pattern for people: one line of it in the catalogue, and the whole story.

use std::fmt::Write as _;

use stallbench_runner::scenario::{Catalogue, Checked, Difference, Pattern, ScenarioError, Subject, differences};

use super::words::{expected, plural, rules, wrapped};
use crate::guest::Guest;

/// Characters of a line of a story.
const WIDTH: usize = 110;

/// The patterns of a subject, a line each.
pub(super) fn overview(text: &mut String, subject: &Subject) {
    for pattern in &subject.patterns {
        let when = if pattern.when().is_empty() { String::new() } else { format!(" ({})", pattern.when()) };
        let _ = writeln!(text, "  {} {:<30} {}{when}", pattern.id(), pattern.name(), pattern.title());
    }
}

/// All of one: what happened, the fix, and the scenarios that show both.
pub(super) fn whole(
    text: &mut String,
    catalogue: &Catalogue,
    pattern: &Pattern,
    guest: &Guest,
) -> Result<(), ScenarioError> {
    let _ = writeln!(text, "{} {}: {}\n", pattern.id(), pattern.name(), pattern.title());
    for line in wrapped(pattern.story(), WIDTH) {
        let _ = writeln!(text, "  {line}");
    }
    text.push('\n');
    for (what, said) in [("when", pattern.when()), ("fix", pattern.fix()), ("step", pattern.step())] {
        aligned(text, what, if said.is_empty() { "not verified" } else { said });
    }
    aligned(text, "subject", pattern.subject());
    for twins in catalogue.twins(pattern)? {
        let [bug, fixed] = [twins.bug, twins.fixed].map(|scenario| Checked::new(scenario, &|name| guest.case(name)));
        let differences: Vec<_> = differences(&bug?, &fixed?).iter().map(difference).collect();
        aligned(text, "twins", &format!("{} and its fix differ in {}", twins.bug.name(), differences.join(", ")));
    }
    text.push('\n');
    for scenario in catalogue.scenarios_of(pattern)? {
        show(text, &Checked::new(scenario, &|name| guest.case(name))?)?;
    }
    let _ =
        writeln!(text, "stallbench run {} runs them; stallbench list SCENARIO tells the story of one\n", pattern.id());
    Ok(())
}

fn aligned(text: &mut String, what: &str, said: &str) {
    for (index, line) in wrapped(said, WIDTH - 9).into_iter().enumerate() {
        let _ = writeln!(text, "  {:<8} {line}", if index == 0 { what } else { "" });
    }
}

fn difference(difference: &Difference) -> String {
    format!("{}: {} became {}", difference.knob.name, difference.bug.join(", "), difference.fixed.join(", "))
}

/// Where a scenario holds vCPUs, and what it lets go wrong, a line each.
pub(super) fn injected(text: &mut String, indent: &str, checked: &Checked) {
    if let Some(order) = checked.scenario.order() {
        let _ = writeln!(text, "{indent}order {order}");
    }
    for (what, injected) in checked.injection.texts() {
        let _ = writeln!(text, "{indent}{what} {injected}");
    }
}

/// A scenario with its knobs, and what is expected of it at how many vCPUs.
fn show(text: &mut String, checked: &Checked) -> Result<(), ScenarioError> {
    let cells = checked.cells()?;
    let vcpus: Vec<_> = checked.vcpus.iter().map(usize::to_string).collect();
    let _ = writeln!(text, "  {}", checked.scenario.name());
    let _ = write!(text, "    case {}", checked.case.name);
    for axis in checked.set.iter().chain(&checked.matrix).chain(&checked.alternate) {
        let _ = write!(text, ", {}={}", axis.knob.name, axis.values.join("|"));
    }
    let _ = writeln!(text, "; vcpus {}", vcpus.join(", "));
    injected(text, "    ", checked);
    for rule in rules(&cells) {
        let expectation = &cells[rule[0]].expectation;
        let _ = writeln!(
            text,
            "    - {} ({} {})",
            expected(expectation),
            rule.len(),
            plural(rule.len(), "cell").trim_end()
        );
        for line in wrapped(&format!("because {}", expectation.because), WIDTH - 6) {
            let _ = writeln!(text, "      {line}");
        }
    }
    text.push('\n');
    Ok(())
}
