//! The words behind a command's name.

use crate::command::Command;
use crate::error::CommandError;

/// The words behind a command's name, taken one by one.
pub(crate) struct Arguments<'a> {
    words: Vec<&'a str>,
    command: &'static Command,
}

impl<'a> Arguments<'a> {
    pub(crate) fn new(words: &'a [String], command: &'static Command) -> Self {
        Self { words: words.iter().rev().map(String::as_str).collect(), command }
    }

    /// Takes the next word.
    pub(crate) fn next(&mut self) -> Option<&'a str> {
        self.words.pop()
    }

    /// Takes the next word, which must be there.
    pub(crate) fn word(&mut self, what: &str) -> Result<&'a str, CommandError> {
        self.next().ok_or_else(|| self.wrong(format!("{what} is missing")))
    }

    /// Takes that word wherever it stands.
    pub(crate) fn flag(&mut self, flag: &str) -> bool {
        let at = self.words.iter().position(|word| *word == flag);
        at.map(|at| self.words.remove(at)).is_some()
    }

    /// Takes a number that says how many.
    pub(crate) fn count(&mut self, what: &str, most: usize) -> Result<Option<usize>, CommandError> {
        let Some(word) = self.next() else { return Ok(None) };
        match number(word).and_then(|count| usize::try_from(count).ok()) {
            Some(count) if (1..=most).contains(&count) => Ok(Some(count)),
            _ => Err(self.wrong(format!("{what} must be a number from 1 to {most}, and is {word}"))),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), CommandError> {
        match self.words.last() {
            Some(word) => Err(self.wrong(format!("{} takes no {word}", self.command.name))),
            None => Ok(()),
        }
    }

    /// Something is wrong with them.
    pub(crate) fn wrong(&self, problem: impl Into<String>) -> CommandError {
        CommandError::Usage { problem: problem.into(), usage: self.command.usage }
    }
}

/// A number: decimal, or hexadecimal behind `0x`; underscores may stand in it.
pub(crate) fn number(text: &str) -> Option<u64> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse().ok(),
        None => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn number_is_decimal_or_behind_0x() {
        for (text, value) in [("12", Some(12)), ("0x1f", Some(31)), ("0x10_0000", Some(0x10_0000)), ("1f", None)] {
            assert_eq!(number(text), value, "{text}");
        }
        for text in ["", "0x", "+1", "0x+1", "-1", "_", "0xffffffffffffffff0", "18446744073709551616", "rip"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
