//! `stallbench debug SCENARIO`: real runs that are held at their start, stopped in their middle, stepped and let go come to what they
//! come to without. And guests that do their worst meanwhile.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod executable;
mod missing;
mod wait;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use executable::executable;
use missing::kvm_is_missing;
use serde_json::Value;
use tempfile::TempDir;
use wait::{DEADLINE, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
/// Where every vCPU comes to take an interrupt.
const DISPATCH: &str = "interrupt::dispatch";

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until it ends; reads what it says meanwhile.
fn end(child: Child) -> Output {
    let id = child.id();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    ended.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("process {id} ends in time")).unwrap()
}

fn debug(arguments: &[&str]) -> Output {
    end(start(&[&["debug"], arguments].concat()))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What each command came to, as data; none may fail.
fn answers(what: &[&str], commands: &str) -> Vec<Value> {
    let output = debug(&[what, &["--json", "-c", commands]].concat());
    let errors: Vec<_> = text(&output.stdout).lines().filter(|line| line.contains("\"error\":\"")).collect();
    assert_eq!((output.status.code(), &errors[..]), (Some(0), &[""; 0][..]), "{what:?}: {}", text(&output.stderr));
    let all = text(&output.stdout).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.map(|answer| answer["data"].clone()).collect()
}

/// The result of a run that nobody looks into.
fn result(what: &[&str]) -> Value {
    let output = end(start(&[&["run"], what, &["--dump", "never", "--report", "jsonl=-"]].concat()));
    let mut lines = text(&output.stdout).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.find(|line| line["type"] == "result").unwrap_or_else(|| panic!("{what:?}: {}", text(&output.stderr)))
}

/// Of a result, what must be the same each time.
fn verdict(result: &Value) -> [Value; 5] {
    ["verdict", "kind", "strength", "as_expected", "interventions"].map(|key| result[key].clone())
}

/// A cell of each kind of verdict, with a function that a vCPU comes to on its way there.
const KINDS: [(&str, &str, &str); 9] = [
    ("mtrr/stack-broadcast@vcpus=4", DISPATCH, "stall"),
    ("acceptance/offline-subject@vcpus=2", DISPATCH, "stall"),
    ("mtrr/no-ipi@vcpus=2", "mtrr::set", "stall"),
    ("acceptance/lock-and-call@vcpus=2", "stallbench_rt::bring_up::run", "stall"),
    ("rendezvous/stack-record@vcpus=2", DISPATCH, "stall"),
    ("rendezvous/caches-off-alone@vcpus=2", "stallbench_rt::bring_up::run", "breach"),
    ("crash/panic@vcpus=2,initiator=1", "stallbench_rt::bring_up::run", "guest-fault"),
    ("mtrr/percpu-lock@vcpus=4", DISPATCH, "pass"),
    ("acceptance/early-done-fixed@vcpus=2", DISPATCH, "pass"),
];

#[test]
fn runs_that_were_stopped_and_stepped_come_to_what_they_come_to_without() {
    if kvm_is_missing() {
        return;
    }
    for (cell, function, word) in KINDS {
        let commands = format!("break {function}; run; step; step; step; delete 1; run; verdict; quit");
        let answers = answers(&[cell], &commands);
        assert_eq!((&answers[1]["why"], &answers[1]["number"]), (&"stop".into(), &1.into()), "{cell}: {}", answers[1]);
        assert_eq!((&answers[4]["steps"], &answers[6]["why"]), (&1.into(), &"end".into()), "{cell}: {answers:?}");
        let ended = &answers[6]["result"];
        assert_eq!((verdict(ended), &ended["verdict"]), (verdict(&result(&[cell])), &word.into()), "{cell}");
        assert_eq!(&answers[7]["run"], ended, "{cell}");
    }
}

#[test]
fn vcpus_of_any_number_are_held_looked_at_and_let_go() {
    if kvm_is_missing() {
        return;
    }
    for (vcpus, name) in [("1", "call/smallest"), ("2", "mtrr/stack-broadcast"), ("64", "mtrr/percpu-lock")] {
        let what = [name, "--vcpus", vcpus];
        let answers = answers(&what, "vcpus; break stallbench_rt::bring_up::run; run; bt; vcpus; delete 1; run; quit");
        let count = vcpus.parse::<usize>().unwrap();
        assert_eq!(
            (answers[0].as_array().map(Vec::len), answers[3].as_array().map(Vec::len)),
            (Some(count), Some(count))
        );
        assert_eq!(answers[0][0]["symbol"], "_start", "nothing has run: {}", answers[0][0]);
        assert_eq!(verdict(&answers[6]["result"]), verdict(&result(&what)), "{what:?}");
    }
}

#[test]
fn stop_is_met_by_every_vcpu_that_comes_there() {
    if kvm_is_missing() {
        return;
    }
    let runs = "run; ".repeat(3);
    let answers =
        answers(&["mtrr/stack-broadcast@vcpus=4"], &format!("break ipi_handler; {runs}delete all; run; quit"));
    let mut came: Vec<_> = answers[1..4].iter().map(|answer| answer["vcpu"].as_u64()).collect();
    came.sort_unstable();
    assert_eq!(came, [Some(1), Some(2), Some(3)]);
}

#[test]
fn intervention_is_told_beside_the_verdict() {
    if kvm_is_missing() {
        return;
    }
    let commands = "write $r15 0x1 --yes; break ipi_handler; run; nmi 0; delete 1; run";
    let output = debug(&["mtrr/percpu-lock@vcpus=2", "-c", commands]);
    let said = text(&output.stdout);
    assert!(said.contains("after interventions"), "{said}{}", text(&output.stderr));
    assert!(said.contains("intervention: vcpu0: register r15 written by the debugger\n"), "{said}");
    assert!(said.contains("intervention: vcpu0: an nmi sent by the debugger\n"), "{said}");
}

/// A debugger that is given one command after the other.
struct Debugger {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Debugger {
    fn start(what: &[&str], directory: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["debug", "--json"]).args(what).current_dir(directory);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// What a command comes to, as data; it may not fail.
    fn answer(&mut self, command: &str) -> Value {
        writeln!(self.child.stdin.as_ref().unwrap(), "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&answer["command"], &answer["error"]), (&command.into(), &Value::Null), "{line}");
        answer["data"].take()
    }

    /// Leaves: what it said on standard error.
    fn quit(mut self) -> String {
        drop(self.child.stdin.take());
        let output = end(self.child);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stderr).to_owned()
    }
}

/// A static executable of a few instructions.
fn guest(directory: &TempDir, code: &[u8], memory: usize) -> String {
    let path = directory.path().join("guest.elf");
    fs::write(&path, executable(code, memory)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn guest_that_dies_is_looked_at_as_it_died() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // mov eax, 0xdead000; mov cr3, rax; a spin that is not mapped any more.
    let guest = guest(&directory, &[0xb8, 0, 0xd0, 0xea, 0x0d, 0x0f, 0x22, 0xd8, 0xeb, 0xfe], 0);
    let what = ["--payload", &guest, "--expect", "guest-fault"];
    let answers = answers(&what, "step; vcpus; run; vcpus; verdict; quit");
    assert_eq!(answers[0]["rip"], "0x100005");
    let ended = &answers[2]["result"];
    assert_eq!((&ended["verdict"], &ended["text"]), (&"guest-fault".into(), &"triple fault".into()));
}

#[test]
fn end_of_a_plain_guest_tells_all_that_its_report_does() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // test [0x100100], 1; jz back to it: a wait for a word that nobody writes.
    let guest = guest(&directory, &[0xf6, 0x04, 0x25, 0x00, 0x01, 0x10, 0x00, 0x01, 0x74, 0xf6], 0x1000);
    let what = ["--payload", &guest, "--expect", "stall"];
    let (ended, alone) = (&answers(&what, "run; quit")[0]["result"], result(&what));
    assert_eq!(ended["verdict"], "stall", "{ended}");
    let told = |result: &Value| (result["loops"][0]["reads"].clone(), result["unwatched"].clone());
    assert_eq!(told(ended), told(&alone));
    assert_ne!((&ended["loops"][0]["reads"][0]["last_writer"], &ended["unwatched"]), (&Value::Null, &Value::Null));
}

#[test]
fn guest_that_floods_its_console_is_stopped_and_stepped() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // mov edx, 0x3f8; mov al, 'x'; out dx, al; jmp back to it.
    let guest = guest(&directory, &[0xba, 0xf8, 3, 0, 0, 0xb0, b'x', 0xee, 0xeb, 0xfd], 0);
    let what = ["--payload", &guest, "--vcpus", "4", "--aps", "started", "--expect", "stall", "--budget", "2000"];
    let commands = "run 30; step 0 3; break 0x100008; run; run; run; run; delete all; run 20; vcpus; quit";
    let answers = answers(&what, commands);
    for answer in &answers[3..7] {
        assert_eq!((&answer["why"], &answer["rip"]), (&"stop".into(), &"0x100008".into()), "{answer}");
    }
}

#[test]
fn time_that_a_machine_is_held_costs_its_budget_nothing() {
    if kvm_is_missing() {
        return;
    }
    let budget = Duration::from_millis(1000);
    let directory = tempfile::tempdir().unwrap();
    let what = ["mtrr/percpu-lock@vcpus=2", "--budget", "1000"];
    let mut debugger = Debugger::start(&what, directory.path());
    debugger.answer(&format!("break {DISPATCH}"));
    assert_eq!(debugger.answer("run")["why"], "stop");
    let held = Instant::now();
    wait_until("longer than its budget", || held.elapsed() > budget + Duration::from_millis(500));
    debugger.answer("delete 1");
    assert!(held.elapsed() > budget, "it stood still until now");
    let ended = debugger.answer("run")["result"].take();
    assert_eq!((&ended["verdict"], &ended["as_expected"]), (&"pass".into(), &true.into()), "{ended}");
    debugger.quit();
    // Nor do many short times, each of them no longer than a poll may be late.
    let what = ["mtrr/repeated@vcpus=2", "--set", "rounds=100000", "--budget", "1000"];
    let mut debugger = Debugger::start(&what, directory.path());
    for _ in 0..13 {
        let held = Instant::now();
        wait_until("a little", || held.elapsed() > budget / 10);
        debugger.answer("run --background");
        assert_eq!(debugger.answer("stop")["why"], "asked", "its budget is not over");
    }
    debugger.quit();
}

#[test]
fn quit_signal_writes_a_dump_and_the_session_goes_on() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let what = ["mtrr/repeated@vcpus=2", "--set", "rounds=100000", "--budget", "600000"];
    let mut debugger = Debugger::start(&what, directory.path());
    let written = |number: usize| {
        let of = |name: &str| name.starts_with("stallbench-") && name.ends_with(&format!("-running-{number}.core"));
        fs::read_dir(directory.path()).unwrap().any(|entry| of(entry.unwrap().file_name().to_str().unwrap()))
    };
    debugger.answer("vcpus");
    // While it stands still, and while it runs.
    for (number, command) in [(1, "vcpus"), (2, "run --background")] {
        debugger.answer(command);
        assert!(Command::new("kill").args(["-QUIT", &debugger.child.id().to_string()]).status().unwrap().success());
        wait_until("a dump", || written(number));
    }
    assert_eq!(debugger.answer("stop")["why"], "asked");
    let said = debugger.quit();
    assert_eq!(said.matches("dump: stallbench-").count(), 2, "{said}");
}

#[test]
fn one_run_is_looked_into_and_not_many() {
    let refused = |arguments: &[&str], why: &str| {
        let output = debug(&[arguments, &["-c", "vcpus"]].concat());
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{arguments:?}: {said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
    };
    refused(&[], "a scenario, --payload, --dump, --trace or --attach is missing");
    refused(&["call/nosuch"], "no scenario");
    refused(&["--payload", "/nonexistent"], "No such file");
    refused(&["mtrr/percpu-lock"], " runs are selected, and one can be looked into: 'mtrr/percpu-lock@vcpus=");
}

#[test]
fn interrupt_stops_a_machine_that_runs_and_is_no_end_of_it() {
    if kvm_is_missing() {
        return;
    }
    let what = ["mtrr/repeated", "--vcpus", "2", "--set", "rounds=4000", "--set", "events=calls", "--budget", "600000"];
    let mut child = start(&[&["debug"][..], &what, &["-c", "vcpus; run; vcpus; quit"]].concat());
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    // Then it follows commands, and handles the signal.
    output.read_line(&mut said).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    output.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("the machine stands still") && said.matches("vcpu  phase").count() == 2, "{said}");
}
