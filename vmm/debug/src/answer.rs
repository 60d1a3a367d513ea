//! What a command says: text for people, data for programs.

use serde_json::Value;

use crate::style::rendered;

/// What a command says.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// For people: whole lines, with colours.
    pub text: String,
    /// For programs; addresses and register values are strings, as in reports (docs/json.md).
    pub data: Value,
}

impl Answer {
    /// Text and data of the same.
    pub(crate) fn new(text: impl Into<String>, data: Value) -> Self {
        let mut text = rendered(&text.into());
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Self { text, data }
    }
}

/// A number as data: a JSON number may lose bits.
pub(crate) fn hex(value: u64) -> Value {
    Value::String(format!("{value:#x}"))
}

/// Rows in columns that are as wide as they must be, two spaces apart; the last is not padded.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A row of a table.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [row(["a", "bc", "d"]), row(["long", "", "e f"]), row(["x"])];
        assert_eq!(columns(&rows), "a     bc  d\nlong      e f\nx\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn answer_is_whole_lines() {
        assert_eq!(Answer::new("a", Value::Null).text, "a\n");
        assert_eq!(Answer::new("a\n", Value::Null).text, "a\n");
        assert_eq!(Answer::new("", Value::Null).text, "");
    }
}
