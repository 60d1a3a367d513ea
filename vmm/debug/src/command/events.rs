//! `events`: what the vCPUs recorded, in the order in which it happened.

mod words;

use std::fmt::Write;

use serde_json::{Value, json};
use stallbench_abi::event::Event;
use stallbench_state::published::{events, merged_events};

use super::{Command, Needs, Takes};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "events",
    usage: "events [VCPU|all] [COUNT]",
    summary: "the event rings of the vCPUs, merged in order: the newest 40, or COUNT",
    details: "Events are what the guest recorded of itself; they explain, and prove nothing. A ring holds the newest 1024 of its vCPU. \
The\nfirst column is the place in the order of all vCPUs, the third the nesting depth of the context.\n",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

/// Events that are shown where nothing is said.
const SHOWN: usize = 40;

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    session.contract("events")?;
    let of = arguments.next().filter(|word| *word != "all");
    let vcpu = of.map(|word| session.vcpu_of(Some(word)).map(|vcpu| vcpu.index)).transpose()?;
    let count = arguments.count("the count", usize::MAX)?.unwrap_or(SHOWN);
    arguments.end()?;
    let mut all = merged_events(session.memory(), session.vcpus().len());
    all.retain(|(by, _)| vcpu.is_none_or(|vcpu| vcpu == *by));
    let shown = &all[all.len().saturating_sub(count)..];
    let data: Vec<Value> = shown.iter().map(|(vcpu, event)| in_data(session, *vcpu, event)).collect();
    Ok(Answer::new(in_text(session, shown, all.len(), vcpu), json!(data)))
}

fn in_text(session: &Session, shown: &[(usize, Event)], all: usize, of: Option<usize>) -> String {
    let rows: Vec<_> = shown.iter().map(|(vcpu, event)| in_row(session, *vcpu, event)).collect();
    let mut text = String::new();
    for vcpu in (0..session.vcpus().len()).filter(|vcpu| of.is_none_or(|of| of == *vcpu)) {
        let lost = events(session.memory(), vcpu).lost;
        if lost > 0 {
            let _ = writeln!(text, "vcpu{vcpu}: {lost} older events were overwritten");
        }
    }
    if shown.len() < all {
        let _ = writeln!(text, "the newest {} of {all}; `events all {all}` shows all", shown.len());
    }
    if all == 0 {
        text.push_str("no events\n");
    }
    text + &columns(&rows)
}

fn in_row(session: &Session, vcpu: usize, event: &Event) -> Vec<String> {
    let (clock, depth) = (event.clock.to_string(), event.depth.to_string());
    row([&clock, &format!("vcpu{vcpu}"), &depth, &event.kind.to_string(), &words::of(session, event)])
}

fn in_data(session: &Session, vcpu: usize, event: &Event) -> Value {
    json!({
        "clock": event.clock,
        "vcpu": vcpu,
        "depth": event.depth,
        "kind": event.kind.to_string(),
        "arg": event.arg,
        "a": hex(event.a),
        "b": hex(event.b),
        "words": words::of(session, event),
    })
}

#[cfg(test)]
mod test {
    use stallbench_abi::event::{CallShape, Event, EventKind, TO_ALL_BUT_SELF};
    use stallbench_abi::layout::{private, private_area};

    use crate::sample::{answer, refusal, session_with, text};

    #[test]
    fn events_stand_in_the_order_of_their_clocks() {
        let text = text("events");
        let order: Vec<_> =
            text.lines().map(|line| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(order, ["0 vcpu1 0 wait", "1 vcpu0 0 wait"]);
    }

    #[test]
    fn newest_are_shown_and_the_others_are_counted() {
        let text = text("events all 1");
        assert!(text.starts_with("the newest 1 of 2; `events all 2` shows all\n1  vcpu0"), "{text}");
        assert!(crate::sample::text("events 1").starts_with("0  vcpu1"));
        assert!(refusal("events all 0").starts_with("the count must be a number from 1 to "));
        assert_eq!(refusal("events 9"), "no vCPU 9: there are 2, from 0 on");
    }

    #[test]
    fn arguments_of_events_are_words() {
        let ring = |event: Event| {
            let mut session = session_with(|machine| machine.memory.put(private(0) + private_area::RING, &event));
            answer(&mut session, "events 0").expect("it has an answer").text
        };
        let (kind, arg) = (EventKind::CALL, CallShape::MANY.0 << 8);
        assert!(
            ring(Event { kind, arg, a: 3, b: 0, ..Event::default() }).contains("call 3, many, wait=0, function 0x0")
        );
        let ipi = Event { kind: EventKind::IPI, arg: 0xfb, a: TO_ALL_BUT_SELF, ..Event::default() };
        assert!(ring(ipi).contains("0xfb (single-target call) to all but itself"));
        let unknown = Event { kind: EventKind(999), arg: 1, a: 2, b: 3, ..Event::default() };
        assert!(ring(unknown).contains("unknown(999)  arg 0x1, a 0x2, b 0x3"));
    }
}
