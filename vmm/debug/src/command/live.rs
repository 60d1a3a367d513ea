//! Commands on a machine that can run on, and how it is told why one stands still.

pub(super) mod inject;
pub(super) mod run;
pub(super) mod step;
pub(super) mod stops;
pub(super) mod write;

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::disas;
use crate::address::Address;
use crate::answer::{Answer, hex};
use crate::bits::number;
use crate::linear::Linear;
use crate::live::{State, Stop, Why};
use crate::place;
use crate::session::Session;
use crate::style;

/// How a machine stands, after a look at it; where one vCPU is the reason, that is looked at from here on.
pub(crate) fn stopped(session: &mut Session, state: State) -> Answer {
    // What cannot be looked at now is told by the next command that looks.
    let looked = session.refresh();
    let another = session.has_told(state.clone()) == State::Gone && state != State::Gone;
    let mut text = String::new();
    if another {
        let _ = writeln!(text, "another run: {}", session.target().about().run);
    }
    let vcpu = vcpu_of(&state);
    text.push_str(&in_words(session, &state));
    let mut data = in_data(&state);
    if let (Ok(()), Some(vcpu)) = (looked, vcpu.filter(|vcpu| *vcpu < session.vcpus().len())) {
        session.select(vcpu);
        let (words, place) = here(session, vcpu);
        text.push_str(&words);
        data.extend(place);
    }
    Answer::new(text, Value::Object(data))
}

/// The vCPU that is the reason.
fn vcpu_of(state: &State) -> Option<usize> {
    match state {
        State::Stopped(Why::At { vcpu, .. }) => *vcpu,
        State::Stopped(Why::Progress { vcpu } | Why::Stepped { vcpu }) => Some(*vcpu),
        _ => None,
    }
}

fn in_words(session: &mut Session, state: &State) -> String {
    match state {
        State::Running => "the machine runs\n".into(),
        State::Gone => "the run is over, and its machine is gone: this is how it was seen last\n".into(),
        State::Stopped(Why::Start) => "the machine stands before its first instruction\n".into(),
        State::Stopped(Why::Asked) => "the machine stands still\n".into(),
        State::Stopped(Why::Stepped { vcpu }) => format!("vcpu{vcpu} made a step\n"),
        State::Stopped(Why::Progress { vcpu }) => format!("vcpu{vcpu} made progress\n"),
        State::Stopped(Why::At { number, vcpu }) => at_stop(session, *number, *vcpu),
        State::Stopped(Why::End { text, .. }) => {
            let indented: String = text.lines().map(|line| format!("  {line}\n")).collect();
            let heading =
                style::heading("the run is over, its machine as it was at the verdict; `run` or `quit` lets it go");
            format!("{heading}\n{indented}")
        }
    }
}

fn at_stop(session: &mut Session, number: u32, vcpu: Option<usize>) -> String {
    let stops = session.live().map_or(Ok(Vec::new()), |live| live.stops());
    let who = vcpu.map_or_else(|| "a vCPU".to_owned(), |vcpu| format!("vcpu{vcpu}"));
    let found = stops.map(|stops| stops.into_iter().find(|(other, ..)| *other == number).map(|(_, stop, _)| stop));
    let what = match found {
        Ok(Some(Stop::Execute { linear, .. })) => format!("has come to {}", session.shown(linear)),
        Ok(Some(Stop::Access { linear, size, reads })) => {
            let did = if reads { "read or written" } else { "written" };
            format!("has {did} {}, which holds {}", place::shown(session, linear), held(session, linear, size))
        }
        Ok(None) => "has come to it".into(),
        Err(error) => format!("has come to it, and the stops are not known: {error}"),
    };
    format!("stop {number}: {who} {what}\n")
}

/// What a watched word holds now.
fn held(session: &Session, linear: u64, size: usize) -> String {
    let mapped = session.vcpu_numbered(0).and_then(|vcpu| Linear::of(session.memory(), vcpu));
    match mapped.and_then(|memory| memory.read_exact(Address::Linear(linear), size)) {
        Ok(bytes) => format!("{:#x}", number(&bytes)),
        Err(_) => "nothing that can be read".into(),
    }
}

/// Where a vCPU stands, and the instruction that comes next there.
fn here(session: &Session, vcpu: usize) -> (String, Map<String, Value>) {
    let mut place = Map::new();
    let Some(rip) = session.vcpus()[vcpu].registers.as_ref().ok().map(|registers| registers.rip) else {
        return (format!("vcpu{vcpu}: its registers were not read\n"), place);
    };
    let mut text = format!("vcpu{vcpu} at {}", session.shown(rip));
    if let Some(line) = session.source().line(rip) {
        let _ = write!(text, ", {line}");
        place.insert("line".into(), json!(line));
    }
    text.push('\n');
    if let Some(instruction) = disas::at(session, vcpu, rip) {
        let _ = writeln!(text, "{} {rip:#x}  {instruction}", style::heading("=>"));
        place.insert("instruction".into(), json!(instruction));
    }
    place.extend([("rip".into(), hex(rip)), ("symbol".into(), json!(session.symbols().place(rip)))]);
    (text, place)
}

fn in_data(state: &State) -> Map<String, Value> {
    let (word, why) = match state {
        State::Running => ("running", Value::Null),
        State::Gone => ("gone", Value::Null),
        State::Stopped(why) => ("stopped", json!(reason(why))),
    };
    let mut data = Map::from_iter([("state".into(), json!(word)), ("why".into(), why)]);
    data.extend(vcpu_of(state).map(|vcpu| ("vcpu".into(), json!(vcpu))));
    match state {
        State::Stopped(Why::At { number, .. }) => data.insert("number".into(), json!(number)),
        State::Stopped(Why::End { result, .. }) => data.insert("result".into(), result.clone()),
        _ => None,
    };
    data
}

/// Why a machine stands still, in a word.
pub(super) fn reason(why: &Why) -> &'static str {
    match why {
        Why::Start => "start",
        Why::Asked => "asked",
        Why::Stepped { .. } => "step",
        Why::At { .. } => "stop",
        Why::Progress { .. } => "progress",
        Why::End { .. } => "end",
    }
}
