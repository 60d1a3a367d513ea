//! `verdict`: what the run said of the machine, and what the machine as it stands says by itself.

use std::fmt::Write;

use core::time::Duration;
use serde_json::{Value, json};
use stallbench_stall::report::Stall;
use stallbench_stall::{Analysis, Ran, conclude};

use super::{Command, Needs, Takes};
use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "verdict",
    usage: "verdict",
    summary: "what the run said, and what the machine as it stands says: kind, culprit, root",
    details: "On a live machine a proof is tried too, and costs the run nothing. One capture shows which waits nobody can end, and no more: that the vCPUs ran and nothing moved takes two of them, which \
is what\nthe run's verdict rests on (docs/stall.md).\n",
    takes: Takes::Nothing,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    arguments.end()?;
    let proof = session.live().map(|live| live.prove());
    let result = session.target().about().result.clone();
    let mut text = result.as_ref().map_or_else(|| "the run said nothing: it was not over\n".to_owned(), said);
    let mut data = session.analysed(|analysis| {
        text.push_str(&now(session, analysis));
        json!({"run": result, "now": stall(analysis), "doing": doing(analysis)})
    });
    match proof {
        None => {}
        Some(Ok((words, proof))) => {
            let _ = writeln!(text, "{} {}", style::heading("now:"), words.trim_end());
            data["proof"] = proof;
        }
        Some(Err(error)) => {
            let _ = writeln!(text, "{} no proof: {error}", style::heading("now:"));
            data["no_proof"] = json!(error.to_string());
        }
    }
    Ok(Answer::new(text, data))
}

/// What a result says (docs/json.md). It may come from any file: what is not there is not said.
fn said(result: &Value) -> String {
    let word = |key: &str| result[key].as_str().map(|word| format!(" {word}")).unwrap_or_default();
    let verdict = format!("the run said:{}{}{}", word("verdict"), word("kind"), word("strength"));
    let mut text = style::heading(&verdict) + "\n";
    let culprit = &result["culprit"];
    if culprit.is_object() {
        let _ = writeln!(text, "  culprit: {}", culprit_in_words(culprit));
    }
    for member in list(&result["root"]) {
        let _ = writeln!(text, "  root: vcpu{} {}", member["vcpu"], plain(&member["doing"]));
    }
    if let Some(vcpu) = result["vcpu"].as_u64() {
        let _ = writeln!(text, "  vcpu{vcpu}");
    }
    if let (Some(file), Some(line)) = (result["file"].as_str(), result["line"].as_u64()) {
        let _ = writeln!(text, "  at: {file}:{line}");
    }
    for (key, words) in [("reason", "reason"), ("text", "text"), ("symbol", "in"), ("site", "at")] {
        if let Some(value) = result[key].as_str() {
            let _ = writeln!(text, "  {words}: {value}");
        }
    }
    for repeated in list(&result["loops"]) {
        let _ =
            writeln!(text, "  vcpu{} {} at {}", repeated["vcpu"], plain(&repeated["does"]), plain(&repeated["rip"]));
    }
    for difference in list(&result["differences"]) {
        let _ = writeln!(text, "  {} {}", style::bad("not as expected:"), plain(difference));
    }
    text
}

fn culprit_in_words(culprit: &Value) -> String {
    format!("vcpu{} in {}: {}", culprit["vcpu"], plain(&culprit["site"]), plain(&culprit["reason"]))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The stall that this one capture shows, as if every vCPU had run since another just like it.
fn stall(analysis: &Analysis<'_>) -> Option<Stall> {
    let ran = vec![Ran { time: Duration::ZERO, entries: 1 }; analysis.vcpus.len()];
    conclude(analysis, analysis, &ran, Duration::ZERO)
}

fn doing(analysis: &Analysis<'_>) -> Vec<String> {
    (0..analysis.vcpus.len()).map(|vcpu| analysis.doing(vcpu)).collect()
}

/// What the machine as it stands says by itself.
fn now(session: &Session, analysis: &Analysis<'_>) -> String {
    let Some(stall) = stall(analysis) else { return moving(session, analysis) };
    let stuck = &analysis.closure.stuck;
    let heading = format!("as it stands: {}, {stuck} can never go on", stall.kind);
    let mut text = style::heading(&heading) + "\n";
    match &stall.culprit {
        Some(culprit) => {
            let _ = writeln!(text, "  culprit: vcpu{} in {}: {}", culprit.vcpu, culprit.site, culprit.reason);
        }
        None => text.push_str("  culprit: none, no wait breaks its own contract\n"),
    }
    for member in &stall.root {
        let _ = writeln!(text, "  root: vcpu{} {}", member.vcpu, member.doing);
    }
    text
}

fn moving(session: &Session, analysis: &Analysis<'_>) -> String {
    let contract = session.guest().contract().is_some();
    let why = match () {
        () if !contract => "this guest publishes no waits: its loops are what a proof says of it",
        () if analysis.is_quiescent() => "every vCPU has done its part and idles",
        () => "no wait that nobody can end",
    };
    let mut text = style::heading(&format!("as it stands: {why}")) + "\n";
    for (vcpu, doing) in doing(analysis).iter().enumerate() {
        let acting = if analysis.closure.acting.contains(vcpu) { "may act: " } else { "" };
        let _ = writeln!(text, "  vcpu{vcpu} {acting}{doing}");
    }
    text
}

#[cfg(test)]
mod test {
    use serde_json::json;

    use crate::live::State;
    use crate::sample::live::Lively;
    use crate::sample::{WORDS, answer, plain, session_with, text};

    #[test]
    fn proof_is_tried_on_a_live_machine() {
        let lively = Lively::new();
        let mut session = lively.session();
        let proved = answer(&mut session, "verdict").expect("it has an answer");
        assert!(plain(&proved.text).ends_with("now: 4 states, closed\n"), "{}", proved.text);
        assert_eq!(proved.data["proof"]["states"], 4);
        lively.inner().state = State::Gone;
        let gone = answer(&mut session, "verdict").expect("it has an answer");
        assert!(plain(&gone.text).contains("no proof: there is no machine"), "{}", gone.text);
    }

    #[test]
    fn cycle_is_a_deadlock_as_it_stands() {
        let text = text("verdict");
        assert!(text.starts_with("the run said nothing: it was not over\nas it stands: "), "{text}");
        assert!(text.contains("vcpu0, vcpu1 can never go on"), "{text}");
        assert!(text.contains("  root: vcpu0 ") || text.contains("  root: vcpu1 "), "{text}");
    }

    #[test]
    fn machine_that_moves_is_told_by_who_may_act() {
        let mut session = session_with(|machine| machine.memory.put(WORDS[0], &0_u32));
        let answer = answer(&mut session, "verdict").expect("it has an answer");
        assert!(answer.text.contains("no wait that nobody can end"), "{}", answer.text);
        assert!(answer.text.contains("vcpu0 may act: "), "{}", answer.text);
        assert!(answer.data["now"].is_null());
    }

    #[test]
    fn result_of_any_shape_is_read_as_far_as_it_goes() {
        for result in [json!(7), json!({"verdict": 1, "root": {}, "culprit": {}}), json!({"loops": [1, {}]})] {
            let said = super::said(&result);
            assert!(said.contains("the run said:"), "{said}");
        }
        let result = json!({"verdict": "stall", "kind": "deadlock", "strength": "proved", "differences": ["x"]});
        let said = super::said(&result);
        assert!(said.contains("the run said: stall deadlock proved") && said.contains("x"), "{said}");
    }
}
