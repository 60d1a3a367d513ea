//! Amounts that an expectation compares with: a number, or a term of the cell's own size, with a comparison.

use std::fmt;

use super::error::Problem;

/// What an amount may refer to.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// vCPUs of the cell.
    pub vcpus: usize,
    /// The vCPU that begins.
    pub initiator: u64,
}

/// `2`, `0xff`, `vcpus-2`, `initiator`, `>=1`, `!=0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    compare: Compare,
    base: Base,
    /// Added to the base.
    offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal,
    Different,
    AtMost,
    AtLeast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Number(u64),
    Vcpus,
    Initiator,
}

const COMPARISONS: [(&str, Compare); 4] =
    [("!=", Compare::Different), ("<=", Compare::AtMost), (">=", Compare::AtLeast), ("=", Compare::Equal)];

impl Amount {
    /// Reads an amount.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let bad = || Problem::BadAmount(text.to_owned());
        let (compare, term) = COMPARISONS
            .iter()
            .find_map(|(sign, compare)| Some((*compare, text.strip_prefix(sign)?)))
            .unwrap_or((Compare::Equal, text));
        let (base, offset) = parse_term(term.trim()).ok_or_else(bad)?;
        Ok(Self { compare, base, offset })
    }

    /// A number, with which something is to be equal.
    pub(super) fn number(number: u64) -> Self {
        Self { compare: Compare::Equal, base: Base::Number(number), offset: 0 }
    }

    /// Reads an amount without a comparison.
    pub(super) fn parse_term(text: &str) -> Option<Self> {
        let (base, offset) = parse_term(text.trim())?;
        Some(Self { compare: Compare::Equal, base, offset })
    }

    /// The number that it refers to.
    pub(super) fn value_in(&self, size: Size) -> i128 {
        self.value(size)
    }

    /// Whether `value` is what this amount asks for.
    pub fn accepts(&self, value: u64, size: Size) -> bool {
        let (value, wanted) = (i128::from(value), self.value(size));
        match self.compare {
            Compare::Equal => value == wanted,
            Compare::Different => value != wanted,
            Compare::AtMost => value <= wanted,
            Compare::AtLeast => value >= wanted,
        }
    }

    /// The amount with its size filled in: `2`, `at least 1`.
    pub fn describe(&self, size: Size) -> String {
        let sign = match self.compare {
            Compare::Equal => "",
            Compare::Different => "other than ",
            Compare::AtMost => "at most ",
            Compare::AtLeast => "at least ",
        };
        format!("{sign}{}", self.value(size))
    }

    fn value(&self, size: Size) -> i128 {
        let base = match self.base {
            Base::Number(number) => i128::from(number),
            Base::Vcpus => size.vcpus as i128,
            Base::Initiator => i128::from(size.initiator),
        };
        base + i128::from(self.offset)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let sign = COMPARISONS.iter().find(|(_, compare)| *compare == self.compare).map_or("=", |(sign, _)| sign);
        f.write_str(sign)?;
        match self.base {
            Base::Number(number) => write!(f, "{number}")?,
            Base::Vcpus => f.write_str("vcpus")?,
            Base::Initiator => f.write_str("initiator")?,
        }
        if self.offset == 0 { Ok(()) } else { write!(f, "{:+}", self.offset) }
    }
}

fn parse_term(term: &str) -> Option<(Base, i64)> {
    for (name, base) in [("vcpus", Base::Vcpus), ("initiator", Base::Initiator)] {
        if let Some(rest) = term.strip_prefix(name) {
            return Some((base, parse_offset(rest.trim())?));
        }
    }
    parse_number(term).map(|number| (Base::Number(number), 0))
}

fn parse_offset(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first() {
        None => return Some(0),
        Some(b'+') => (1, &text[1..]),
        Some(b'-') => (-1, &text[1..]),
        Some(_) => return None,
    };
    digits.trim().parse::<u16>().ok().map(|number| sign * i64::from(number))
}

/// A number in decimal or with `0x`.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const FOUR: Size = Size { vcpus: 4, initiator: 3 };

    #[test]
    fn amounts_follow_the_size_of_the_cell() {
        let amount = Amount::parse("vcpus-2").unwrap();
        assert!(amount.accepts(2, FOUR) && !amount.accepts(3, FOUR));
        assert!(Amount::parse("initiator").unwrap().accepts(3, FOUR));
        assert!(Amount::parse("0x10").unwrap().accepts(16, FOUR));
        assert!(Amount::parse(">=1").unwrap().accepts(9, FOUR));
        assert!(!Amount::parse("!=0").unwrap().accepts(0, FOUR));
    }

    #[test]
    fn amounts_print_as_they_are_and_as_they_come_out() {
        let amount = Amount::parse("<=vcpus - 1").unwrap();
        assert_eq!((amount.to_string(), amount.describe(FOUR)), ("<=vcpus-1".into(), "at most 3".into()));
    }

    #[test]
    fn nonsense_is_no_amount() {
        for text in ["", "vcpus*2", "-1", "vcpus-", "vcpusses", ">=", "0x"] {
            assert!(Amount::parse(text).is_err(), "{text}");
        }
    }
}
