//! Places by names that are no functions: lines of the source, words that the case names, data of a plain guest, wait sites.

use stallbench_abi::layout::GHOST;
use stallbench_abi::shared::{GhostPage, NamedWord};
use stallbench_abi::text;
use stallbench_state::memory::read_plain;

use crate::error::CommandError;
use crate::guest::Guest;
use crate::session::Session;
use crate::style::printable;

/// Most places that are named where there are several.
const MOST: usize = 6;

/// The place of such a name; `None` where nothing has it.
pub(crate) fn named(session: &Session, name: &str) -> Result<Option<u64>, CommandError> {
    let found = match line(name) {
        Some((file, line)) => code_of(session, file, line),
        None => match data(session, name) {
            Some((address, _)) => vec![address],
            None => sites(session, name),
        },
    };
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => {
            let which: Vec<_> = found.iter().take(MOST).map(|at| session.shown(*at)).collect();
            let more = if found.len() > MOST { ", …" } else { "" };
            let which = format!("{}{more}", which.join(", "));
            Err(CommandError::SeveralPlaces { name: name.to_owned(), count: found.len(), which })
        }
    }
}

/// `kmalloc.rs:121`, as file and line.
fn line(name: &str) -> Option<(&str, u32)> {
    let (file, line) = name.rsplit_once(':').filter(|(file, _)| !file.is_empty() && !file.ends_with(':'))?;
    Some((file, line.parse().ok()?))
}

/// Where the code of a line begins, in each function that has some.
fn code_of(session: &Session, file: &str, line: u32) -> Vec<u64> {
    let mut places: Vec<(Option<u64>, u64)> = Vec::new();
    for address in session.source().addresses(file, line) {
        let function = session.symbols().at(address).map(|(symbol, _)| symbol.address);
        match places.iter_mut().find(|(other, _)| *other == function) {
            Some((_, first)) => *first = address.min(*first),
            None => places.push((function, address)),
        }
    }
    places.into_iter().map(|(_, address)| address).collect()
}

/// A word of data by its name, with its bytes where they are known: one that the case names in its reports, or a variable of a
/// plain guest.
pub(crate) fn data(session: &Session, name: &str) -> Option<(u64, Option<usize>)> {
    match session.guest() {
        Guest::Contract(_) => {
            let word = named_words(session).find(|word| text::of(&word.name) == name)?;
            Some((word.address, Some(if word.width == 8 { 8 } else { 4 })))
        }
        Guest::Plain(program) => {
            let object = program.objects().into_iter().find(|object| object.name == name)?;
            Some((object.address, usize::try_from(object.size).ok().filter(|size| matches!(size, 1 | 2 | 4 | 8))))
        }
        Guest::Unreadable(_) => None,
    }
}

/// The names of words of data, for completion.
pub(crate) fn words(session: &Session) -> Vec<String> {
    match session.guest() {
        Guest::Contract(_) => named_words(session).map(|word| printable(text::of(&word.name))).collect(),
        Guest::Plain(program) => program.objects().into_iter().map(|object| object.name).collect(),
        Guest::Unreadable(_) => Vec::new(),
    }
}

/// An address as [`Session::shown`], with the name before it that the case has for it.
pub(crate) fn shown(session: &Session, address: u64) -> String {
    let name = match session.guest() {
        Guest::Contract(_) => named_words(session).find(|word| word.address == address),
        Guest::Plain(_) | Guest::Unreadable(_) => None,
    };
    match name {
        Some(word) => format!("{} at {}", printable(text::of(&word.name)), session.shown(address)),
        None => session.shown(address),
    }
}

/// The words that the case names in its reports.
fn named_words(session: &Session) -> impl Iterator<Item = NamedWord> + use<> {
    let ghost: GhostPage = read_plain(session.memory(), GHOST).unwrap_or_default();
    ghost.words.into_iter().filter(|word| word.address != 0)
}

/// Where the spins of a function of the protocol begin.
fn sites(session: &Session, name: &str) -> Vec<u64> {
    let Some(program) = session.guest().contract() else { return Vec::new() };
    let is = |site: u64| program.site_at(site).is_some_and(|site| site.function == name);
    program.ranges().iter().filter(|range| is(range.site)).map(|range| range.start).collect()
}

#[cfg(test)]
mod test {
    use stallbench_abi::layout::GHOST;
    use stallbench_abi::shared::{GhostPage, NamedWord};

    use crate::address::value;
    use crate::follow::Follower;
    use crate::sample::{session, session_with};
    use crate::session::Session;

    /// A machine whose case names a word.
    fn named(word: &str) -> Session {
        let mut name = [0; 16];
        name[..word.len()].copy_from_slice(word.as_bytes());
        session_with(|machine| {
            let mut page = GhostPage::default();
            page.words[1] = NamedWord { name, address: 0x40_0064, width: 4, reserved: 0 };
            machine.memory.put(GHOST, &page);
        })
    }

    #[test]
    fn line_of_the_source_is_a_place() {
        let session = session();
        let at = value(&session, "kmalloc.rs:60").expect("it has code, or a line behind it");
        let line = session.source().line(at).expect("a line");
        let (_, line) = line.split_once("guest/payload/src/call/").expect("in that file");
        assert_eq!(value(&session, line).expect("it has code"), at);
        assert_eq!(value(&session, &format!("call/{line}+4")).expect("it has code"), at + 4);
        assert!(value(&session, "malloc.rs:60").is_err() && value(&session, "kmalloc.rs:99999").is_err());
    }

    #[test]
    fn line_in_several_functions_is_told_with_all_of_them() {
        let error = value(&session(), "wait.rs:1").expect_err("it is inlined everywhere").to_string();
        assert!(error.starts_with("wait.rs:1 is in ") && error.contains(" places: 0x"), "{error}");
    }

    #[test]
    fn word_that_the_case_names_is_a_place() {
        let session = named("gate");
        assert_eq!(value(&session, "gate").expect("it is named"), 0x40_0064);
        assert_eq!(value(&session, "gate+4").expect("it is named"), 0x40_0068);
        let unknown = value(&session, "gates").expect_err("it is not named so").to_string();
        assert!(unknown.contains("did you mean gate"), "{unknown}");
        assert_eq!(super::shown(&session, 0x40_0064), "gate at 0x400064 (arena+0x64)");
        assert_eq!(session.complete("watch ga"), (6, vec!["gate".to_owned()]));
        let unnamed = crate::sample::session();
        let function = value(&unnamed, "dispatch").expect("a function");
        assert_ne!(value(&named("dispatch"), "dispatch").expect("it is named"), function);
    }

    #[test]
    fn wait_site_of_one_layer_is_a_place() {
        let session = session();
        let site = value(&session, "quiesce_stack").expect("one layer has it");
        assert!(session.guest().contract().expect("the image").site_of_rip(site).is_some());
        let error = value(&session, "call_many").expect_err("several layers have it").to_string();
        assert!(error.starts_with("call_many is in "), "{error}");
    }
}
