//! `break`, `watch`, `delete`: where the machine stops.

use serde_json::{Value, json};

use crate::address::value;
use crate::answer::{Answer, hex};
use crate::arguments::{Arguments, number};
use crate::command::memory::size;
use crate::command::{Command, Needs, Takes};
use crate::error::CommandError;
use crate::linear::Linear;
use crate::live::{How, Stop};
use crate::place;
use crate::session::Session;

pub(in crate::command) const BREAK: Command = Command {
    name: "break",
    usage: "break [ADDRESS] [vcpuN]",
    summary: "stop the machine before the instruction at an address, of any vCPU or one; without: the stops",
    details: "The address may be a line of the source too (kmalloc.rs:121), or a wait site by its function. A processor has four \
breakpoints\nfor `break` and `watch` together. A vCPU that stands there already comes to it when it is there again.\n",
    takes: Takes::Address,
    needs: Needs::Live,
    run: stop_before,
};

pub(in crate::command) const WATCH: Command = Command {
    name: "watch",
    usage: "watch ADDRESS [SIZE] [--reads]",
    summary: "stop the machine behind a write to SIZE bytes of memory (1, 2, 4, 8), or with --reads a read too",
    details: "The address may be a word that the case names in its reports too (gate). By the processor's breakpoints where they work \
on this\nhost; else by stepping every instruction of every vCPU, which takes some tens of times as long and sees a value that changes, \
no read.\nWithout SIZE it is that of the named word, else 4, or what the address is aligned to. vCPU 0 maps the address.\n",
    takes: Takes::Address,
    needs: Needs::Live,
    run: stop_behind,
};

pub(in crate::command) const DELETE: Command = Command {
    name: "delete",
    usage: "delete N|all",
    summary: "take the stop of that number away, or all",
    details: "",
    takes: Takes::All,
    needs: Needs::Live,
    run: delete,
};

fn stop_before(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let Some(word) = arguments.next() else { return list(session) };
    session.refresh()?;
    let linear = value(session, word)?;
    let vcpu = arguments.next().map(|word| session.vcpu_of(Some(word)).map(|vcpu| vcpu.index)).transpose()?;
    arguments.end()?;
    add(session, Stop::Execute { linear, vcpu })
}

fn stop_behind(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    session.refresh()?;
    let reads = arguments.flag("--reads");
    let word = arguments.word("the address")?;
    let linear = value(session, word)?;
    let named = place::data(session, word).and_then(|(_, size)| size);
    let bytes = match arguments.next() {
        Some(word) => bytes(&arguments, word)?,
        None => named.unwrap_or(1 << linear.trailing_zeros().min(2)),
    };
    arguments.end()?;
    if linear % bytes as u64 != 0 {
        return Err(arguments.wrong(format!("{linear:#x} is not aligned to {bytes} bytes, as a processor wants it")));
    }
    Linear::of(session.memory(), session.vcpu_numbered(0)?)?.read(crate::address::Address::Linear(linear), 1)?;
    add(session, Stop::Access { linear, size: bytes, reads })
}

/// A size in bytes, as a number or by its letter.
pub(super) fn bytes(arguments: &Arguments<'_>, word: &str) -> Result<usize, CommandError> {
    let as_number = number(word).and_then(|number| usize::try_from(number).ok());
    let bytes = size(word).or(as_number.filter(|number| matches!(number, 1 | 2 | 4 | 8)));
    bytes.ok_or_else(|| arguments.wrong(format!("the size is one of 1, 2, 4, 8, and not {word}")))
}

fn add(session: &mut Session, stop: Stop) -> Result<Answer, CommandError> {
    let (number, how) = session.machine()?.add(stop)?;
    Ok(Answer::new(in_words(session, number, stop, how), in_data(session, number, stop, how)))
}

fn list(session: &mut Session) -> Result<Answer, CommandError> {
    let stops = session.machine()?.stops()?;
    let text: String = stops.iter().map(|(number, stop, how)| in_words(session, *number, *stop, *how)).collect();
    let data: Vec<_> = stops.iter().map(|(number, stop, how)| in_data(session, *number, *stop, *how)).collect();
    Ok(Answer::new(if stops.is_empty() { "no stops".into() } else { text }, json!(data)))
}

fn in_words(session: &Session, number: u32, stop: Stop, how: How) -> String {
    match stop {
        Stop::Execute { linear, vcpu } => {
            let line = session.source().line(linear).map(|line| format!(", {line}")).unwrap_or_default();
            let who = vcpu.map_or_else(|| "any vCPU".to_owned(), |vcpu| format!("vcpu{vcpu}"));
            format!("stop {number}: before {}{line}, of {who}; seen {how}\n", session.shown(linear))
        }
        Stop::Access { linear, size, reads } => {
            let what = if reads { "a read or a write" } else { "a write" };
            let bytes = if size == 1 { "1 byte".to_owned() } else { format!("{size} bytes") };
            format!("stop {number}: behind {what} of {bytes}, {}; seen {how}\n", place::shown(session, linear))
        }
    }
}

fn in_data(session: &Session, number: u32, stop: Stop, how: How) -> Value {
    let how = if how == How::Breakpoint { "breakpoint" } else { "stepping" };
    match stop {
        Stop::Execute { linear, vcpu } => {
            let symbol = session.symbols().place(linear);
            json!({"number": number, "kind": "execute", "address": hex(linear), "symbol": symbol, "vcpu": vcpu, "by": how})
        }
        Stop::Access { linear, size, reads } => {
            let kind = if reads { "access" } else { "write" };
            json!({"number": number, "kind": kind, "address": hex(linear), "size": size, "by": how})
        }
    }
}

fn delete(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let word = arguments.word("the number of the stop")?;
    arguments.end()?;
    let live = session.machine()?;
    let stops: Vec<u32> = live.stops()?.into_iter().map(|(number, ..)| number).collect();
    let asked: Vec<u32> = match word {
        "all" => stops,
        word => number(word)
            .and_then(|word| u32::try_from(word).ok())
            .filter(|one| stops.contains(one))
            .into_iter()
            .collect(),
    };
    if asked.is_empty() && word != "all" {
        return Err(arguments.wrong(format!("there is no stop {word}")));
    }
    for number in &asked {
        live.remove(*number)?;
    }
    let text = match asked.len() {
        0 => "there were none".to_owned(),
        1 => format!("stop {} is gone", asked[0]),
        count => format!("{count} stops are gone"),
    };
    Ok(Answer::new(text, json!({"deleted": asked})))
}

#[cfg(test)]
mod test {
    use serde_json::json;

    use crate::sample::live::Lively;
    use crate::sample::{answer, plain, rip};
    use crate::session::Session;

    fn said(session: &mut Session, line: &str) -> String {
        plain(&answer(session, line).map_or_else(|error| format!("{error}\n"), |answer| answer.text))
    }

    #[test]
    fn stops_are_set_listed_and_taken_away() {
        let mut session = Lively::new().session();
        let at = rip();
        assert_eq!(said(&mut session, "break"), "no stops\n");
        let first = said(&mut session, "break $rip");
        assert!(first.starts_with(&format!("stop 1: before {at:#x} (")), "{first}");
        assert!(first.ends_with(", of any vCPU; seen by a breakpoint of the processor\n"), "{first}");
        assert!(said(&mut session, "break _start vcpu1").contains("of vcpu1; seen"));
        let watched = said(&mut session, "watch 0x4000e0");
        assert_eq!(
            watched,
            "stop 3: behind a write of 4 bytes, 0x4000e0 (arena+0xe0); seen by stepping every instruction\n"
        );
        assert!(
            said(&mut session, "watch 0x4000e0 q --reads").starts_with("stop 4: behind a read or a write of 8 bytes")
        );
        assert!(said(&mut session, "break 0x1000").starts_with("a processor has four breakpoints"));
        assert_eq!(said(&mut session, "break").lines().count(), 4);
        assert_eq!(said(&mut session, "delete 2"), "stop 2 is gone\n");
        let data = answer(&mut session, "break").expect("it has an answer").data;
        assert_eq!(data[1], json!({"number": 3, "kind": "write", "address": "0x4000e0", "size": 4, "by": "stepping"}));
        assert_eq!(said(&mut session, "delete all"), "3 stops are gone\n");
        assert_eq!(said(&mut session, "delete all"), "there were none\n");
    }

    #[test]
    fn stop_that_cannot_be_is_refused() {
        let mut session = Lively::new().session();
        for (line, says) in [
            ("break nowhere_at_all", "neither a number nor a symbol"),
            ("break $rip vcpu7", "no vCPU vcpu7"),
            ("break $rip vcpu1 more", "break takes no more"),
            ("watch", "the address is missing"),
            ("watch 0x4000e1 4", "0x4000e1 is not aligned to 4 bytes"),
            ("watch 0x4000e0 3", "the size is one of 1, 2, 4, 8, and not 3"),
            ("watch 0xffff800000000000", "vcpu0 has nothing mapped at"),
            ("delete", "the number of the stop is missing"),
            ("delete 1", "there is no stop 1"),
            ("delete x", "there is no stop x"),
        ] {
            assert!(said(&mut session, line).starts_with(says), "{line}: {}", said(&mut session, line));
        }
    }

    #[test]
    fn byte_that_is_aligned_to_no_more_is_watched_by_itself() {
        let mut session = Lively::new().session();
        assert!(said(&mut session, "watch 0x4000e1").contains("a write of 1 byte,"));
        assert!(said(&mut session, "watch 0x4000e2").contains("a write of 2 bytes"));
    }
}
