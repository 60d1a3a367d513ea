//! Runs of this machine's /dev/kvm that somebody looks into: held, stepped, stopped, changed and left again.

use std::borrow::Cow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stallbench_core::HostKvm;
use stallbench_debug::live::{How, Live, LiveError, State, Stop, Until, Why};
use stallbench_image::program;
use stallbench_runner::control::{Attached, Control, Taken};
use stallbench_runner::execute::{RunPlan, execute};
use stallbench_runner::outcome::RunOutcome;
use stallbench_runner::scenario::{Case, Catalogue, Problem, Request, Run, Selection};
use stallbench_state::dump::About;
use stallbench_state::machine::MpState;
use stallbench_state::memory::Memory;
use stallbench_state::program::Program;

/// No wait of a test is longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// The one cell of that name.
fn cell(name: &str) -> Run {
    let request = Request { names: vec![name.to_owned()], ..Request::default() };
    let case = |name: &str| {
        let unknown = || Problem::UnknownCase { case: name.to_owned(), nearest: String::new() };
        let (index, info) = program().case(name).ok_or_else(unknown)?;
        Ok(Case { name: info.name.clone(), index, knobs: info.knobs, points: program().points().into() })
    };
    let selection = Selection::new(&Catalogue::default(), &request, &case).expect("a scenario");
    let [run] = <[Run; 1]>::try_from(selection.cells).expect("one cell");
    run
}

fn plan(run: &Run, control: &Control) -> RunPlan {
    let about = About { run: run.name.to_string(), ..About::default() };
    RunPlan { control: Some(control.of(run, about)), ..RunPlan::of(run, Duration::from_secs(10)) }
}

/// Runs a cell on a thread of its own, held at its start, while somebody does something; gives what came out.
fn watched(name: &str, look: impl FnOnce(Attached)) -> RunOutcome {
    let control = Control::new();
    let attached = control.attach(true).expect("nobody is in");
    let (plan, interrupt) = (plan(&cell(name), &control), AtomicBool::new(false));
    let host = HostKvm::open().expect("/dev/kvm");
    thread::scope(|scope| {
        let run = scope.spawn(|| execute(&host, program(), &plan, &interrupt));
        assert!(control.wait_for_machine(DEADLINE), "there is a machine");
        look(attached);
        let left = Instant::now();
        while !run.is_finished() && left.elapsed() < DEADLINE {
            thread::park_timeout(Duration::from_millis(1));
        }
        let is_over = run.is_finished();
        interrupt.store(true, Ordering::Relaxed);
        let outcome = run.join().unwrap_or_else(|panic| resume_unwind(panic)).expect("an outcome");
        assert!(is_over, "{name}: it goes on for ever");
        outcome
    })
}

fn wait(live: &mut Attached) -> State {
    let state = live.wait(DEADLINE);
    assert_ne!(state, State::Running, "in time");
    state
}

/// Lets it go on to its end, and over it.
fn to_the_end(mut live: Attached) -> String {
    loop {
        live.run(Until::default()).expect("it goes on");
        if let State::Stopped(Why::End { text, result }) = wait(&mut live) {
            assert_eq!(live.look().expect("the machine at its end").about.result, Some(result));
            live.run(Until::default()).expect("it goes on");
            return text;
        }
    }
}

/// Where that function begins.
fn address(function: &str) -> u64 {
    let all = program().symbols();
    let found = all.iter().find(|known| known.name.ends_with(function));
    found.unwrap_or_else(|| panic!("no function {function}")).address
}

fn at(function: &str) -> Stop {
    Stop::Execute { linear: address(function), vcpu: None }
}

/// Lets it go on to a stop: the vCPU that came there.
fn to_the_stop(live: &mut Attached, number: u32) -> usize {
    live.run(Until::default()).expect("it goes on");
    match wait(live) {
        State::Stopped(Why::At { number: at, vcpu: Some(vcpu) }) if at == number => vcpu,
        other => panic!("no stop: {other:?}"),
    }
}

fn rip(live: &mut Attached, vcpu: usize) -> u64 {
    live.look().expect("a look").machine.vcpus[vcpu].registers.as_ref().expect("registers").rip
}

#[test]
fn machine_that_is_held_at_its_start_has_executed_nothing_and_then_ends_as_ever() {
    let outcome = watched("mtrr/stack-broadcast@vcpus=4", |mut live| {
        assert_eq!(wait(&mut live), State::Stopped(Why::Start));
        for _ in 0..3 {
            let dump = live.look().expect("a look");
            assert_eq!(dump.about.run, "mtrr/stack-broadcast@vcpus=4");
            assert_eq!(dump.machine.vcpus[1].mp_state, Ok(MpState::Uninitialized));
            assert_eq!(rip(&mut live, 0), program().entry());
        }
        let text = to_the_end(live);
        assert!(text.contains("STALL deadlock   4 vCPUs   proved") && text.contains("as expected\n"), "{text}");
    });
    assert_eq!((outcome.verdict.word(), outcome.interventions.len()), ("stall", 0));
}

#[test]
fn vcpu_stops_where_it_was_asked_to_and_goes_on_by_steps() {
    let outcome = watched("mtrr/stack-broadcast@vcpus=4", |mut live| {
        let (number, how) = live.add(at("ipi_handler")).expect("a stop");
        assert_eq!((number, how), (1, How::Breakpoint));
        let mut came: Vec<_> = (0..3).map(|_| to_the_stop(&mut live, number)).collect();
        let vcpu = came[2];
        assert_eq!(rip(&mut live, vcpu), address("ipi_handler"));
        came.sort_unstable();
        assert_eq!(came, [1, 2, 3], "each of the others has an interrupt once");
        for _ in 0..5 {
            let before = rip(&mut live, vcpu);
            live.step(vcpu).expect("a step");
            assert_eq!(live.state(), State::Stopped(Why::Stepped { vcpu }));
            assert_ne!(rip(&mut live, vcpu), before);
        }
        assert_eq!(live.stops().expect("it is there").len(), 1);
        assert_eq!((live.remove(number), live.remove(number)), (Ok(true), Ok(false)));
        to_the_end(live);
    });
    assert_eq!((outcome.verdict.word(), outcome.verdict.kind()), ("stall", Some("deadlock")));
    assert_eq!(outcome.interventions, [""; 0]);
}

#[test]
fn debugger_that_vanishes_leaves_no_stop_behind() {
    for stopped in [true, false] {
        let outcome = watched("mtrr/percpu-lock@vcpus=4", |mut live| {
            let (number, _) = live.add(at("ipi_handler")).expect("a stop");
            to_the_stop(&mut live, number);
            if !stopped {
                live.run(Until::default()).expect("it goes on");
            }
        });
        assert_eq!((outcome.verdict.word(), outcome.interventions.len()), ("pass", 0));
    }
}

#[test]
fn one_at_a_time_is_in_and_who_asks_of_no_machine_is_told() {
    let control = Control::new();
    let mut first = control.attach(false).expect("nobody is in");
    assert_eq!(control.attach(false).expect_err("one at a time"), Taken);
    assert_eq!(first.look().expect_err("no machine"), LiveError::Gone);
    assert_eq!((first.state(), first.wait(Duration::from_secs(60))), (State::Gone, State::Gone));
    drop(first);
    assert!(control.attach(true).is_ok());
    control.close();
    assert!(control.is_closed() && !control.wait_for_machine(Duration::from_secs(60)));
}

#[test]
fn run_that_is_ended_has_no_verdict_about_its_guest() {
    let outcome = watched("mtrr/percpu-lock@vcpus=4", |mut live| {
        live.end();
        assert_eq!(live.wait(DEADLINE), State::Gone);
    });
    assert_eq!((outcome.verdict.word(), outcome.moment.is_none()), ("budget", true));
}

#[test]
fn what_is_done_to_a_machine_is_in_its_report() {
    let outcome = watched("mtrr/percpu-lock@vcpus=2", |mut live| {
        let there = live.look().expect("a look").memory.read_u64(0x4f_f000);
        live.write(0x4f_f000, &there.expect("memory").to_le_bytes()).expect("written");
        assert!(matches!(live.write(u64::MAX - 3, &[0; 8]), Err(LiveError::Refused(_))));
        let mut registers = *live.look().expect("a look").machine.vcpus[0].registers.as_ref().expect("registers");
        registers.r15 ^= 1;
        live.set_registers(0, &registers).expect("written");
        assert_eq!(live.look().expect("a look").machine.vcpus[0].registers.as_ref(), Ok(&registers));
        assert!(matches!(live.set_registers(2, &registers), Err(LiveError::Refused(_))));
        assert!(matches!(live.step(1), Err(LiveError::Refused(_))), "it is not up");
        live.run(Until::default()).expect("it goes on");
        assert_eq!(live.step(0), Err(LiveError::Running));
        assert!(matches!(wait(&mut live), State::Stopped(Why::End { .. })));
        assert!(matches!(live.write(0x4f_f000, &[0; 8]), Err(LiveError::Refused(_))), "it has its verdict");
    });
    let told = ["memory: 8 bytes at 0x4ff000 written by the debugger", "vcpu0: register r15 written by the debugger"];
    assert_eq!((outcome.verdict.word(), &outcome.interventions[..]), ("pass", &told.map(str::to_owned)[..]));
}

#[test]
fn machine_stops_at_progress() {
    let outcome = watched("mtrr/percpu-lock@vcpus=2", |mut live| {
        live.run(Until { progress: true }).expect("it goes on");
        assert!(matches!(wait(&mut live), State::Stopped(Why::Progress { .. })));
        to_the_end(live);
    });
    assert_eq!(outcome.verdict.word(), "pass");
}

#[test]
fn stall_is_proved_when_somebody_asks() {
    let outcome = watched("mtrr/stack-broadcast@vcpus=4", |mut live| {
        let (text, json) = live.prove().expect("an answer");
        assert!(text.starts_with("not proved: ") && json["proved"] == false, "{text}");
        live.run(Until::default()).expect("it goes on");
        assert!(matches!(wait(&mut live), State::Stopped(Why::End { .. })));
        let (text, json) = live.prove().expect("an answer");
        assert!(text.starts_with("proved: deadlock, nothing can go on; ") && json["proved"] == true, "{text}");
        assert!(text.contains("culprit: vcpu0 in call_many: wait=0 became wait=1"), "{text}");
    });
    assert_eq!(outcome.verdict.word(), "stall");
}

/// The image, but that every vCPU that comes to its entry rings a doorbell for ever.
fn flooding() -> Program {
    // mov edx, 0x5b10; mov eax, 2 (done); out dx, eax; jmp back to it.
    const FLOOD: &[u8] = &[0xba, 0x10, 0x5b, 0, 0, 0xb8, 2, 0, 0, 0, 0xef, 0xeb, 0xfd];
    let (mut bytes, entry) = (program().bytes().to_vec(), program().entry());
    let segment =
        program().segments().iter().find(|segment| segment.address <= entry && entry < segment.address + segment.size);
    let at = segment.map(|segment| segment.file.start + (entry - segment.address) as usize).expect("a segment");
    bytes[at..at + FLOOD.len()].copy_from_slice(FLOOD);
    Program::parse(Cow::Owned(bytes)).expect("an image")
}

#[test]
fn guest_that_floods_doorbells_is_stopped_and_stepped_as_any_other() {
    let control = Control::new();
    let mut live = control.attach(true).expect("nobody is in");
    let plan = RunPlan { budget: Duration::from_secs(2), ..plan(&cell("mtrr/percpu-lock@vcpus=2"), &control) };
    thread::scope(|scope| {
        let (host, program) = (HostKvm::open().expect("/dev/kvm"), flooding());
        let entry = program.entry();
        let run = scope.spawn(move || execute(&host, &program, &plan, &AtomicBool::new(false)));
        assert!(control.wait_for_machine(DEADLINE));
        let (number, _) = live.add(Stop::Execute { linear: entry + 11, vcpu: None }).expect("a stop");
        // Held for longer than its budget, which is not charged for that.
        for _ in 0..60 {
            let held = Instant::now();
            assert_eq!((to_the_stop(&mut live, number), rip(&mut live, 0)), (0, entry + 11));
            while held.elapsed() < Duration::from_millis(50) {
                live.look().expect("a look");
            }
        }
        live.remove(number).expect("a stop");
        for rip_behind in [10, 11, 10, 11] {
            live.step(0).expect("a step");
            assert_eq!(rip(&mut live, 0), entry + rip_behind);
        }
        for _ in 0..20 {
            live.run(Until::default()).expect("it goes on");
            live.look().expect("a look at a machine that runs");
            live.stop().expect("it stands still");
        }
        to_the_end(live);
        let outcome = run.join().unwrap_or_else(|panic| resume_unwind(panic)).expect("an outcome");
        assert_eq!(outcome.verdict.word(), "budget");
        assert!(outcome.wall < Duration::from_secs(10), "{:?}", outcome.wall);
    });
}

#[test]
fn word_is_watched_as_the_host_can_and_the_run_comes_to_what_it_comes_to() {
    let outcome = watched("mtrr/percpu-lock@vcpus=2", |mut live| {
        let gate = Stop::Access { linear: 0x40_0064, size: 4, reads: false };
        let (number, how) = live.add(gate).expect("a stop");
        let host = HostKvm::open().expect("/dev/kvm");
        let expected = if host.watches_writes().expect("an answer") { How::Breakpoint } else { How::Stepping };
        assert_eq!((how, live.stops().expect("it is there")), (expected, vec![(number, gate, how)]));
        assert_eq!(to_the_stop(&mut live, number), 0, "vcpu0 opens and shuts the gate");
        assert!(matches!(
            live.add(Stop::Access { linear: 0x40_0066, size: 4, reads: false }),
            Err(LiveError::Refused(_))
        ));
        to_the_end(live);
    });
    assert_eq!(outcome.verdict.word(), "pass");
}

#[test]
fn vcpu_that_is_slow_because_it_is_stepped_is_not_told_to_be() {
    let outcome = watched("mtrr/percpu-lock@vcpus=4", |mut live| {
        // Nobody writes there.
        live.add(Stop::Access { linear: 0x40_0ff0, size: 8, reads: false }).expect("a stop");
        to_the_end(live);
    });
    assert_eq!((outcome.verdict.word(), outcome.slow), ("pass", None));
}

#[test]
fn look_at_a_machine_that_runs_lets_it_go_on() {
    let outcome = watched("mtrr/percpu-lock@vcpus=4", |mut live| {
        live.run(Until::default()).expect("it goes on");
        let mut looks = 0;
        while live.state() == State::Running {
            let dump = live.look().expect("a look");
            assert_eq!(dump.machine.vcpus.len(), 4);
            looks += 1;
        }
        assert!(looks > 0);
        live.run(Until::default()).expect("it goes on");
    });
    assert_eq!((outcome.verdict.word(), outcome.interventions.len()), ("pass", 0));
}

#[test]
fn vcpu_that_is_held_at_a_pause_point_is_let_go() {
    let outcome = watched("rendezvous/three-pairs@vcpus=4", |mut live| {
        let point = "stop_two_cpus/queued";
        assert!(matches!(live.release("stop_two_cpus/queue"), Err(LiveError::Refused(why)) if why.contains(point)));
        assert_eq!(live.release(point), Ok(vec![]), "nobody has come there yet");
        let vcpu = loop {
            live.run(Until::default()).expect("it goes on");
            live.stop().expect("it stands still");
            if let Some(vcpu) = live.release(point).expect("an answer").first() {
                break *vcpu;
            }
        };
        assert!(!live.release(point).expect("an answer").contains(&vcpu), "it is let go already");
        live.interrupt(vcpu, 0xfb).expect("an interrupt");
        to_the_end(live);
    });
    // Who was let go early may have missed those that it was to meet.
    assert!(["stall", "pass"].contains(&outcome.verdict.word()), "{:?}", outcome.verdict);
    let all = &outcome.interventions;
    assert!(
        all.len() > 1 && all.last().is_some_and(|last| last.ends_with("vector 0xfb sent by the debugger")),
        "{all:?}"
    );
}
