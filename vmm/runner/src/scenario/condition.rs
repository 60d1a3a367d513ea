//! Conditions on cells: what `when`, `exclude` and the part of a name behind the `@` say.

use stallbench_abi::knob::Knob;
use stallbench_abi::layout::MAX_VCPUS;

use super::error::Problem;
use super::knobs::{Case, ValuePattern};

/// A conjunction: each named knob has one of its values.
#[derive(Clone, Debug, Default)]
pub(super) struct Condition {
    pub(super) terms: Vec<Term>,
}

/// One knob, or the number of vCPUs, and the values that it may have.
#[derive(Clone, Debug)]
pub(super) enum Term {
    Vcpus(Vec<Span>),
    Knob(&'static Knob, Vec<(String, ValuePattern)>),
}

/// Numbers of vCPUs: `4`, `3..`, `..4`, `3..8`; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: usize,
    pub(super) to: usize,
}

/// What a condition looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    pub(super) vcpus: usize,
    pub(super) raw: &'a [u64],
}

impl Condition {
    pub(super) fn holds(&self, values: Values) -> bool {
        self.terms.iter().all(|term| term.holds(values))
    }
}

impl Term {
    /// Reads a term of a condition on the cells of a case.
    pub(super) fn parse(case: &Case, name: &str, values: &[String]) -> Result<Self, Problem> {
        if values.is_empty() {
            return Err(Problem::Empty("this condition"));
        }
        if name == "vcpus" {
            return values.iter().map(|text| Span::parse(text)).collect::<Result<_, _>>().map(Self::Vcpus);
        }
        let knob = case.knob(name)?;
        let patterns = values.iter().map(|text| Ok((text.clone(), ValuePattern::parse(knob, text)?)));
        patterns.collect::<Result<_, _>>().map(|patterns| Self::Knob(knob, patterns))
    }

    fn holds(&self, values: Values) -> bool {
        match self {
            Self::Vcpus(spans) => spans.iter().any(|span| span.contains(values.vcpus)),
            Self::Knob(knob, patterns) => {
                let raw = values.raw[knob.number as usize];
                patterns.iter().any(|(_, pattern)| pattern.fits(raw, values.vcpus))
            }
        }
    }
}

impl Span {
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let (from, to) = match text.split_once("..") {
            Some((from, to)) => (parse_end(from, 1), parse_end(to, MAX_VCPUS)),
            None => (text.parse().ok(), text.parse().ok()),
        };
        match (from, to) {
            (Some(from), Some(to)) if from >= 1 && from <= to && to <= MAX_VCPUS => Ok(Self { from, to }),
            _ => Err(Problem::BadVcpus(text.to_owned())),
        }
    }

    pub(super) fn contains(self, vcpus: usize) -> bool {
        (self.from..=self.to).contains(&vcpus)
    }
}

fn parse_end(text: &str, open: usize) -> Option<usize> {
    if text.is_empty() { Some(open) } else { text.parse().ok() }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn spans_are_open_where_nothing_stands() {
        assert_eq!(Span::parse("3.."), Ok(Span { from: 3, to: MAX_VCPUS }));
        assert_eq!(Span::parse("..3"), Ok(Span { from: 1, to: 3 }));
        assert_eq!(Span::parse("4"), Ok(Span { from: 4, to: 4 }));
    }

    #[test]
    fn spans_refuse_what_is_no_number_of_vcpus() {
        for text in ["0", "256", "8..3", "four", "", "1...3"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }
}
