//! The colours of answers. Whoever prints takes them out where they do not belong.

use anstyle::{AnsiColor, Style};

/// What can never end, what is wrong.
const BAD: Style = AnsiColor::Red.on_default().bold();
/// Where one looks first.
const HEADING: Style = Style::new().bold();

/// Marks what can never end, or is wrong.
pub(crate) fn bad(text: &str) -> String {
    format!("{BAD}{text}{BAD:#}")
}

/// Marks a heading.
pub(crate) fn heading(text: &str) -> String {
    format!("{HEADING}{text}{HEADING:#}")
}
