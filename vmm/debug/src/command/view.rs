//! `view`: one frame of who looks again and again, with what happened a second since the frame before.

mod counters;

use serde_json::{Value, json};
use stallbench_stall::Analysis;
use stallbench_stall::conclude::waits;
use stallbench_stall::report::WaitReport;

use super::live::reason;
use super::{Command, Needs, Takes, vcpus};
use crate::answer::{Answer, columns, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::live::{State, Why};
use crate::session::Session;
use crate::style;
pub(crate) use counters::Frame;
use counters::Rates;

pub(super) const COMMAND: Command = Command {
    name: "view",
    usage: "view",
    summary: "one frame: state, progress, waits of each vCPU, and IPIs and exits a second since the `view` before",
    details: "IPIs are those that a vCPU sent, by what it recorded; more than its ring holds are estimated. Exits are counted by the \
kernel,\nwhere it does. What is a second is empty the first time, and for a dump.\n",
    takes: Takes::Nothing,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    arguments.end()?;
    let state = session.state();
    let frame = Frame::take(session);
    let before = session.viewed(frame.clone()).filter(|before| before.vcpus.len() == frame.vcpus.len());
    let elapsed = before.as_ref().filter(|_| state.is_some()).map(|before| frame.at.duration_since(before.at));
    let rates: Vec<_> = (0..frame.vcpus.len())
        .map(|vcpu| before.as_ref().zip(elapsed).map(|(before, elapsed)| frame.rates(before, vcpu, elapsed)))
        .collect();
    let publishes = session.guest().contract().is_some();
    Ok(session.analysed(|analysis| {
        let waits = if publishes { waits(analysis) } else { Vec::new() };
        let text = in_text(session, analysis, state.as_ref(), &frame, &rates);
        let of = |(vcpu, rates): (usize, &Option<Rates>)| {
            let wait = waits.iter().filter(|wait| wait.vcpu == vcpu).max_by_key(|wait| wait.depth);
            vcpu_in_data(session, analysis, &frame, vcpu, wait, rates.as_ref())
        };
        let (word, why) = in_words(state.as_ref());
        let data = json!({
            "run": session.target().about().run,
            "state": word,
            "why": why,
            "result": result(session, state.as_ref()),
            "elapsed_ms": elapsed.map(|elapsed| elapsed.as_secs_f64() * 1000.0),
            "stuck": analysis.closure.stuck.iter().collect::<Vec<_>>(),
            "no_statistics": frame.no_statistics,
            "vcpus": rates.iter().enumerate().map(of).collect::<Vec<_>>(),
        });
        Answer::new(text, data)
    }))
}

/// Whether the machine runs, and why not.
fn in_words(state: Option<&State>) -> (&'static str, Option<&'static str>) {
    match state {
        None => ("dump", None),
        Some(State::Running) => ("running", None),
        Some(State::Gone) => ("gone", None),
        Some(State::Stopped(why)) => ("stopped", Some(reason(why))),
    }
}

fn result(session: &Session, state: Option<&State>) -> Option<Value> {
    match state {
        Some(State::Stopped(Why::End { result, .. })) => Some(result.clone()),
        _ => session.target().about().result.clone(),
    }
}

fn vcpu_in_data(
    session: &Session,
    analysis: &Analysis<'_>,
    frame: &Frame,
    vcpu: usize,
    wait: Option<&WaitReport>,
    rates: Option<&Rates>,
) -> Value {
    let mut data = vcpus::in_data(session, analysis, &session.vcpus()[vcpu]);
    let counters = &frame.vcpus[vcpu];
    let published = session.guest().contract().is_some();
    data["wait"] = json!(wait);
    data["progress"] = json!(published.then_some(counters.progress));
    data["interrupts"] = json!(published.then_some(counters.interrupts));
    data["exits"] = json!(counters.exits());
    data["statistics"] = json!(counters.statistics_in_data());
    data["rates"] = json!(rates.map(|rates| rates.in_data(published)));
    data["statistic_rates"] = json!(rates.and_then(Rates::statistics_in_data));
    data
}

fn in_text(
    session: &Session,
    analysis: &Analysis<'_>,
    state: Option<&State>,
    frame: &Frame,
    rates: &[Option<Rates>],
) -> String {
    let (word, why) = in_words(state);
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    let heading = style::heading(&format!("{}: {word}{why}", session.target().about().run));
    let mut rows = vec![row(["vcpu", "state", "progress", "a s", "IPIs/s", "exits/s", "CPU", "does"])];
    let published = session.guest().contract().is_some();
    for (vcpu, (state, rates)) in session.vcpus().iter().zip(rates).enumerate() {
        let rate = |of: fn(&Rates) -> Option<f64>| {
            rates.as_ref().and_then(of).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"))
        };
        let ours = |text: String| if published { text } else { "-".to_owned() };
        rows.push(row([
            &vcpu.to_string(),
            &vcpus::state(state),
            &ours(frame.vcpus[vcpu].progress.to_string()),
            &ours(rate(|rates| Some(rates.progress))),
            &ours(rate(|rates| Some(rates.ipis))),
            &rate(|rates| rates.exits()),
            &rates.as_ref().map_or_else(|| "-".to_owned(), |rates| format!("{:.0}%", rates.cpu * 100.0)),
            &analysis.doing(vcpu),
        ]));
    }
    let none = frame.no_statistics.as_ref().filter(|_| state.is_some());
    let none = none.map(|why| format!("no counters of the kernel: {why}\n")).unwrap_or_default();
    format!("{heading}\n{}{none}", columns(&rows))
}

#[cfg(test)]
mod test {
    use serde_json::json;
    use stallbench_abi::layout::private;
    use stallbench_abi::vcpu::{Phase, VcpuPage};
    use stallbench_state::published::Published;

    use crate::live::State;
    use crate::sample::live::Lively;
    use crate::sample::{answer, session, text};

    #[test]
    fn second_frame_has_what_happened_since_the_first() {
        let lively = Lively::new();
        lively.inner().state = State::Running;
        lively.inner().statistics = Some(vec![vec![("exits".into(), 10)]; 2]);
        let mut session = lively.session();
        let first = answer(&mut session, "view").expect("it has an answer").data;
        assert_eq!((&first["state"], &first["elapsed_ms"]), (&json!("running"), &json!(null)));
        assert_eq!((&first["vcpus"][0]["exits"], &first["vcpus"][0]["rates"]), (&json!(10), &json!(null)));
        {
            let mut inner = lively.inner();
            inner.statistics = Some(vec![vec![("exits".into(), 110)]; 2]);
            let page = Published::read(&inner.machine.memory, 2).vcpus[1];
            inner
                .machine
                .memory
                .put(private(1), &VcpuPage { progress: page.progress + 50, phase: Phase::FINISHED, ..page });
        }
        let second = answer(&mut session, "view").expect("it has an answer").data;
        let seconds = second["elapsed_ms"].as_f64().expect("there was one before") / 1000.0;
        let rates = |vcpu: usize| second["vcpus"][vcpu]["rates"].clone();
        let is = |rate: &serde_json::Value, count: f64| (rate.as_f64().expect("a rate") * seconds - count).abs() < 0.01;
        assert!(
            is(&rates(0)["exits"], 100.0) && is(&rates(0)["progress"], 0.0) && is(&rates(1)["progress"], 50.0),
            "{second}"
        );
        assert_eq!(second["vcpus"][1]["phase"], "finished");
    }

    #[test]
    fn host_without_counters_says_so_and_costs_no_other() {
        let lively = Lively::new();
        let mut session = lively.session();
        let data = answer(&mut session, "view; view").expect("it has an answer").data;
        assert_eq!((&data["no_statistics"], &data["why"]), (&json!("this host keeps none"), &json!("start")));
        assert!(data["vcpus"][0]["exits"].is_null() && data["vcpus"][0]["rates"]["exits"].is_null());
        assert!(data["vcpus"][0]["rates"]["cpu"].is_number());
    }

    #[test]
    fn dump_is_one_frame() {
        let text = text("view; view");
        assert!(text.starts_with("sample/deadlock@vcpus=2: dump\nvcpu  state ") && text.contains("waits in"), "{text}");
        let data = answer(&mut session(), "view; view").expect("it has an answer").data;
        assert_eq!((&data["stuck"], &data["vcpus"][0]["rates"]), (&json!([0, 1]), &json!(null)));
        assert_eq!(data["vcpus"][0]["wait"]["closed"], true);
    }
}
