//! Lines of commands: commands end at `;`, words at white space, and quotation marks hold both together.

use crate::error::CommandError;

/// The commands of a line, each as its words; empty ones are left out. `#` begins a comment.
///
/// # Errors
///
/// A quotation mark that is not closed.
pub fn commands(line: &str) -> Result<Vec<Vec<String>>, CommandError> {
    let mut all = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ';') => {
                all.last_mut().expect("it begins with one").extend(word.take());
                all.push(Vec::new());
            }
            (None, _) if character.is_whitespace() => all.last_mut().expect("it begins with one").extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(CommandError::OpenQuote { line: line.trim().to_owned() });
    }
    all.last_mut().expect("it begins with one").extend(word);
    all.retain(|words| !words.is_empty());
    Ok(all)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn line_falls_into_commands_and_words() {
        let of = |line| commands(line).expect("whole");
        assert_eq!(of("vcpus;  bt 1 ;"), [vec!["vcpus"], vec!["bt", "1"]]);
        assert_eq!(of("disas \"<A as B>::f; g\" 3"), [vec!["disas", "<A as B>::f; g", "3"]]);
        assert_eq!(of("print ''"), [vec!["print", ""]]);
        assert_eq!(of("bt # all; of it"), [vec!["bt"]]);
        assert_eq!(of("print '#'"), [vec!["print", "#"]]);
        assert!(of(" ; ;").is_empty());
    }

    #[test]
    fn quotation_mark_alone_is_refused() {
        assert!(commands("print \"a").is_err());
    }
}
