//! `mem` and `search`: bytes of memory, and where a value lies.

use serde_json::json;
use stallbench_abi::layout::PAGE;
use stallbench_state::memory::Memory;

use super::{Command, Needs, Takes};
use crate::address::{Address, address, value};
use crate::answer::{Answer, hex};
use crate::arguments::Arguments;
use crate::bits::{number, too_wide};
use crate::error::CommandError;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "mem",
    usage: "mem ADDRESS [COUNT] [b|w|d|q]",
    summary: "memory: COUNT bytes, words, double or quad words, as the current vCPU maps it, or `phys:`ADDRESS",
    details: "Without a size bytes are shown with their characters; quad words are shown with what they point to.\n",
    takes: Takes::Address,
    needs: Needs::Machine,
    run,
};

pub(super) const SEARCH: Command = Command {
    name: "search",
    usage: "search VALUE [b|w|d|q]",
    summary: "where a value lies in guest-physical memory, aligned to its size: the first 32 places",
    details: "VALUE is a number, a symbol, a register, each with an offset. It is looked for in eight bytes where no size is said, \
and\nnot in pages that hold nothing but zeros.\n",
    takes: Takes::Address,
    needs: Needs::Machine,
    run: search,
};

/// Most elements that are shown.
const MOST: usize = 4096;
/// Most places that are listed.
const MOST_PLACES: usize = 32;

/// A size in bytes by its letter.
pub(super) fn size(letter: &str) -> Option<usize> {
    Some(match letter {
        "b" => 1,
        "w" => 2,
        "d" => 4,
        "q" => 8,
        _ => return None,
    })
}

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let at = address(session, arguments.word("the address")?)?;
    let (mut count, mut element) = (None, None);
    while let Some(word) = arguments.next() {
        match (size(word), crate::arguments::number(word)) {
            (Some(size), _) if element.is_none() => element = Some(size),
            (None, Some(wanted)) if count.is_none() && (1..=MOST as u64).contains(&wanted) => {
                count = Some(wanted as usize)
            }
            _ => {
                return Err(
                    arguments.wrong(format!("{word} is neither a count from 1 to {MOST} nor one of b, w, d, q"))
                );
            }
        }
    }
    let size = element.unwrap_or(1);
    let length = count.unwrap_or(if size == 1 { 64 } else { 8 }) * size;
    let bytes = session.linear()?.read(at, length)?;
    let mut text = if size == 1 { in_bytes(at, &bytes) } else { in_words(session, at, &bytes, size) };
    if bytes.len() < length {
        text.push_str(&format!("{:#x} and what is behind it is not there\n", at.plus(bytes.len() as u64).value()));
    }
    let data = json!({"address": hex(at.value()), "bytes": bytes});
    Ok(Answer::new(text, data))
}

fn in_bytes(at: Address, bytes: &[u8]) -> String {
    let of = |(line, bytes): (usize, &[u8])| {
        let numbers: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let characters: String =
            bytes.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' }).collect();
        format!("{:#012x}  {:47}  {characters}\n", at.plus(16 * line as u64).value(), numbers.join(" "))
    };
    bytes.chunks(16).enumerate().map(of).collect()
}

fn in_words(session: &Session, at: Address, bytes: &[u8], size: usize) -> String {
    let per_line = if size == 8 { 1 } else { 16 / size };
    let of = |(line, bytes): (usize, &[u8])| {
        let words: Vec<_> =
            bytes.chunks_exact(size).map(|word| format!("{:0width$x}", number(word), width = 2 * size)).collect();
        let meaning = if size == 8 { session.meaning(number(bytes)) } else { None };
        let meaning = meaning.map(|meaning| format!("  {meaning}")).unwrap_or_default();
        format!("{:#012x}  {}{meaning}\n", at.plus((per_line * size * line) as u64).value(), words.join(" "))
    };
    bytes.chunks(per_line * size).enumerate().map(of).collect()
}

fn search(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let wanted = value(session, arguments.word("the value")?)?;
    let letter = arguments.next();
    let size = size(letter.unwrap_or("q")).ok_or_else(|| arguments.wrong("the size is one of b, w, d, q"))?;
    arguments.end()?;
    if size < 8 && wanted >> (8 * size) != 0 {
        return Err(arguments.wrong(too_wide(wanted, size)));
    }
    let mut found = Vec::new();
    for range in session.target().filled() {
        find(session.memory(), range, &wanted.to_le_bytes()[..size], &mut found);
    }
    let mut text: String = found.iter().take(MOST_PLACES).map(|at| format!("{}\n", session.shown(*at))).collect();
    match found.len() {
        0 => text.push_str(&format!("{wanted:#x} lies nowhere\n")),
        count if count > MOST_PLACES => text.push_str("and more\n"),
        _ => {}
    }
    let places: Vec<_> = found.iter().take(MOST_PLACES).map(|at| hex(*at)).collect();
    Ok(Answer::new(text, json!(places)))
}

/// Adds the places of a value in a range, up to one more than are listed.
fn find(memory: &dyn Memory, range: std::ops::Range<u64>, wanted: &[u8], found: &mut Vec<u64>) {
    let mut page = vec![0; PAGE as usize];
    let mut at = range.start;
    while at < range.end && found.len() <= MOST_PLACES {
        let length = (PAGE - at % PAGE).min(range.end - at);
        let bytes = &mut page[..length as usize];
        if memory.read(at, bytes) {
            let places = bytes.chunks_exact(wanted.len()).enumerate().filter(|(_, bytes)| *bytes == wanted);
            found.extend(places.map(|(place, _)| at + (place * wanted.len()) as u64));
        }
        at += length;
    }
    found.truncate(MOST_PLACES + 1);
}

#[cfg(test)]
mod test {
    use stallbench_abi::layout::{memory_end, private};

    use crate::sample::{WORDS, answer, refusal, rip, session_with, text};

    #[test]
    fn memory_is_shown_as_bytes_or_as_words() {
        assert_eq!(text("mem 0x4000e0 4"), "0x00004000e0  01 00 00 00                                      ....\n");
        assert_eq!(text("mem 0x4000e0 2 d"), "0x00004000e0  00000001 00000000\n");
        assert_eq!(text("mem 0x200000 d 1"), "0x0000200000  6c617473\n");
        assert!(text("mem phys:0x200000 8").ends_with("  stallbnc\n"));
    }

    #[test]
    fn quad_words_are_shown_with_what_they_point_to() {
        let mut session = session_with(|machine| machine.memory.put(0x40_0800, &rip()));
        let text = answer(&mut session, "mem 0x400800 1 q").expect("it has an answer").text;
        let place = session.meaning(rip()).expect("code has a name");
        assert_eq!(text, format!("0x0000400800  {:016x}  {place}\n", rip()));
    }

    #[test]
    fn memory_that_ends_is_shown_up_to_there() {
        let end = memory_end(2);
        let text = text(&format!("mem {:#x} 32", end - 16));
        assert!(text.contains(&format!("{end:#x} and what is behind it is not there")), "{text}");
        assert!(refusal(&format!("mem phys:{end:#x}")).starts_with("no guest memory at physical address "));
        assert!(
            refusal("mem 0xffffffffffffffff").starts_with("vcpu0 has nothing mapped at 0xffffffffffffffff: its PML4E")
        );
    }

    #[test]
    fn arguments_that_are_none_are_refused() {
        assert!(refusal("mem").starts_with("the address is missing; usage: mem ADDRESS"));
        for line in ["mem 0 0", "mem 0 4097", "mem 0 q q", "mem 0 1 2", "mem 0 x"] {
            assert!(refusal(line).contains("is neither a count"), "{line}");
        }
    }

    #[test]
    fn value_is_found_where_it_lies() {
        let mut session = session_with(|machine| machine.memory.put(private(1) + 0x3000, &0x1234_5678_9abc_u64));
        let data = answer(&mut session, "search 0x123456789abc").expect("it has an answer").data;
        assert_eq!(data, serde_json::json!([format!("{:#x}", private(1) + 0x3000)]));
        assert_eq!(text("search 0xdeadbeefdeadbeef"), "0xdeadbeefdeadbeef lies nowhere\n");
        assert!(text("search 1 d").ends_with("and more\n") || text("search 1 d").contains(&format!("{:#x}", WORDS[0])));
        assert!(refusal("search 0x100 b").starts_with("0x100 does not fit in 1 byte"));
    }
}
