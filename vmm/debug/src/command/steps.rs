//! `forward`, `back` and `goto`: from one step of a trace to another.

use serde_json::{Map, Value, json};

use super::{Command, Needs, Takes};
use crate::answer::Answer;
use crate::arguments::{Arguments, number};
use crate::error::CommandError;
use crate::session::Session;
use crate::steps::Steps;

pub(super) const FORWARD: Command = Command {
    name: "forward",
    usage: "forward [N]",
    summary: "the machine N steps later, or one",
    details: DETAILS,
    takes: Takes::Nothing,
    needs: Needs::Trace,
    run: forward,
};

pub(super) const BACK: Command = Command {
    name: "back",
    usage: "back [N]",
    summary: "the machine N steps before, or one",
    details: DETAILS,
    takes: Takes::Nothing,
    needs: Needs::Trace,
    run: back,
};

pub(super) const GOTO: Command = Command {
    name: "goto",
    usage: "goto [STEP]",
    summary: "the machine behind that step, 0 is the start line; without, where it stands",
    details: DETAILS,
    takes: Takes::Nothing,
    needs: Needs::Trace,
    run: goto,
};

const DETAILS: &str = "The vCPU of the step is looked at from there on. All steps from the start line on are executed for it once more.\n";
/// Most steps at a time.
const MOST: usize = 1 << 32;

fn forward(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let count = arguments.count("the number of steps", MOST)?.unwrap_or(1);
    arguments.end()?;
    let steps = steps(session)?;
    let (at, last) = (steps.at(), steps.last());
    match at {
        at if at == last => Err(CommandError::NoStep { asked: "the trace ends here".to_owned(), last }),
        at => go(session, at.saturating_add(count).min(last)),
    }
}

fn back(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let count = arguments.count("the number of steps", MOST)?.unwrap_or(1);
    arguments.end()?;
    let steps = steps(session)?;
    match (steps.at(), steps.last()) {
        (0, last) => Err(CommandError::NoStep { asked: "this is the start line".to_owned(), last }),
        (at, _) => go(session, at.saturating_sub(count)),
    }
}

fn goto(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let word = arguments.next();
    arguments.end()?;
    let steps = steps(session)?;
    let (at, last) = (steps.at(), steps.last());
    let Some(word) = word else { return Ok(told(steps)) };
    let step = number(word).and_then(|step| usize::try_from(step).ok()).filter(|step| *step <= last);
    match step {
        None => Err(CommandError::NoStep { asked: format!("there is no step {word}"), last }),
        Some(step) if step == at => Ok(told(steps)),
        Some(step) => go(session, step),
    }
}

fn steps(session: &mut Session) -> Result<&mut dyn Steps, CommandError> {
    session.steps().ok_or(CommandError::NoTrace)
}

fn go(session: &mut Session, step: usize) -> Result<Answer, CommandError> {
    let steps = steps(session)?;
    steps.go(step).map_err(|why| CommandError::Steps { step, why })?;
    let (answer, vcpu) = (told(steps), steps.vcpu(step));
    if let Some(vcpu) = vcpu.filter(|vcpu| *vcpu < session.vcpus().len()) {
        session.select(vcpu);
    }
    Ok(answer)
}

fn told(steps: &dyn Steps) -> Answer {
    let (at, last) = (steps.at(), steps.last());
    let mut data = Map::from_iter([("step".to_owned(), json!(at)), ("steps".to_owned(), json!(last))]);
    if at == 0 {
        return Answer::new(format!("the start line; {last} steps follow"), Value::Object(data));
    }
    if let Value::Object(of_step) = steps.data(at) {
        data.extend(of_step);
    }
    Answer::new(format!("step {at} of {last}: {}", steps.told(at)), Value::Object(data))
}

#[cfg(test)]
mod test {
    use crate::sample::refusal;

    #[test]
    fn machine_that_is_of_no_trace_has_no_steps() {
        for command in ["forward", "back 2", "goto 0"] {
            assert_eq!(refusal(command), "that needs a trace: `stallbench debug --trace FILE`");
        }
    }
}
