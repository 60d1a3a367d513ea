//! The catalogue for people.

use std::fmt::Write as _;

use stallbench_abi::knob::{self, Knob, Values};
use stallbench_runner::scenario::{
    ALL_PATTERNS, Catalogue, Cell, Checked, Expectation, Pattern, Scenario, ScenarioError, expected_values,
    text_of_value,
};

use super::pattern;
use crate::exit::Failure;
use crate::guest::Guest;

/// Bytes of a story that the overview shows.
const LINE: usize = 100;

/// Scenarios by subject, groups, cases and knobs.
pub(super) fn everything(catalogue: &Catalogue, guest: &Guest, with_scenarios: bool) -> Result<String, Failure> {
    let mut text = String::new();
    if with_scenarios {
        scenarios(&mut text, catalogue, guest)?;
    }
    cases(&mut text, guest);
    knobs(&mut text, guest);
    if with_scenarios {
        text.push_str(
            "stallbench list NAME tells the story of a scenario or pattern; stallbench run takes each of these names\n",
        );
    }
    Ok(text)
}

fn scenarios(text: &mut String, catalogue: &Catalogue, guest: &Guest) -> Result<(), Failure> {
    let mut groups: Vec<(String, usize)> = Vec::new();
    for subject in catalogue.subjects()? {
        let _ = writeln!(text, "{}: {}", subject.name, subject.about);
        pattern::overview(text, subject);
        for scenario in &subject.scenarios {
            let cells = Checked::new(scenario, &|name| guest.case(name))?.cells()?.len();
            let by_name = if scenario.is_default() { "" } else { " (by name only)" };
            let _ = writeln!(
                text,
                "  {:<34} {cells:>4} {}  {}{}{by_name}",
                scenario.name(),
                plural(cells, "cell"),
                scenario.pattern().map(|id| format!("{id}: ")).unwrap_or_default(),
                first_sentence(scenario)
            );
            for group in scenario.groups() {
                match groups.iter_mut().find(|(name, _)| name == group) {
                    Some((_, count)) => *count += cells,
                    None => groups.push((group.to_owned(), cells)),
                }
            }
        }
        text.push('\n');
    }
    if !groups.is_empty() {
        let groups: Vec<_> = groups
            .iter()
            .map(|(name, cells)| format!("{name} ({cells} {})", plural(*cells, "cell").trim_end()))
            .collect();
        let _ = writeln!(text, "groups: {}\n", groups.join(", "));
    }
    Ok(())
}

fn cases(text: &mut String, guest: &Guest) {
    text.push_str("cases of the image\n");
    for case in guest.program().cases() {
        let _ = writeln!(text, "  {:<22} {}", case.name, case.summary);
        let knobs: Vec<_> = knob::ALL.iter().filter(|knob| case.takes(knob.number)).map(|knob| knob.name).collect();
        let _ = writeln!(
            text,
            "  {:<22} takes {}",
            "",
            if knobs.is_empty() { "no knobs".into() } else { knobs.join(", ") }
        );
    }
    text.push('\n');
}

fn knobs(text: &mut String, guest: &Guest) {
    let taken = guest.program().cases().iter().fold(0, |bits, case| bits | case.knobs);
    text.push_str("knobs\n");
    for knob in knob::ALL.iter().filter(|knob| taken >> knob.number & 1 == 1) {
        let values = expected_values(knob);
        let _ = writeln!(text, "  {:<12} {}: {values} [default: {}]", knob.name, knob.what, default_value(knob));
    }
    text.push('\n');
}

fn default_value(knob: &Knob) -> String {
    match knob.values {
        Values::Number { default, .. } if default > 0xffff => format!("{default:#x}"),
        _ => text_of_value(knob, knob.default_value()),
    }
}

/// The stories of what is named.
pub(super) fn stories(catalogue: &Catalogue, names: &[String], guest: &Guest) -> Result<String, Failure> {
    let mut text = String::new();
    for name in names {
        let patterns = patterns_named(catalogue, name)?;
        for pattern in &patterns {
            pattern::whole(&mut text, catalogue, pattern, guest)?;
        }
        if !patterns.is_empty() {
            continue;
        }
        for scenario in catalogue.named(name)? {
            story(&mut text, scenario, &Checked::new(scenario, &|name| guest.case(name))?)?;
        }
    }
    Ok(text)
}

/// The pattern of that name, or all of them by the name that they have together.
pub(super) fn patterns_named<'a>(catalogue: &'a Catalogue, name: &str) -> Result<Vec<&'a Pattern>, ScenarioError> {
    let name = name.split_once('@').map_or(name, |(base, _)| base);
    match name {
        ALL_PATTERNS => catalogue.patterns(),
        _ => Ok(catalogue.pattern(name)?.into_iter().collect()),
    }
}

fn story(text: &mut String, scenario: &Scenario, checked: &Checked) -> Result<(), ScenarioError> {
    let cells = checked.cells()?;
    let _ = writeln!(text, "{}\n", scenario.name());
    for line in wrapped(scenario.story(), 110) {
        let _ = writeln!(text, "  {line}");
    }
    let vcpus: Vec<_> = checked.vcpus.iter().map(usize::to_string).collect();
    let _ = writeln!(text, "\n  case {}, vcpus {}", checked.case.name, vcpus.join(", "));
    for (what, axes) in [("set", &checked.set), ("axis", &checked.matrix), ("alternates", &checked.alternate)] {
        for axis in axes {
            let _ = writeln!(text, "  {what} {}: {}", axis.knob.name, axis.values.join(", "));
        }
    }
    pattern::injected(text, "  ", checked);
    let groups: Vec<_> = scenario.groups().collect();
    if !groups.is_empty() {
        let _ = writeln!(text, "  groups {}", groups.join(", "));
    }
    if let Some(pattern) = scenario.pattern() {
        let _ = writeln!(text, "  pattern {pattern}");
    }
    let _ = writeln!(text, "\n  expected");
    for rule in rules(&cells) {
        let first = &cells[rule[0]];
        let _ = writeln!(text, "  - {}", expected(&first.expectation));
        for line in wrapped(&format!("because {}", first.expectation.because), 106) {
            let _ = writeln!(text, "    {line}");
        }
        let _ = writeln!(text, "    {} {}, such as {}", rule.len(), plural(rule.len(), "cell").trim_end(), first.name);
    }
    text.push('\n');
    Ok(())
}

/// Only a stall has a strength.
pub(super) fn expected(expectation: &Expectation) -> String {
    match expectation.verdict {
        "stall" => format!("{expectation}, strength {} or more", expectation.strength),
        _ => expectation.to_string(),
    }
}

/// The places of the cells of each rule, in the order of the rules.
pub(super) fn rules(cells: &[Cell]) -> Vec<Vec<usize>> {
    let most = cells.iter().map(|cell| cell.rule + 1).max().unwrap_or(0);
    let mut rules = vec![Vec::new(); most];
    for (index, cell) in cells.iter().enumerate() {
        rules[cell.rule].push(index);
    }
    rules.retain(|rule| !rule.is_empty());
    rules
}

fn first_sentence(scenario: &Scenario) -> String {
    let story = scenario.story().split_whitespace().collect::<Vec<_>>().join(" ");
    // "January 2009. Without memory …": a date alone says too little.
    let end = story.match_indices(". ").map(|(at, _)| at + 1).find(|at| *at >= 30).unwrap_or(story.len());
    shortened(story[..end].trim_end_matches('.'))
}

fn shortened(text: &str) -> String {
    let line = wrapped(text, LINE).swap_remove(0);
    if line.len() < text.len() { format!("{line} …") } else { line }
}

pub(super) fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("{word} ") } else { format!("{word}s") }
}

pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|line| !line.is_empty() && line.len() + 1 + word.len() > width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn strength_is_told_of_a_stall_only() {
        let pass = Expectation::pass("");
        assert_eq!(expected(&pass), "pass");
        assert_eq!(expected(&Expectation { verdict: "stall", ..pass }), "stall, strength observed or more");
    }

    #[test]
    fn text_wraps_between_words() {
        assert_eq!(wrapped("one two\nthree", 8), ["one two", "three"]);
        assert_eq!(wrapped("", 8), [""]);
    }
}
