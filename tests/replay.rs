//! Traces on this machine's /dev/kvm: written by `explore`, followed by `replay`, looked at by `debug --trace`.
//!
//! The traces in fixtures/traces were written on one host, and every host has to come through the same states. Their payload lies beside
//! them, so that they stay what they are whatever the built-in one becomes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use stallbench_explore::{StateHash, Trace};

/// The traces that are kept, with the hash of all their states.
const GOLDEN: [(&str, &str); 5] = [
    ("lock-and-call", "b13bd8af1a3cf62bbc0af30cfa36613e"),
    ("lock-and-call-fixed", "057954377ced5ac8ce44f3a12324e6ac"),
    ("early-done", "c2f7102eb7ffe3999224bf8d68f7c3cb"),
    ("nmi-rendezvous", "20d573b4c87cb023bc417527c4c59a69"),
    ("unfenced", "fd04cdd9a9db8407b8704240431bd1e6"),
];

fn golden(name: &str) -> PathBuf {
    traces().join(format!("{name}.trace"))
}

fn traces() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/traces")
}

fn parsed(name: &str) -> Trace {
    Trace::parse(&fs::read_to_string(golden(name)).unwrap()).unwrap()
}

/// Exit code, standard output, standard error.
fn stallbench(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("stallbench").unwrap();
    let output = command.current_dir(env!("CARGO_TARGET_TMPDIR")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn replay(file: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    stallbench(&[&["replay", file.to_str().unwrap()], more].concat())
}

fn refused(file: &Path, more: &[&str], code: i32, why: &str) {
    let (came, _, said) = replay(file, more);
    assert_eq!((came, said.lines().count()), (Some(code), 1), "{said}");
    assert!(said.starts_with("error: ") && said.contains(why), "{said}");
}

/// A golden trace, changed and sealed again as if it had come so: what is written is what [`Trace`] writes.
fn changed(name: &str, change: impl FnOnce(&mut Trace)) -> tempfile::NamedTempFile {
    let mut trace = parsed(name);
    change(&mut trace);
    let file = tempfile::NamedTempFile::new().unwrap();
    let payload = traces().join("payload.elf").display().to_string();
    trace
        .of
        .options
        .iter_mut()
        .filter(|(key, _)| key == "payload-file")
        .for_each(|(_, path)| path.clone_from(&payload));
    fs::write(file.path(), trace.to_string()).unwrap();
    file
}

#[test]
fn kept_traces_go_the_same_way_through_the_same_states() {
    for (name, chain) in GOLDEN {
        let (code, said, error) = replay(&golden(name), &["--repeat", "5"]);
        assert_eq!(code, Some(0), "{name}: {error}");
        assert!(said.contains(&format!("5 times, each as in the trace; states {chain}")), "{name}: {said}");
        // What its scenario expects of a search under its model, not of a free run: that of a rendezvous without a fence passes.
        assert!(said.contains("   as expected\n"), "{name}: {said}");
        assert_eq!(parsed(name).chain().to_string(), chain, "{name}");
    }
}

#[test]
#[ignore = "minutes"]
fn thousand_replays_are_one() {
    let (code, said, error) = replay(&golden("lock-and-call"), &["--repeat", "1000"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains(GOLDEN[0].1), "{said}");
}

#[test]
fn trace_of_a_search_is_followed_to_the_same_verdict() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.trace");
    let (code, said, _) =
        stallbench(&["explore", "acceptance/lock-and-call@vcpus=2", "--trace-out", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("stallbench replay '{}'", file.display())), "{said}");
    let (code, said, error) = replay(&file, &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains("STALL not-accepting") && said.contains("culprit vcpu1 in spin_lock"), "{said}");
    let (code, _, error) =
        stallbench(&["explore", "acceptance/lock-and-call@vcpus=2", "--trace-out", file.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else lies there");
}

/// The trace of a search that comes to what is declared, or to what is expected here.
fn searched(directory: &Path, arguments: &[&str], code: i32) -> PathBuf {
    let file = directory.join(arguments.concat().replace('/', "_"));
    let (came, said, error) = stallbench(&[&["explore"], arguments, &["--trace-out", file.to_str().unwrap()]].concat());
    assert_eq!(came, Some(code), "{said}{error}");
    file
}

#[test]
fn trace_says_where_interrupts_come_between_two_stops() {
    let directory = tempfile::tempdir().unwrap();
    let every = searched(directory.path(), &["acceptance/lock-and-call@vcpus=2", "--irq", "every-insn"], 0);
    let (code, said, error) = replay(&every, &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains("(sc irq=every-insn)") && said.contains("each as in the trace"), "{said}");
    let mut trace = Trace::parse(&fs::read_to_string(&every).unwrap()).unwrap();
    trace.of.model = "sc".to_owned();
    fs::write(&every, trace.to_string()).unwrap();
    refused(&every, &[], 100, "step ");
    // As a free run it is expected to come to something else.
    let found = searched(directory.path(), &["rendezvous/two-panics@vcpus=2"], 100);
    let (code, _, error) = replay(&found, &[]);
    assert_eq!(code, Some(0), "{error}");
    let mut trace = Trace::parse(&fs::read_to_string(&found).unwrap()).unwrap();
    assert!(trace.of.options.iter().any(|(key, place)| key == "place" && place.contains("kdump+0x")), "{}", trace.of);
    trace.of.options.push(("place".to_owned(), "7 no+0x1 (0x1)".to_owned()));
    fs::write(&found, trace.to_string()).unwrap();
    refused(&found, &[], 100, "step 0: place of delivery: the trace has 7 no+0x1 (0x1)");
}

#[test]
fn replay_says_what_the_search_saw_and_nothing_of_what_it_did_not_decide() {
    let directory = tempfile::tempdir().unwrap();
    let breach = searched(directory.path(), &["rendezvous/caches-off-alone@vcpus=2"], 0);
    let (code, said, error) = replay(&breach, &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains("BREACH cache-off") && !said.contains("NOT AS EXPECTED"), "{said}");
    let cut = searched(directory.path(), &["mtrr/percpu-lock@vcpus=2", "--max-states", "1000"], 100);
    let (code, said, error) = replay(&cut, &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains("came to no verdict"), "{said}");
}

#[test]
fn replay_stops_at_the_first_difference_and_names_it() {
    let other = StateHash::of(b"another state");
    for (why, file) in [
        ("step 7: state: the trace has ", changed("lock-and-call", |trace| trace.steps[6].hash = other)),
        (
            "step 6: accesses: the trace has read 0x4012f0 4 =0x0; write 0x4012f0 4 =0x2, now it is read 0x4012f0 4 =0x0; write 0x4012f0 4 =0x1",
            changed("lock-and-call", |trace| {
                trace.steps[5].does = "read 0x4012f0 4 =0x0; write 0x4012f0 4 =0x2".to_owned()
            }),
        ),
        (
            "step 3: to: the trace has nowhere, now it is ",
            changed("lock-and-call", |trace| trace.steps[2].places[1] = "nowhere".to_owned()),
        ),
        (
            "step 2: choice: the trace has interrupt 1, now it is run 0, run 1",
            changed("lock-and-call", |trace| trace.steps[1].choice = "interrupt 1".parse().unwrap()),
        ),
        ("step 0: state at the start line: the trace has ", changed("lock-and-call", |trace| trace.start = other)),
        (
            "the trace ends in 'pass', now it is 'stall not-accepting'",
            changed("lock-and-call", |trace| trace.verdict = "pass".to_owned()),
        ),
    ] {
        refused(file.path(), &[], 100, why);
    }
}

#[test]
fn trace_that_cannot_be_followed_is_refused_in_one_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |text: &str| fs::write(file.path(), text).unwrap();
    let text = fs::read_to_string(golden("lock-and-call")).unwrap();
    write(&text[..text.len() / 2]);
    refused(file.path(), &[], 2, "is cut off");
    write(&text.replacen("run 1", "run 0", 1));
    refused(file.path(), &[], 2, "was edited");
    write(&text.replacen("trace 3", "trace 9", 1));
    refused(file.path(), &[], 2, "is a trace of version 9");
    write("{}");
    refused(file.path(), &[], 2, "is no trace");
    fs::write(file.path(), [0xff, 0xfe]).unwrap();
    refused(file.path(), &[], 2, "is no text");
    refused(Path::new("/nonexistent"), &[], 2, "No such file");
    let foreign = changed("lock-and-call", |trace| trace.of.scenario = "no/such@vcpus=2".to_owned());
    refused(foreign.path(), &[], 2, "no/such");
    let several = changed("lock-and-call", |trace| trace.of.scenario = "acceptance/lock-and-call".to_owned());
    refused(several.path(), &[], 2, "is no single scenario");
    let knob = changed("lock-and-call", |trace| trace.of.seed = 1);
    refused(knob.path(), &[], 2, "what the host hands the guest has changed");
    let model = changed("lock-and-call", |trace| trace.of.model = "pso".to_owned());
    refused(model.path(), &[], 2, "'pso'");
    refused(&golden("lock-and-call"), &["--stop-at", "51"], 2, "has 50 steps");
}

#[test]
fn traces_are_followed_one_after_another_whatever_the_others_are() {
    let altered = changed("lock-and-call", |trace| trace.steps[6].hash = StateHash::of(b"another state"));
    let files = [altered.path(), Path::new("/nonexistent"), &golden("early-done"), &golden("unfenced")];
    let files = files.map(|file| file.to_str().unwrap());
    let (code, said, errors) = stallbench(&[&["replay"], &files[..]].concat());
    // A file that cannot be read is told before any is followed, and the code is that of the first that is told.
    assert_eq!(code, Some(2), "{errors}");
    let told: Vec<_> = errors.lines().collect();
    assert!(
        matches!(told[..], [none, differs] if none.contains("/nonexistent") && differs.contains("step 7")),
        "{errors}"
    );
    assert!(said.contains(GOLDEN[2].1) && said.contains(GOLDEN[4].1) && !said.contains(GOLDEN[0].1), "{said}");
    let (code, _, error) = stallbench(&["replay", files[2], files[3], "--stop-at", "1"]);
    assert_eq!((code, error.lines().count()), (Some(2), 1), "{error}");
    assert!(error.contains("--stop-at is about one trace, and there are 2"), "{error}");
}

#[test]
fn trace_of_another_payload_is_followed_by_symbols_or_refused_by_name() {
    let other = |trace: &mut Trace| trace.of.payload = "00".repeat(32);
    let rebased = changed("lock-and-call", |trace| {
        other(trace);
        trace.start = StateHash::of(b"another");
        for step in &mut trace.steps {
            step.hash = StateHash::of(b"another");
            step.places = step.places.each_ref().map(|place| place.replace(" (0x1", " (0x2"));
        }
    });
    let (code, said, error) = replay(rebased.path(), &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains("of another payload: places are those of symbols, states were not compared"), "{said}");
    let moved = changed("lock-and-call", |trace| {
        other(trace);
        trace.steps[3].places[0] = trace.steps[3].places[0].replace("+0x", "+0xf");
    });
    refused(moved.path(), &[], 100, "step 4: from: ");
    let foreign = changed("lock-and-call", |trace| {
        other(trace);
        trace.steps[3].places[0] = "their::function+0x1 (0x10000)".to_owned();
    });
    refused(foreign.path(), &[], 2, "this one has no function their::function");
}

/// What the debugger says of a golden trace, one JSON object a command.
fn debugged(commands: &str) -> Vec<Value> {
    let file = golden("lock-and-call");
    let (_, said, error) = stallbench(&["debug", "--trace", file.to_str().unwrap(), "--json", "-c", commands]);
    assert!(error.is_empty(), "{error}");
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn debugger_goes_to_any_step_and_all_its_commands_are_of_that_step() {
    let answers = debugged(
        "goto; mem phys:0x4012f0 4; back 3; vcpus; goto 5; mem phys:0x4012f0 4; forward; mem phys:0x4012f0 4; goto 0; back; goto 51",
    );
    let data = |at: usize| &answers[at]["data"];
    assert_eq!((&data(0)["step"], &data(0)["steps"], &data(0)["vcpu"]), (&50.into(), &50.into(), &1.into()));
    assert_eq!(data(2)["step"], 47, "{answers:#?}");
    assert_eq!(data(3)[1]["interrupts_enabled"], false, "vCPU 1 has its interrupts off then: {}", data(3)[1]);
    let lock = |at: usize| data(at).to_string();
    assert_ne!(lock(5), lock(7), "the lock is taken at step 6");
    assert_eq!(lock(1), lock(7), "and never given back");
    assert_eq!(data(8)["step"], 0);
    assert!(answers[9]["error"].as_str().unwrap().contains("this is the start line"), "{answers:#?}");
    assert!(answers[10]["error"].as_str().unwrap().contains("there is no step 51"), "{answers:#?}");
}

#[test]
fn machine_of_a_step_is_the_same_whatever_was_looked_at_before() {
    let of = |commands: &str| debugged(commands).last().unwrap()["data"].clone();
    let straight = of("goto 20; regs all");
    assert_eq!(of("goto 50; goto 3; goto 21; back; regs all"), straight);
    assert_eq!(
        of("goto 50; goto 20; mem 0x4016c0 8"),
        of("goto 20; mem 0x4016c0 8"),
        "memory that is written later, too"
    );
}

#[test]
fn point_of_no_return_says_what_would_have_saved_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("a.svg");
    let arguments =
        ["explore", "acceptance/lock-and-call@vcpus=2", "--explain", "--timeline", picture.to_str().unwrap()];
    let (code, said, error) = stallbench(&arguments);
    assert_eq!(code, Some(0), "{error}");
    let turning = "step 47: vcpu1 goes on; the run could still have come to its end if vcpu1 took vector 0xfb then\n";
    assert!(said.contains(turning), "{said}");
    let lines: Vec<_> = said.lines().map(str::trim).collect();
    let at = |what: &str| lines.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {said}"));
    assert!(at("reads lock 0x0, writes lock 0x1") < at("sends vector 0xfb to vcpu1"), "{said}");
    assert!(at("------- step 47") < at("reads lock 0x1, writes lock 0x1"), "{said}");
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("step 47: vcpu1 goes on"), "{svg}");
    let (code, _, error) = stallbench(&arguments);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--timeline") && error.contains("exists already"), "{error}");
    let (code, _, error) = stallbench(&["explore", "acceptance/lock-and-call@vcpus=2", "--timeline", "a.png"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("ends in .svg or .html"), "{error}");
}
