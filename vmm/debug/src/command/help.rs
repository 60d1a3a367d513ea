//! `help`: the commands, or one of them.

use serde_json::json;

use super::{ALL, Command, Needs, Takes, named};
use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;
use crate::style;

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
    let is_live = |command: &&Command| command.needs == Needs::Live;
    let is_trace = |command: &&Command| command.needs == Needs::Trace;
    let (live, any): (Vec<_>, Vec<_>) = ALL.iter().partition(is_live);
    let (trace, any): (Vec<_>, Vec<_>) = any.into_iter().partition(is_trace);
    let width = ALL.iter().map(|command| command.usage.len()).max().unwrap_or(0);
    let line = |command: &&Command| format!("{:width$}  {}\n", command.usage, command.summary);
    let of = |commands: &[&Command]| commands.iter().map(line).collect::<String>();
    let in_data = |command: &Command| {
        let (is_live, is_trace) = (command.needs == Needs::Live, command.needs == Needs::Trace);
        json!({"usage": command.usage, "summary": command.summary, "live": is_live, "trace": is_trace})
    };
    let data: Vec<_> = ALL.iter().map(in_data).collect();
    let live_heading = style::heading("Of a machine that can run on, and of no dump");
    let trace_heading = style::heading("Of a machine at a step of a trace");
    let text = format!("{}\n{trace_heading}\n{}\n{live_heading}\n{}{ADDRESSES}", of(&any), of(&trace), of(&live));
    Answer::new(text, json!(data))
}

fn of(command: &Command) -> Answer {
    let Command { usage, summary, details, .. } = command;
    let text = format!("{usage}\n  {summary}\n{}{details}", if details.is_empty() { "" } else { "\n" });
    Answer::new(text, json!({"usage": usage, "summary": summary, "details": details}))
}
