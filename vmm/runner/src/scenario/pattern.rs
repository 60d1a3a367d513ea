//! Patterns: the ways to wait for ever that really happened, each with its story. What a pattern is stands in `[[pattern]]` tables,
//! which scenarios show it in the key `pattern` of the scenarios, in whatever file they are.

use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::catalogue::Catalogue;
use super::error::{Place, Problem, ScenarioError};
use super::stories::ALL_PATTERNS;
use super::{Scenario, Source, Subject, check_name};
use crate::nearest::{did_you_mean_these, nearest};

/// Most characters of a title, which has to fit into one line of the catalogue.
const LONGEST_TITLE: usize = 80;
/// Most ids that are proposed in place of one that is none.
const MOST_NEAR: usize = 3;

/// A `[[pattern]]` as it stands.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Entry {
    id: Spanned<String>,
    name: Spanned<String>,
    title: Spanned<String>,
    #[serde(default)]
    when: String,
    story: Spanned<String>,
    #[serde(default)]
    fix: String,
    step: Spanned<String>,
}

/// A way to wait for ever, with its historical fix.
#[derive(Debug)]
pub struct Pattern {
    source: Arc<Source>,
    subject: String,
    entry: Entry,
}

impl Pattern {
    /// `C07`.
    pub fn id(&self) -> &str {
        self.entry.id.get_ref()
    }

    /// `overlapping-stops`.
    pub fn name(&self) -> &str {
        self.entry.name.get_ref()
    }

    /// The subject that it belongs to.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What it is, in one line.
    pub fn title(&self) -> &str {
        self.entry.title.get_ref().trim()
    }

    /// When it happened; empty where that is not verified.
    pub fn when(&self) -> &str {
        self.entry.when.trim()
    }

    /// What happened, and who waits for whom.
    pub fn story(&self) -> &str {
        self.entry.story.get_ref().trim()
    }

    /// The commit or thread of its fix; empty where none is verified.
    pub fn fix(&self) -> &str {
        self.entry.fix.trim()
    }

    /// The one step between bug and fix.
    pub fn step(&self) -> &str {
        self.entry.step.get_ref().trim()
    }

    /// Whether it is called so: by its id in any case, or by its name.
    pub fn is_called(&self, text: &str) -> bool {
        self.id().eq_ignore_ascii_case(text) || self.name() == text
    }

    fn place(&self) -> Place {
        self.source.place(self.entry.id.span().start)
    }
}

/// Checks the patterns of a file, each by itself and for names that are there twice.
pub(super) fn read(source: &Arc<Source>, subject: &str, entries: Vec<Entry>) -> Result<Vec<Pattern>, ScenarioError> {
    let mut patterns: Vec<Pattern> = Vec::with_capacity(entries.len());
    for entry in entries {
        check(source, &entry)?;
        let pattern = Pattern { source: Arc::clone(source), subject: subject.to_owned(), entry };
        if let Some((what, name)) = patterns.iter().find_map(|other| shared_name(other, &pattern)) {
            let problem = Problem::Duplicate { what, name: name.get_ref().clone() };
            return Err(source.problem(name.span(), problem));
        }
        patterns.push(pattern);
    }
    Ok(patterns)
}

fn check(source: &Source, entry: &Entry) -> Result<(), ScenarioError> {
    check_id(source, &entry.id)?;
    check_name(source, &entry.name)?;
    for (what, text) in [("title", &entry.title), ("story", &entry.story), ("step", &entry.step)] {
        if text.get_ref().trim().is_empty() {
            return Err(source.problem(text.span(), Problem::Empty(what)));
        }
    }
    let title = entry.title.get_ref().trim();
    if title.contains('\n') || title.chars().count() > LONGEST_TITLE {
        return Err(source.problem(entry.title.span(), Problem::BadTitle(LONGEST_TITLE)));
    }
    Ok(())
}

/// An id is short and looks like no name: it can be told from one without a catalogue.
pub(super) fn check_id(source: &Source, id: &Spanned<String>) -> Result<(), ScenarioError> {
    match number_of(id.get_ref()) {
        Some(_) if id.get_ref().starts_with(|c: char| c.is_ascii_uppercase()) => Ok(()),
        _ => Err(source.problem(id.span(), Problem::BadId(super::error::start_of(id.get_ref())))),
    }
}

/// Whether a name is no name, but the id of a pattern, if of anything.
pub(super) fn looks_like_an_id(name: &str) -> bool {
    number_of(name).is_some()
}

/// The number of what looks like an id: a letter and two or three digits.
fn number_of(id: &str) -> Option<u32> {
    let digits = id.strip_prefix(|c: char| c.is_ascii_alphabetic())?;
    let numeric = digits.bytes().all(|b| b.is_ascii_digit());
    if numeric && (2..=3).contains(&digits.len()) { digits.parse().ok() } else { None }
}

/// The id or name that two patterns have both, where it stands in the second.
fn shared_name<'a>(one: &Pattern, other: &'a Pattern) -> Option<(&'static str, &'a Spanned<String>)> {
    if one.id() == other.id() {
        return Some(("pattern", &other.entry.id));
    }
    (one.name() == other.name()).then_some(("pattern", &other.entry.name))
}

impl Catalogue {
    /// Every pattern, by id.
    ///
    /// # Errors
    ///
    /// A file is wrong, or two of them give the same name to two things.
    pub fn patterns(&self) -> Result<Vec<&Pattern>, ScenarioError> {
        let subjects = self.subjects()?;
        let mut patterns: Vec<&Pattern> = Vec::new();
        for pattern in subjects.iter().flat_map(|subject| &subject.patterns) {
            if let Some((other, (what, name))) =
                patterns.iter().find_map(|other| Some((other, shared_name(other, pattern)?)))
            {
                let (name, at, place) = (name.get_ref().clone(), name.span(), Box::new(other.place()));
                return Err(pattern.source.problem(at, Problem::DeclaredElsewhere { what, name, place }));
            }
            check_free(&subjects, pattern)?;
            patterns.push(pattern);
        }
        patterns.sort_by_key(|pattern| pattern.id());
        Ok(patterns)
    }

    /// The pattern of that id or name.
    ///
    /// # Errors
    ///
    /// A file is wrong.
    pub fn pattern(&self, name: &str) -> Result<Option<&Pattern>, ScenarioError> {
        Ok(self.patterns()?.into_iter().find(|pattern| pattern.is_called(name)))
    }

    /// The scenarios that show a pattern.
    ///
    /// # Errors
    ///
    /// A file is wrong.
    pub fn scenarios_of(&self, pattern: &Pattern) -> Result<Vec<&Arc<Scenario>>, ScenarioError> {
        let mut scenarios = self.scenarios()?;
        scenarios.retain(|scenario| scenario.pattern() == Some(pattern.id()));
        Ok(scenarios)
    }

    /// Refuses a catalogue with a scenario of a pattern that there is not.
    ///
    /// # Errors
    ///
    /// There is one, or a file is wrong.
    pub fn check_patterns(&self) -> Result<(), ScenarioError> {
        self.scenarios()?.iter().try_for_each(|scenario| self.check_pattern(scenario))
    }

    /// Refuses a scenario of a pattern that there is not. Its own subject is asked first: others need not be read for it.
    pub(super) fn check_pattern(&self, scenario: &Scenario) -> Result<(), ScenarioError> {
        let Some(id) = &scenario.entry.pattern else { return Ok(()) };
        let has = |subject: &&Subject| subject.patterns.iter().any(|pattern| pattern.id() == id.get_ref());
        if self.subject(scenario.subject())?.iter().any(has) || self.subjects()?.iter().any(has) {
            return Ok(());
        }
        let nearest = did_you_mean_these(&self.near_patterns(id.get_ref())?);
        Err(scenario.problem(id.span(), Problem::UnknownPattern { pattern: id.get_ref().clone(), nearest }))
    }

    /// The ids nearest to what looks like an id, by their numbers, and the names nearest to anything else.
    pub(super) fn near_patterns(&self, name: &str) -> Result<Vec<&str>, ScenarioError> {
        let patterns = self.patterns()?;
        let Some(number) = number_of(name) else { return Ok(nearest(name, patterns.iter().map(|p| p.name()))) };
        // Those of the same letter first.
        let letter = |id: &str| id.chars().next().map(|c| c.to_ascii_uppercase());
        let distance = |id: &str| Some((letter(id) != letter(name), number_of(id)?.abs_diff(number)));
        let mut ids: Vec<_> = patterns.iter().filter_map(|p| Some((distance(p.id())?, p.id()))).collect();
        ids.sort_unstable();
        Ok(ids.into_iter().take(MOST_NEAR).map(|(_, id)| id).collect())
    }
}

/// A name must not mean two things to `run` and `list`.
fn check_free(subjects: &[&Subject], pattern: &Pattern) -> Result<(), ScenarioError> {
    let mut scenarios = subjects.iter().flat_map(|subject| &subject.scenarios);
    let taken = pattern.name() == ALL_PATTERNS
        || subjects.iter().any(|subject| subject.name == pattern.name())
        || scenarios.any(|scenario| scenario.groups().any(|group| group == pattern.name()));
    if !taken {
        return Ok(());
    }
    let problem = Problem::Duplicate { what: "subject or group", name: pattern.name().to_owned() };
    Err(pattern.source.problem(pattern.entry.name.span(), problem))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::scenario::read as read_file;

    const ONE: &str = "[[pattern]]\nid = 'C07'\nname = 'stops'\ntitle = 'Three stops'\nwhen = '2013'\nstory = 'Once.'\n\
        fix = 'b17718d02f54'\nstep = 'one lock'\n";
    const HEAD: &str = "subject = 's'\nabout = ''\n";
    const SCENARIO: &str = "[[scenario]]\nname = 'one'\ncase = 'c'\nstory = ''\nvcpus = [2]\npattern = 'C07'\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n";

    fn error(text: &str) -> String {
        read_file("x.toml".into(), format!("{HEAD}{text}").into()).unwrap_err().to_string()
    }

    fn leaked(text: String) -> &'static str {
        Box::leak(text.into_boxed_str())
    }

    fn catalogue(files: &[(&'static str, &str)]) -> Catalogue {
        let files: Vec<_> = files
            .iter()
            .map(|(subject, text)| (*subject, leaked(format!("subject = '{subject}'\nabout = ''\n{text}"))))
            .collect();
        Catalogue::new(&files)
    }

    #[test]
    fn pattern_is_found_by_id_in_any_case_and_by_name() {
        let catalogue = catalogue(&[("s", &format!("{ONE}{SCENARIO}"))]);
        for name in ["C07", "c07", "stops"] {
            let pattern = catalogue.pattern(name).unwrap().unwrap();
            assert_eq!((pattern.id(), pattern.title(), pattern.subject()), ("C07", "Three stops", "s"));
            assert_eq!(catalogue.scenarios_of(pattern).unwrap()[0].name(), "s/one");
        }
        assert!(catalogue.pattern("Stops").unwrap().is_none());
    }

    #[test]
    fn subject_may_have_neither_scenarios_nor_patterns() {
        assert!(catalogue(&[("s", "")]).patterns().unwrap().is_empty());
    }

    #[test]
    fn unknown_key_names_those_that_are_expected() {
        let message = error(&ONE.replace("when", "date"));
        assert!(message.starts_with("x.toml:7:1: unknown field `date`, expected one of `id`"), "{message}");
    }

    #[test]
    fn missing_key_and_empty_text_are_named() {
        assert!(error(&ONE.replace("step = 'one lock'\n", "")).contains("missing field `step`"));
        assert_eq!(error(&ONE.replace("'Once.'", "' '")), "x.toml:8:9: story has no values");
        assert!(error(&ONE.replace("'Three stops'", "'''a\nb'''")).contains("x.toml:6:9: a title is one line"));
    }

    #[test]
    fn id_that_is_none_is_refused() {
        for id in ["c07", "C7", "C0007", "07", "CC07", "C-07"] {
            let message = error(&ONE.replace("C07", id));
            assert!(message.starts_with(&format!("x.toml:4:6: '{id}' is no id")), "{message}");
        }
    }

    #[test]
    fn id_or_name_that_two_patterns_have_is_refused_in_one_file_and_in_two() {
        let second = ONE.replace("stops", "others");
        assert!(error(&format!("{ONE}{second}")).ends_with("a second pattern named 'C07'"));
        let same_name = ONE.replace("C07", "C08");
        assert!(error(&format!("{ONE}{same_name}")).ends_with("a second pattern named 'stops'"));
        let message = catalogue(&[("s", ONE), ("t", &second)]).patterns().unwrap_err().to_string();
        assert_eq!(message, "built-in/t.toml:4:6: a second pattern 'C07'; the first is at built-in/s.toml:4:6");
    }

    #[test]
    fn name_of_a_pattern_that_is_a_subject_is_refused() {
        let message = catalogue(&[("s", &ONE.replace("stops", "s"))]).patterns().unwrap_err().to_string();
        assert!(message.ends_with("a second subject or group named 's'"), "{message}");
    }

    #[test]
    fn scenario_may_show_a_pattern_of_another_file_but_none_that_there_is_not() {
        let two = catalogue(&[("s", ONE), ("t", SCENARIO)]);
        two.check_pattern(two.scenarios().unwrap()[0]).unwrap();
        let wrong = catalogue(&[("s", ONE), ("t", &SCENARIO.replace("C07", "C70"))]);
        let message = wrong.check_pattern(wrong.scenarios().unwrap()[0]).unwrap_err().to_string();
        assert_eq!(message, "built-in/t.toml:8:11: there is no pattern 'C70'; did you mean C07?");
    }

    #[test]
    fn nearest_ids_are_those_with_the_nearest_numbers() {
        let file = |id: &str, name: &str| ONE.replace("C07", id).replace("stops", name);
        let text = [file("C01", "a"), file("C06", "b"), file("C07", "c"), file("C36", "d")].concat();
        let catalogue = catalogue(&[("s", &text)]);
        assert_eq!(catalogue.near_patterns("c37").unwrap(), ["C36", "C07", "C06"]);
        assert_eq!(catalogue.near_patterns("xyzzy").unwrap(), [""; 0]);
    }
}
