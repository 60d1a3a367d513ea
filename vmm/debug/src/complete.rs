//! What a word on the line could become.

use crate::command::structures;
use crate::command::{self, Takes};
use crate::place;
use crate::registers;
use crate::session::Session;

/// Most symbols that are offered.
const MOST: usize = 64;

/// What the last word of the line up to the cursor could become, and where that word begins.
pub(crate) fn complete(session: &Session, line: &str) -> (usize, Vec<String>) {
    let command_start = line.rfind(';').map_or(0, |at| at + 1);
    let words = &line[command_start..];
    let start = words
        .rfind(char::is_whitespace)
        .map_or(command_start, |at| command_start + at + words[at..].chars().next().map_or(1, char::len_utf8));
    let word = &line[start..];
    let candidates = match line[command_start..start].split_whitespace().next() {
        None => commands(),
        Some(name) => match command::named(name).map(|command| command.takes) {
            Ok(takes) => of(session, takes, word),
            Err(_) => Vec::new(),
        },
    };
    (start, candidates.into_iter().filter(|candidate| candidate.starts_with(word)).take(MOST).collect())
}

fn commands() -> Vec<String> {
    command::ALL.iter().map(|command| command.name.to_owned()).collect()
}

fn of(session: &Session, takes: Takes, word: &str) -> Vec<String> {
    match takes {
        Takes::Nothing | Takes::File => Vec::new(),
        Takes::Progress => vec!["progress".to_owned()],
        Takes::All => vec!["all".to_owned()],
        Takes::Point => {
            let points = session.guest().contract().map(|program| program.points()).unwrap_or_default();
            points.iter().map(|point| point.name.clone()).collect()
        }
        Takes::Command => commands(),
        Takes::Vcpu => (0..session.vcpus().len()).map(|vcpu| vcpu.to_string()).chain(["all".to_owned()]).collect(),
        Takes::Structure => structures(session),
        Takes::Address if word.starts_with('$') => registers::names().map(|name| format!("${name}")).collect(),
        Takes::Address => place::words(session).into_iter().chain(symbols(session)).collect(),
    }
}

/// The paths of symbols, and their last parts.
fn symbols(session: &Session) -> impl Iterator<Item = String> {
    session.symbols().all().iter().flat_map(|symbol| parts(&symbol.name))
}

/// The path of a symbol, and its last part.
fn parts(name: &str) -> impl Iterator<Item = String> + use<> {
    let last = name.rsplit("::").next().filter(|last| *last != name).map(str::to_owned);
    [Some(name.to_owned()), last].into_iter().flatten()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample;

    fn of(line: &str) -> (usize, Vec<String>) {
        complete(&sample::session(), line)
    }

    #[test]
    fn words_are_completed_by_what_the_command_takes() {
        assert_eq!(of("wa"), (0, vec!["waits".into(), "watch".into()]));
        assert_eq!(of("vcpus; ve"), (7, vec!["verdict".into()]));
        assert_eq!(of("bt "), (3, vec!["0".into(), "1".into(), "all".into()]));
        assert_eq!(of("mem $rs"), (4, vec!["$rsi".into(), "$rsp".into()]));
        assert_eq!(of("help wai"), (5, vec!["waits".into()]));
        assert!(of("disas stallbench_ma").1.contains(&"stallbench_main".to_owned()));
        assert!(of("print bo").1.contains(&"boot".to_owned()));
        assert_eq!(of("nonsense x"), (9, Vec::new()));
        assert_eq!(of("bt \u{2003}").0, 6);
    }
}
