//! A scenario file as it stands: TOML in, plain structures out. Nothing here knows what a knob or a case is; the values keep
//! their places so that later checks can name file and line.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::pattern;

/// A file: one subject.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub subject: Spanned<String>,
    pub about: String,
    #[serde(default)]
    pub pattern: Vec<pattern::Entry>,
    #[serde(default)]
    pub scenario: Vec<Entry>,
}

/// A `[[scenario]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Entry {
    pub name: Spanned<String>,
    pub case: Spanned<String>,
    pub story: String,
    pub vcpus: Spanned<Texts>,
    /// The id of the pattern that it shows.
    pub pattern: Option<Spanned<String>>,
    #[serde(default)]
    pub groups: Vec<Spanned<String>>,
    #[serde(default = "yes")]
    pub default: bool,
    #[serde(default)]
    pub set: Pairs,
    #[serde(default)]
    pub matrix: Pairs,
    #[serde(default)]
    pub alternate: Pairs,
    #[serde(default)]
    pub exclude: Vec<Spanned<Pairs>>,
    pub order: Option<Spanned<String>>,
    #[serde(default)]
    pub holds: Vec<Spanned<String>>,
    #[serde(default)]
    pub faults: Vec<Spanned<String>>,
    #[serde(default)]
    pub expect: Vec<Spanned<Rule>>,
    #[serde(default)]
    pub explore: Vec<Spanned<Exploration>>,
}

/// A `[[scenario.expect]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Rule {
    #[serde(default)]
    pub when: Pairs,
    pub verdict: Spanned<String>,
    pub kind: Option<Spanned<String>>,
    pub strength: Option<Spanned<String>>,
    pub culprit: Option<Spanned<String>>,
    pub culprit_vcpu: Option<Spanned<Texts>>,
    #[serde(default)]
    pub words: Pairs,
    pub residual_waits: Option<Spanned<Texts>>,
    pub contains: Option<Spanned<String>>,
    pub because: String,
}

/// A `[[scenario.explore]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Exploration {
    pub vcpus: Spanned<Texts>,
    #[serde(default)]
    pub when: Pairs,
    pub model: Option<Spanned<String>>,
    pub icr: Option<Spanned<String>>,
    pub states: Option<usize>,
    pub transitions: Option<usize>,
    pub stuck: Option<usize>,
    pub preemptions: Option<usize>,
    /// False: only by name.
    #[serde(default = "yes")]
    pub default: bool,
    /// What is expected, where that is not what is expected of a run.
    pub expect: Option<Spanned<Rule>>,
}

fn yes() -> bool {
    true
}

/// A table, in the order in which it is written.
#[derive(Debug, Default)]
pub(super) struct Pairs(pub Vec<(Spanned<String>, Spanned<Texts>)>);

/// A value, or a list of values, as text.
#[derive(Debug, Default)]
pub(super) struct Texts(pub Vec<String>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor(PhantomData<()>);

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a table of names and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a word, a number, or a list of them")
    }

    fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
        Ok(Texts(vec![text.to_owned()]))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Texts, E> {
        if number < 0 {
            return Err(E::custom("a negative number; expected a word or a number from 0 on"));
        }
        Ok(Texts(vec![number.to_string()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(Texts(mut one)) = list.next_element()? {
            match (one.pop(), one.is_empty()) {
                (Some(text), true) => texts.push(text),
                _ => return Err(A::Error::custom("a list in a list; expected words or numbers")),
            }
        }
        Ok(Texts(texts))
    }
}

/// Line and column, from 1 on, of a byte of a text.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tables_keep_the_order_in_which_they_are_written() {
        #[derive(Deserialize)]
        struct T {
            t: Pairs,
        }
        let t: T = toml::from_str("t = { zebra = [1, 0x10], ant = 'word' }").unwrap();
        let names: Vec<_> = t.t.0.iter().map(|(k, v)| (k.get_ref().as_str(), v.get_ref().0.clone())).collect();
        assert_eq!(names, [("zebra", vec!["1".into(), "16".into()]), ("ant", vec!["word".into()])]);
    }

    #[test]
    fn line_and_column_count_from_one() {
        assert_eq!(line_and_column("ab\ncd", 4), (2, 2));
        assert_eq!(line_and_column("", 9), (1, 1));
    }
}
