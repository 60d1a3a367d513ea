//! Scenarios: what is declared about cases, in files, and the cells that come of it.
//!
//! A file is parsed when something in it is asked for, a scenario is checked against the image and expanded into cells when it
//! is selected: one run must not pay for the whole catalogue. Nothing here runs anything.
//!
//! ```text
//! text ── file::File ── Scenario ── Checked ── Cell ── select::Run
//!        (TOML, serde)             (knobs, case) (one point of the matrix)
//! ```

mod amount;
mod catalogue;
mod compile;
mod condition;
mod error;
mod expectation;
mod exploration;
mod file;
mod injection;
mod knobs;
mod matrix;
mod pattern;
mod select;
mod stories;
mod table;
mod twins;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;

pub use amount::{Amount, Size};
pub use catalogue::{BUILT_IN, Catalogue};
pub use compile::{Axis, Checked};
pub use error::{Place, Problem, ScenarioError};
pub use expectation::{Expectation, NoSuchVerdict, Pins, Root, culprit_of, phrase};
pub use exploration::Exploration;
pub use injection::{Injected, Injection};
pub use knobs::{Case, Setting, expected as expected_values, text_of as text_of_value};
pub use matrix::Cell;
pub use pattern::Pattern;
pub use select::{Request, Run, Selection};
pub use stories::{ALL_PATTERNS, patterns_markdown};
pub use table::markdown;
pub use twins::{Difference, Twins, differences};

/// Most characters of the name of a subject, a scenario or a group.
const LONGEST_NAME: usize = 60;

/// The text of a scenario file, for places in messages.
#[derive(Debug)]
struct Source {
    /// As messages name it.
    name: String,
    text: Cow<'static, str>,
}

impl Source {
    fn problem(&self, at: Range<usize>, problem: Problem) -> ScenarioError {
        ScenarioError::File { place: Box::new(self.place(at.start)), problem: Box::new(problem) }
    }

    fn place(&self, at: usize) -> Place {
        let (line, column) = file::line_and_column(&self.text, at);
        Place { file: self.name.clone(), line, column }
    }
}

/// A scenario, as it is declared.
#[derive(Debug)]
pub struct Scenario {
    source: Arc<Source>,
    subject: String,
    entry: file::Entry,
}

impl Scenario {
    /// `subject/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.subject, self.entry.name.get_ref())
    }

    /// Its subject.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The case of the image that it runs.
    pub fn case(&self) -> &str {
        self.entry.case.get_ref()
    }

    /// What happens in it, and why.
    pub fn story(&self) -> &str {
        self.entry.story.trim()
    }

    /// The groups that it belongs to.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.entry.groups.iter().map(|group| group.get_ref().as_str())
    }

    /// The id of the pattern that it shows, if it shows one.
    pub fn pattern(&self) -> Option<&str> {
        self.entry.pattern.as_ref().map(|id| id.get_ref().as_str())
    }

    /// How the order of MTRR programming is looked at, as written.
    pub fn order(&self) -> Option<&str> {
        self.entry.order.as_ref().map(|order| order.get_ref().as_str())
    }

    /// Whether a run of everything includes it.
    pub fn is_default(&self) -> bool {
        self.entry.default
    }

    /// Where it is declared.
    fn place(&self) -> Place {
        self.source.place(self.entry.name.span().start)
    }

    fn problem(&self, at: Range<usize>, problem: Problem) -> ScenarioError {
        self.source.problem(at, problem)
    }
}

/// A subject: a file of scenarios.
#[derive(Debug)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub about: String,
    /// Its patterns, as written.
    pub patterns: Vec<Pattern>,
    /// Its scenarios, as written.
    pub scenarios: Vec<Arc<Scenario>>,
}

/// Reads a file. Only its shape is checked here: knobs and cases are checked when a scenario is selected.
fn read(name: String, text: Cow<'static, str>) -> Result<Subject, ScenarioError> {
    let source = Arc::new(Source { name, text });
    let file: file::File = toml::from_str(&source.text).map_err(|error| syntax(&source, &error))?;
    check_name(&source, &file.subject)?;
    let subject = file.subject.into_inner();
    let patterns = pattern::read(&source, &subject, file.pattern)?;
    let mut scenarios: Vec<Arc<Scenario>> = Vec::with_capacity(file.scenario.len());
    for entry in file.scenario {
        check_name(&source, &entry.name)?;
        for group in &entry.groups {
            check_name(&source, group)?;
        }
        if let Some(id) = &entry.pattern {
            pattern::check_id(&source, id)?;
        }
        if scenarios.iter().any(|other| other.entry.name.get_ref() == entry.name.get_ref()) {
            let problem = Problem::Duplicate { what: "scenario", name: entry.name.get_ref().clone() };
            return Err(source.problem(entry.name.span(), problem));
        }
        scenarios.push(Arc::new(Scenario { source: Arc::clone(&source), subject: subject.clone(), entry }));
    }
    Ok(Subject { name: subject, about: file.about.trim().to_owned(), patterns, scenarios })
}

fn syntax(source: &Source, error: &toml::de::Error) -> ScenarioError {
    source.problem(error.span().unwrap_or(0..0), Problem::Syntax(error.message().replace('\n', ", ")))
}

/// Names go into paths and messages: kebab-case only.
fn check_name(source: &Source, name: &Spanned<String>) -> Result<(), ScenarioError> {
    let text = name.get_ref();
    let length = text.chars().count();
    if length > LONGEST_NAME {
        let problem = Problem::LongName { length, most: LONGEST_NAME, start: error::start_of(text) };
        return Err(source.problem(name.span(), problem));
    }
    let kebab = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if kebab && text.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Ok(());
    }
    Err(source.problem(name.span(), Problem::BadName(text.clone())))
}

#[cfg(test)]
mod test {
    use super::*;

    fn read_text(text: &str) -> Result<Subject, ScenarioError> {
        read("x.toml".into(), text.to_owned().into())
    }

    fn error(text: &str) -> String {
        read_text(text).unwrap_err().to_string()
    }

    #[test]
    fn broken_toml_names_file_line_and_what_was_expected() {
        let message = error("subject = \"a\"\nabout = \"b\"\n[[scenario]\n");
        assert!(message.starts_with("x.toml:3:"), "{message}");
    }

    #[test]
    fn unknown_key_names_those_that_are_expected() {
        let message = error("subject = \"a\"\nabout = \"b\"\n[[scenario]]\nnames = \"x\"\n");
        assert!(message.starts_with("x.toml:4:1: unknown field `names`, expected one of `name`"), "{message}");
    }

    #[test]
    fn missing_key_is_named() {
        let message = error("subject = \"a\"\n");
        assert!(message.contains("missing field `about`"), "{message}");
    }

    #[test]
    fn name_that_could_leave_its_directory_is_refused() {
        let message = error("subject = \"../a\"\nabout = \"\"\n");
        assert!(message.starts_with("x.toml:1:11: '../a' is no name"), "{message}");
    }

    #[test]
    fn long_name_is_refused_for_its_length_and_cut() {
        let message = error(&format!("subject = \"{}\"\nabout = \"\"\n", "a".repeat(300)));
        assert!(message.starts_with("x.toml:1:11: a name of 300 characters, more than the 60"), "{message}");
        assert!(message.len() < 150, "{message}");
    }

    #[test]
    fn wrong_type_names_what_was_expected() {
        let message =
            error("subject = \"a\"\nabout = \"\"\n[[scenario]]\nname=\"n\"\ncase=\"c\"\nstory=\"s\"\nvcpus = 2.5\n");
        assert!(message.contains("x.toml:7:") && message.contains("expected a word, a number"), "{message}");
    }
}
