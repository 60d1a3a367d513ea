//! `run`, `until`, `stop`, `end`: whether the machine runs.

use std::time::Duration;

use super::stopped;
use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::command::{Command, Needs, Takes};
use crate::error::CommandError;
use crate::live::{State, Until};
use crate::session::Session;

pub(in crate::command) const COMMAND: Command = Command {
    name: "run",
    usage: "run [MS] [--background]",
    summary: "let the machine go on until it stops: a stop, the end of the run, Ctrl-C, MS milliseconds",
    details: "At its end the run gets its verdict, and its machine can still be looked at; `run` then lets it go. With --background the \
answer\ncomes at once, and the machine is stopped for as long as a command looks at it; `stop` has it stand still.\n",
    takes: Takes::Nothing,
    needs: Needs::Live,
    run,
};

pub(in crate::command) const UNTIL: Command = Command {
    name: "until",
    usage: "until progress [MS]",
    summary: "let the machine go on until a vCPU makes progress, or it stops otherwise",
    details: "Progress is what the guest counts of itself: waits that ended, callbacks, steps of its case.\n",
    takes: Takes::Progress,
    needs: Needs::Live,
    run: until,
};

pub(in crate::command) const STOP: Command = Command {
    name: "stop",
    usage: "stop",
    summary: "have the machine stand still; its run is not charged for the time",
    details: "",
    takes: Takes::Nothing,
    needs: Needs::Live,
    run: stop,
};

pub(in crate::command) const END: Command = Command {
    name: "end",
    usage: "end",
    summary: "end the run now, without a verdict: its report says that it was interrupted",
    details: "",
    takes: Takes::Nothing,
    needs: Needs::Live,
    run: end,
};

/// Longest time that can be asked for, in milliseconds: a day.
const LONGEST: usize = 86_400_000;
/// How long a machine that was asked to end may take.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let is_background = arguments.flag("--background");
    let limit = limit(&mut arguments)?;
    arguments.end()?;
    session.machine()?.run(Until::default())?;
    match is_background {
        true => Ok(stopped(session, State::Running)),
        false => waited(session, limit),
    }
}

fn until(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    match arguments.word("what to wait for")? {
        "progress" => {}
        other => return Err(arguments.wrong(format!("until {other} is not known"))),
    }
    let limit = limit(&mut arguments)?;
    arguments.end()?;
    session.machine()?.run(Until { progress: true })?;
    waited(session, limit)
}

fn limit(arguments: &mut Arguments<'_>) -> Result<Option<Duration>, CommandError> {
    let limit = arguments.count("the time in milliseconds", LONGEST)?;
    Ok(limit.map(|limit| Duration::from_millis(limit as u64)))
}

fn waited(session: &mut Session, limit: Option<Duration>) -> Result<Answer, CommandError> {
    let state = session.wait(limit)?;
    Ok(stopped(session, state))
}

fn stop(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    arguments.end()?;
    let live = session.machine()?;
    live.stop()?;
    let state = live.state();
    Ok(stopped(session, state))
}

fn end(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    arguments.end()?;
    let live = session.machine()?;
    live.end();
    let state = live.wait(ENDS_WITHIN);
    Ok(stopped(session, state))
}

#[cfg(test)]
mod test {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use serde_json::json;

    use crate::live::{How, State, Stop, Why};
    use crate::sample::live::Lively;
    use crate::sample::{answer, refusal, rip};

    fn end() -> Why {
        Why::End { text: "PASS".into(), result: json!({"verdict": "pass"}) }
    }

    #[test]
    fn machine_runs_until_something_stops_it_and_that_is_told() {
        let lively = Lively::new();
        let stop = Stop::Execute { linear: rip(), vcpu: None };
        lively.inner().stops.push((1, stop, How::Breakpoint));
        [Why::At { number: 1, vcpu: Some(1) }, Why::Progress { vcpu: 0 }, end()]
            .into_iter()
            .for_each(|why| lively.comes_to(why));
        let mut session = lively.session();
        let mut run = |line| crate::sample::plain(&answer(&mut session, line).expect("it has an answer").text);
        let at_stop = run("run");
        assert!(at_stop.starts_with("stop 1: vcpu1 has come to 0x") && at_stop.contains("\n=> 0x"), "{at_stop}");
        assert_eq!(run("vcpu"), "vcpu1\n", "it is looked at");
        assert!(run("until progress").starts_with("vcpu0 made progress\nvcpu0 at 0x"));
        assert!(run("run").contains("the run is over") && run("verdict").starts_with("the run said"));
        assert!(run("run").starts_with("the run is over, and its machine is gone"));
        assert!(run("vcpus").contains("waits in"), "it is looked at as it was last");
        assert_eq!(
            answer(&mut session, "run").expect_err("gone").to_string(),
            "there is no machine: its run is over, or has not begun"
        );
        assert_eq!(lively.inner().asked, ["run", "run until progress", "run", "prove", "run"]);
    }

    #[test]
    fn machine_that_nothing_stops_is_stopped_in_time_or_by_an_interrupt() {
        let lively = Lively::new();
        let mut session = lively.session();
        let data = answer(&mut session, "run 5").expect("it has an answer").data;
        assert_eq!((&data["state"], &data["why"]), (&json!("stopped"), &json!("asked")));
        session.set_interrupt(Arc::new(AtomicBool::new(true)));
        assert!(answer(&mut session, "run").is_ok());
        assert_eq!(lively.inner().state, State::Stopped(Why::Asked));
        assert_eq!(lively.inner().asked, ["run", "stop", "run", "stop"]);
        assert!(!session.is_interrupted(), "it is taken back");
    }

    #[test]
    fn machine_in_the_background_is_stopped_when_it_is_said() {
        let lively = Lively::new();
        let mut session = lively.session();
        assert_eq!(answer(&mut session, "run --background").expect("it has an answer").data["state"], "running");
        assert!(answer(&mut session, "regs").is_ok());
        assert_eq!(answer(&mut session, "stop").expect("it has an answer").data["why"], "asked");
        assert_eq!(answer(&mut session, "end").expect("it has an answer").data["state"], "gone");
    }

    #[test]
    fn what_happened_meanwhile_is_told_once() {
        let lively = Lively::new();
        let mut session = lively.session();
        assert!(session.news().is_none(), "it stands as it stood");
        assert!(answer(&mut session, "run --background").is_ok() && session.news().is_none());
        lively.inner().state = State::Stopped(end());
        assert!(session.news().expect("it is over").text.contains("the run is over"));
        assert!(session.news().is_none());
        lively.inner().state = State::Gone;
        assert_eq!(session.news().expect("it is gone").data["state"], "gone");
        lively.inner().state = State::Stopped(Why::Start);
        assert!(session.news().expect("another").text.starts_with("another run: sample/deadlock@vcpus=2\n"));
        assert!(session.news().is_none());
    }

    #[test]
    fn dump_does_not_run() {
        for line in ["run", "stop", "end", "until progress", "step"] {
            assert_eq!(refusal(line), "that needs a machine that can run on; this is a dump, which is over", "{line}");
        }
        let of = |line| answer(&mut Lively::new().session(), line).expect_err("it is wrong").to_string();
        assert!(of("run 0").starts_with("the time in milliseconds must be a number from 1 to "));
        assert!(of("until doomsday").starts_with("until doomsday is not known; usage: until progress"));
    }
}
