//! `symbols`: functions and labels of the guest.

use serde_json::json;

use super::{Command, Needs, Takes};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::guest::Guest;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "symbols",
    usage: "symbols [PART]",
    summary: "functions and labels of the guest whose names contain PART, with address, size and line",
    details: "",
    takes: Takes::Address,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let part = arguments.next().unwrap_or_default();
    arguments.end()?;
    if let Guest::Unreadable(error) = session.guest() {
        return Err(error.into());
    }
    let all = session.symbols().all().iter();
    let found: Vec<_> = all.filter(|symbol| symbol.name.to_lowercase().contains(&part.to_lowercase())).collect();
    let line = |address| session.source().line(address).unwrap_or_default();
    let rows: Vec<_> = found
        .iter()
        .map(|symbol| {
            let (address, size) = (format!("{:#x}", symbol.address), symbol.size.to_string());
            row([&address, &size, &symbol.name, &line(symbol.address)])
        })
        .collect();
    let text = if rows.is_empty() { format!("no symbol with {part} in its name\n") } else { columns(&rows) };
    let data: Vec<_> = found
        .iter()
        .map(|symbol| json!({"name": symbol.name, "address": hex(symbol.address), "size": symbol.size, "line": line(symbol.address)}))
        .collect();
    Ok(Answer::new(text, json!(data)))
}

#[cfg(test)]
mod test {
    use crate::sample::{refusal, text};

    #[test]
    fn symbols_are_found_by_a_part_of_their_names() {
        let text = text("symbols interrupt::DISPATCH");
        assert!(
            text.contains("stallbench_rt::interrupt::dispatch") && text.contains("guest/rt/src/interrupt.rs:"),
            "{text}"
        );
        assert_eq!(crate::sample::text("symbols xyzzy"), "no symbol with xyzzy in its name\n");
        assert!(refusal("symbols a b").starts_with("symbols takes no b"));
    }
}
