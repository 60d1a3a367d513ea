//! `waits`: who waits for whom, as the machine confirms it.

mod picture;

use std::fmt::Write;

use serde_json::{Value, json};
use stallbench_stall::Analysis;
use stallbench_stall::conclude::waits;
use stallbench_stall::report::WaitReport;

use super::{Command, Needs, Takes};
use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "waits",
    usage: "waits [--dot|--svg]",
    summary: "who waits for whom: every published wait that the machine confirms, and what it denies",
    details: "A wait is confirmed where RIP lies in the spin of its site, the registers of the spin hold what is published, and the \
word in\nmemory lacks the value that ends it. `never` marks a wait that nobody can end any more. --dot and --svg draw the graph.\n",
    takes: Takes::Nothing,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let (dot, svg) = (arguments.flag("--dot"), arguments.flag("--svg"));
    arguments.end()?;
    session.contract("waits")?;
    Ok(session.analysed(|analysis| {
        let waits = waits(analysis);
        let data = data(analysis, &waits);
        let text = match (dot, svg) {
            (true, _) => picture::dot(analysis, &waits),
            (false, true) => picture::svg(analysis, &waits),
            (false, false) => text(session, analysis, &waits),
        };
        Answer::new(text, data)
    }))
}

fn data(analysis: &Analysis<'_>, waits: &[WaitReport]) -> Value {
    let contradictions: Vec<_> = analysis.contradictions().collect();
    let stuck: Vec<_> = analysis.closure.stuck.iter().collect();
    json!({"waits": waits, "stuck": stuck, "contradictions": contradictions})
}

fn text(session: &Session, analysis: &Analysis<'_>, waits: &[WaitReport]) -> String {
    let mut text = String::new();
    for wait in waits {
        text.push_str(&in_words(session, wait));
    }
    let others = (0..analysis.vcpus.len()).filter(|vcpu| !waits.iter().any(|wait| wait.vcpu == *vcpu));
    for vcpu in others {
        let _ = writeln!(text, "vcpu{vcpu} {}", analysis.doing(vcpu));
    }
    for contradiction in analysis.contradictions() {
        let _ = writeln!(text, "contradiction: {contradiction}");
    }
    text
}

/// A wait in a line, and what it looks at in another.
fn in_words(session: &Session, wait: &WaitReport) -> String {
    let WaitReport { vcpu, site, step, word, until, awaits, awaited_do, context, depth, .. } = wait;
    let step = if step.is_empty() { String::new() } else { format!(" {step}") };
    let never = if wait.closed { format!("{}  ", style::bad("never")) } else { String::new() };
    let mut text = format!("{never}vcpu{vcpu} waits in {site}{step} for {word} {until}, from {}", names(awaits));
    if !awaited_do.is_empty() {
        let _ = write!(text, " ({awaited_do})");
    }
    let interrupts = if wait.interrupts_enabled { "on" } else { "off" };
    let at = session.shown(wait.address.0);
    let _ = write!(text, "\n    {at} holds {:#x}; {context} context {depth}, interrupts {interrupts}", wait.value);
    if let Some(record) = wait.record {
        let _ = write!(text, "; of the record at {record}");
    }
    if let Some(gone) = &wait.gone {
        let _ = write!(text, "; {}", style::bad(&format!("of {gone}")));
    }
    text + "\n"
}

fn names(vcpus: &[usize]) -> String {
    let names: Vec<_> = vcpus.iter().map(|vcpu| format!("vcpu{vcpu}")).collect();
    if names.is_empty() { "nobody".into() } else { names.join(", ") }
}

#[cfg(test)]
mod test {
    use crate::sample::{WORDS, answer, refusal, session, session_with, text};

    #[test]
    fn cycle_of_waits_is_told_with_the_words_in_memory() {
        let text = text("waits");
        assert!(text.contains("never  vcpu0 waits in ") && text.contains(", from vcpu1"), "{text}");
        assert!(text.contains("0x4000e0 (arena+0xe0) holds 0x1; task context 0, interrupts on"), "{text}");
        assert!(text.contains("0x400100 (arena+0x100) holds 0x1; task context 0, interrupts off"), "{text}");
    }

    #[test]
    fn wait_whose_word_ends_it_is_no_wait() {
        let mut session = session_with(|machine| machine.memory.put(WORDS[0], &0_u32));
        let data = answer(&mut session, "waits").expect("it has an answer").data;
        assert_eq!(data["waits"].as_array().map(Vec::len), Some(1));
        assert_eq!(data["stuck"], serde_json::json!([]));
    }

    #[test]
    fn claim_that_the_machine_denies_is_a_contradiction() {
        let mut session = session_with(|machine| machine.machine.vcpus[0].registers.as_mut().expect("made so").rdi = 0);
        let text = answer(&mut session, "waits").expect("it has an answer").text;
        assert!(text.contains("contradiction: vcpu0 published "), "{text}");
    }

    #[test]
    fn graph_is_drawn_with_an_edge_for_each_who_is_awaited() {
        let dot = text("waits --dot");
        assert!(
            dot.starts_with("digraph") && dot.contains("vcpu0 -> vcpu1") && dot.contains("vcpu1 -> vcpu0"),
            "{dot}"
        );
        let svg = text("waits --svg");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("<path").count(), 3, "two edges and an arrow head");
        assert!(answer(&mut session(), "waits --dot").is_ok());
        assert_eq!(refusal("waits --png"), "waits takes no --png; usage: waits [--dot|--svg]");
    }

    #[test]
    fn guest_that_publishes_nothing_has_no_waits() {
        let mut session = session_with(|machine| machine.payload.clear());
        let error = answer(&mut session, "waits").expect_err("no program").to_string();
        assert!(error.starts_with("the payload in it cannot be read: "), "{error}");
    }
}
