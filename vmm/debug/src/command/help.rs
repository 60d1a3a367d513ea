//! `help`: the commands, or one of them.

use serde_json::json;

use super::{ALL, Command, Needs, Takes, named};
use crate::answer::{Answer, columns, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "help",
    usage: "help [COMMAND]",
    summary: "the commands, or more of one",
    details: "",
    takes: Takes::Command,
    needs: Needs::Nothing,
    run,
};

/// What is said below the list.
const ADDRESSES: &str = "\nAn address is a number, a symbol (the last parts of its path are enough), a line of the source (kmalloc.rs:122), a \
word\nthat the case names in its reports (gate), a register ($rip), each with +NUMBER or -NUMBER behind it; `phys:` before\nit makes it \
guest-physical. A vCPU is a number; where none is said, it is that of `vcpu N`. Commands end at `;`, words with \
spaces stand in\nquotation marks, and `#` begins a comment.\n";

fn run(_: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let name = arguments.next();
    arguments.end()?;
    match name {
        Some(name) => named(name).map(of),
        None => Ok(list()),
    }
}

fn list() -> Answer {
    let rows: Vec<_> = ALL.iter().map(|command| row([command.usage, command.summary])).collect();
    let data: Vec<_> = ALL.iter().map(|command| json!({"usage": command.usage, "summary": command.summary})).collect();
    Answer::new(columns(&rows) + ADDRESSES, json!(data))
}

fn of(command: &Command) -> Answer {
    let Command { usage, summary, details, .. } = command;
    let text = format!("{usage}\n  {summary}\n{}{details}", if details.is_empty() { "" } else { "\n" });
    Answer::new(text, json!({"usage": usage, "summary": summary, "details": details}))
}
