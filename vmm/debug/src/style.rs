//! The colours of answers, and nothing else that moves a terminal's cursor: names and texts come from guests and from files.
//!
//! While an answer is put together, a colour is a character that no text has a use for. At its end control characters are taken out and
//! these become what a terminal understands. Whoever prints takes them out where they do not belong.

use anstyle::{AnsiColor, Style};

/// What can never end, what is wrong.
const BAD: Style = AnsiColor::Red.on_default().bold();
/// Where one looks first.
const HEADING: Style = Style::new().bold();

/// Characters for private use (Unicode plane 15) that stand for the begin of each, and for the end of either.
const BAD_BEGINS: char = '\u{f0000}';
const HEADING_BEGINS: char = '\u{f0001}';
const ENDS: char = '\u{f0002}';

/// Marks what can never end, or is wrong.
pub(crate) fn bad(text: &str) -> String {
    format!("{BAD_BEGINS}{text}{ENDS}")
}

/// Marks a heading.
pub(crate) fn heading(text: &str) -> String {
    format!("{HEADING_BEGINS}{text}{ENDS}")
}

/// An answer as a terminal understands it.
pub(crate) fn rendered(text: &str) -> String {
    let mut rendered = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            BAD_BEGINS => rendered.push_str(&BAD.render().to_string()),
            HEADING_BEGINS => rendered.push_str(&HEADING.render().to_string()),
            ENDS => rendered.push_str(&BAD.render_reset().to_string()),
            '\n' => rendered.push('\n'),
            other => rendered.push(shown(other)),
        }
    }
    rendered
}

/// A text on one line, without what would move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// A text of an answer without its colours.
pub(crate) fn plain(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next();
    // What begins a colour ends with this letter.
    let rest = parts.map(|part| part.split_once('m').map_or("", |(_, text)| text));
    first.into_iter().chain(rest).collect()
}

/// JSON on one line, without what would move a terminal's cursor: JSON itself lets DEL and the C1 controls be (RFC 8259, section 7), which
/// can only stand within its strings.
pub fn printable_json(value: &serde_json::Value) -> String {
    let shown = |character: char| match character {
        '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", u32::from(character)),
        other => other.into(),
    };
    value.to_string().chars().map(shown).collect()
}

fn shown(character: char) -> char {
    if character.is_control() { '?' } else { character }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_colours_of_ours_reach_the_terminal() {
        let text = format!("{}: {}\n", heading("vcpu0"), bad("a\u{1b}[2J\u{9b}b\r"));
        assert_eq!(rendered(&text), "\u{1b}[1mvcpu0\u{1b}[0m: \u{1b}[1m\u{1b}[31ma?[2J?b?\u{1b}[0m\n");
        assert_eq!(printable("a\n\u{1b}"), "a??");
        let value = serde_json::json!({"\u{7f}": "\u{9b}é\u{1b}"});
        assert_eq!(printable_json(&value), r#"{"\u007f":"\u009bé\u001b"}"#);
    }
}
