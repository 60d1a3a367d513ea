//! `step`: instructions of one vCPU, while all others stand still.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use stallbench_state::machine::{MpState, VcpuState};

use super::here;
use crate::answer::{Answer, hex};
use crate::arguments::Arguments;
use crate::command::{Command, Needs, Takes};
use crate::error::CommandError;
use crate::live::{LiveError, State, Why};
use crate::registers::GENERAL;
use crate::session::Session;

pub(in crate::command) const COMMAND: Command = Command {
    name: "step",
    usage: "step [VCPU] [COUNT]",
    summary: "one instruction of a vCPU, or COUNT, while all others stand still; shows what changed",
    details: "No interrupt comes in between, and a vCPU that halts does not get on by it. The vCPU is looked at from here on.\n",
    takes: Takes::Vcpu,
    needs: Needs::Live,
    run,
};

/// Most instructions of one command.
const MOST: usize = 1_000_000;

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    session.refresh()?;
    let vcpu = session.vcpu_of(arguments.next())?.index;
    let count = arguments.count("the count", MOST)?.unwrap_or(1);
    arguments.end()?;
    let before = session.vcpu_numbered(vcpu)?.clone();
    if let Some(state) = standing(&before).filter(|_| session.state() != Some(State::Running)) {
        return Err(CommandError::TakesNoStep { vcpu, state });
    }
    let (done, error) = steps(session, vcpu, count)?;
    session.has_told(State::Stopped(Why::Stepped { vcpu }));
    session.refresh()?;
    session.select(vcpu);
    let changed = changed(&before, session.vcpu_numbered(vcpu)?);
    let (mut text, mut data) = here(session, vcpu);
    for (name, from, to) in &changed {
        let _ = writeln!(text, "  {name}: {} -> {}", session.shown(*from), session.shown(*to));
    }
    if let Some(error) = &error {
        let _ = writeln!(text, "after {done} of {count}: {error}");
    }
    let changed: Vec<Value> =
        changed.iter().map(|(name, from, to)| json!({"register": name, "from": hex(*from), "to": hex(*to)})).collect();
    data.extend(Map::from_iter([
        ("vcpu".into(), json!(vcpu)),
        ("steps".into(), json!(done)),
        ("changed".into(), json!(changed)),
        ("error".into(), json!(error.map(|error| error.to_string()))),
    ]));
    Ok(Answer::new(text, Value::Object(data)))
}

/// Why a vCPU that stands still would go on standing.
fn standing(vcpu: &VcpuState) -> Option<&'static str> {
    match vcpu.mp_state {
        Ok(MpState::Halted) => Some("is halted until an interrupt comes"),
        Ok(MpState::Uninitialized | MpState::InitReceived) => Some("has not been started"),
        _ => None,
    }
}

/// How many steps were made, and why no more.
fn steps(session: &mut Session, vcpu: usize, count: usize) -> Result<(usize, Option<LiveError>), CommandError> {
    for done in 0..count {
        if done > 0 && session.is_interrupted() {
            return Ok((done, Some(LiveError::Refused("interrupted".into()))));
        }
        match session.machine()?.step(vcpu) {
            Ok(()) => {}
            Err(error) if done == 0 => return Err(error.into()),
            Err(error) => return Ok((done, Some(error))),
        }
    }
    Ok((count, None))
}

/// The general registers that differ, but for RIP.
fn changed(before: &VcpuState, after: &VcpuState) -> Vec<(&'static str, u64, u64)> {
    let (Ok(before), Ok(after)) = (&before.registers, &after.registers) else { return Vec::new() };
    let values = GENERAL.iter().map(|(name, of)| (*name, of(before), of(after)));
    values.filter(|(name, from, to)| from != to && *name != "rip").collect()
}

#[cfg(test)]
mod test {
    use serde_json::json;
    use stallbench_state::machine::MpState;

    use crate::live::{LiveError, State};
    use crate::sample::answer;
    use crate::sample::live::Lively;

    #[test]
    fn step_shows_the_next_instruction_and_what_changed() {
        let lively = Lively::new();
        let mut session = lively.session();
        let answer = answer(&mut session, "step 1").expect("it has an answer");
        let text = crate::sample::plain(&answer.text);
        assert!(
            text.starts_with("vcpu1 at 0x") && text.contains("\n=> 0x") && text.ends_with("  rax: 0x0 -> 0x1\n"),
            "{text}"
        );
        assert_eq!(answer.data["changed"], json!([{"register": "rax", "from": "0x0", "to": "0x1"}]));
        assert_eq!(session.current(), 1);
        assert!(session.news().is_none());
    }

    #[test]
    fn steps_end_where_no_more_can_be_made() {
        let lively = Lively::new();
        let mut session = lively.session();
        let data = answer(&mut session, "step 0 9").expect("it has an answer").data;
        assert_eq!((&data["steps"], &data["error"]), (&json!(3), &json!("waits for an interrupt")));
        assert_eq!(answer(&mut session, "step").expect_err("no more").to_string(), "waits for an interrupt");
        lively.inner().machine.machine.vcpus[1].mp_state = Ok(MpState::Halted);
        let error = answer(&mut session, "step 1").expect_err("it is halted").to_string();
        assert_eq!(error, "vcpu1 is halted until an interrupt comes, and takes no step");
        lively.inner().state = State::Running;
        let error = answer(&mut session, "step").expect_err("it runs").to_string();
        assert_eq!(error, LiveError::Running.to_string());
    }
}
