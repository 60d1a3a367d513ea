//! Knobs as scenarios and command lines name them: checked against the contract and against what the case takes.

use std::sync::Arc;

use stallbench_abi::knob::{self, BadValue, Knob, Values};
use stallbench_state::program::PointInfo;

use super::error::Problem;
use crate::nearest::{did_you_mean, did_you_mean_or};

/// A knob, set to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Which.
    pub knob: &'static Knob,
    /// The value, as it is written in names: `last` is resolved to a number.
    pub text: String,
    /// The value in the boot block.
    pub raw: u64,
}

impl Setting {
    /// Checks a value.
    pub fn new(knob: &'static Knob, text: &str, vcpus: usize) -> Result<Self, Problem> {
        let raw = knob.parse(text, vcpus).map_err(|why| bad_value(knob, text, why))?;
        let text = if matches!(knob.values, Values::Vcpu) { raw.to_string() } else { text.to_owned() };
        Ok(Self { knob, text, raw })
    }
}

/// A case, as far as scenarios care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Its number in the image.
    pub index: usize,
    /// The knobs that it takes, a bit for each number.
    pub knobs: u64,
    /// The pause points of its image.
    pub points: Arc<[PointInfo]>,
}

impl Case {
    /// Whether it takes a knob.
    pub fn takes(&self, knob: &Knob) -> bool {
        self.knobs >> knob.number & 1 == 1
    }

    /// The knobs that it takes.
    pub fn knobs(&self) -> impl Iterator<Item = &'static Knob> {
        knob::ALL.iter().copied().filter(|knob| self.takes(knob))
    }

    /// The knob of that name, if this case takes it.
    pub fn knob(&self, name: &str) -> Result<&'static Knob, Problem> {
        match Knob::named(name) {
            Some(knob) if self.takes(knob) => Ok(knob),
            Some(_) => {
                Err(Problem::NotTaken { case: self.name.clone(), knob: name.to_owned(), takes: self.knobs_in_words() })
            }
            None if name == "vcpus" => Err(Problem::VcpusIsNoKnob),
            None => Err(self.unknown_knob(name)),
        }
    }

    fn unknown_knob(&self, name: &str) -> Problem {
        let takes = || format!("; case '{}' takes {}", self.name, self.knobs_in_words());
        let nearest = did_you_mean_or(name, knob::ALL.iter().map(|knob| knob.name), takes);
        Problem::UnknownKnob { knob: name.to_owned(), nearest }
    }

    fn knobs_in_words(&self) -> String {
        let takes: Vec<_> = self.knobs().map(|knob| knob.name).collect();
        if takes.is_empty() { "none".to_owned() } else { takes.join(", ") }
    }
}

/// A pattern of one knob's values, as conditions and filters use it: a value, or a word without its number for any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValuePattern {
    /// This raw value.
    Exactly(u64),
    /// This word, with any number.
    Word(u8),
    /// The last vCPU.
    Last,
}

impl ValuePattern {
    /// Reads a pattern. A vCPU need not exist in every cell, so any number is one.
    pub(super) fn parse(knob: &'static Knob, text: &str) -> Result<Self, Problem> {
        if matches!(knob.values, Values::Vcpu) && text == "last" {
            return Ok(Self::Last);
        }
        match knob.parse(text, stallbench_abi::layout::MAX_VCPUS) {
            Ok(raw) => Ok(Self::Exactly(raw)),
            Err(BadValue::NumberMissing) => Ok(Self::Word(word_code(knob, text))),
            Err(why) => Err(bad_value(knob, text, why)),
        }
    }

    /// Whether a raw value fits.
    pub(super) fn fits(self, raw: u64, vcpus: usize) -> bool {
        match self {
            Self::Exactly(value) => raw == value,
            Self::Word(code) => raw as u8 == code,
            Self::Last => raw + 1 == vcpus as u64,
        }
    }
}

fn word_code(knob: &Knob, text: &str) -> u8 {
    let Values::Words(words) = knob.values else { return 0 };
    words.iter().find(|word| word.word == text).map_or(0, |word| word.code)
}

fn bad_value(knob: &Knob, text: &str, why: BadValue) -> Problem {
    let why_text = match why {
        BadValue::UnknownWord => "no such word",
        BadValue::NumberMissing => "it needs a number, as in 'nth:1'",
        BadValue::NumberUnexpected => "it takes no number",
        BadValue::NotInRange => "not in range",
    };
    let words: Vec<_> = words_of(knob).collect();
    let nearest = if why == BadValue::UnknownWord { did_you_mean(text, words) } else { String::new() };
    Problem::BadValue {
        knob: knob.name.to_owned(),
        value: text.to_owned(),
        why: why_text,
        expected: expected(knob),
        nearest,
    }
}

fn words_of(knob: &Knob) -> impl Iterator<Item = &'static str> {
    let words = if let Values::Words(words) = knob.values { words } else { &[] };
    words.iter().map(|word| word.word)
}

/// The values of a knob, in words: `ok, fail, nth:N`.
pub fn expected(knob: &Knob) -> String {
    match knob.values {
        Values::Words(words) => {
            let words: Vec<_> = words
                .iter()
                .map(|w| if w.takes_number() { format!("{}:N", w.word) } else { w.word.to_owned() })
                .collect();
            words.join(", ")
        }
        Values::Number { min, max, .. } => format!("{min} to {max:#x}"),
        Values::Vcpu => "the number of a vCPU, or last".to_owned(),
    }
}

/// The text of a raw value, for knobs at their defaults.
pub fn text_of(knob: &Knob, raw: u64) -> String {
    match knob.word(raw) {
        Some((word, number)) if word.takes_number() => format!("{}:{number}", word.word),
        Some((word, _)) => word.word.to_owned(),
        None => raw.to_string(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn case() -> Case {
        Case {
            name: "set-mtrr".into(),
            index: 0,
            knobs: 1 << knob::CALL.number | 1 << knob::INITIATOR.number,
            points: Arc::default(),
        }
    }

    #[test]
    fn unknown_knob_brings_the_nearest() {
        let problem = case().knob("cal").unwrap_err().to_string();
        assert!(problem.contains("unknown knob 'cal'; did you mean call"), "{problem}");
    }

    #[test]
    fn strange_knob_brings_those_that_the_case_takes() {
        let problem = case().knob("xyzzy").unwrap_err().to_string();
        assert_eq!(problem, "unknown knob 'xyzzy'; case 'set-mtrr' takes call, initiator");
    }

    #[test]
    fn number_of_vcpus_is_no_knob_and_brings_the_option() {
        assert!(case().knob("vcpus").unwrap_err().to_string().contains("--vcpus N"));
    }

    #[test]
    fn knob_of_another_case_names_those_that_are_taken() {
        let problem = case().knob("fence").unwrap_err().to_string();
        assert_eq!(problem, "case 'set-mtrr' takes no knob 'fence'; it takes call, initiator");
    }

    #[test]
    fn bad_value_says_what_is_expected() {
        let problem = Setting::new(&knob::ALLOC, "nht:1", 4).unwrap_err().to_string();
        assert!(problem.contains("expected ok, fail, nth:N"), "{problem}");
        assert!(problem.contains("did you mean nth"), "{problem}");
    }

    #[test]
    fn last_is_the_number_of_the_last_vcpu() {
        assert_eq!(Setting::new(&knob::INITIATOR, "last", 8).unwrap().text, "7");
        assert!(ValuePattern::parse(&knob::INITIATOR, "last").unwrap().fits(7, 8));
    }

    #[test]
    fn word_without_its_number_fits_any_number() {
        let pattern = ValuePattern::parse(&knob::ALLOC, "nth").unwrap();
        assert!(pattern.fits(knob::ALLOC.parse("nth:3", 4).unwrap(), 4));
        assert!(!pattern.fits(knob::ALLOC.parse("from:3", 4).unwrap(), 4));
    }
}
