//! The command line, as far as it needs no KVM: what it lists, and what it says to requests that are wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");

fn stallbench(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A wrong request: exit 2, nothing on standard output, and a first line that says all of `parts`.
fn refused(arguments: &[&str], parts: &[&str]) {
    let output = stallbench(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", stdout(&output));
    let line = text.lines().next().unwrap_or_default();
    assert!(line.starts_with("error: "), "{arguments:?}: {text}");
    for part in parts {
        assert!(line.contains(part), "{arguments:?}: '{part}' is not in: {line}");
    }
}

fn scenario_file(directory: &Path, text: &str) -> String {
    let path = directory.join("mine.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const MINE: &str = r#"subject = "mine"
about = "a test"

[[scenario]]
name = "one"
case = "plain"
story = "A call."
vcpus = [2]
set = { callee = "ends" }

[[scenario.expect]]
verdict = "pass"
because = "the callback ends by itself"
"#;

#[test]
fn unknown_commands_and_options_are_refused() {
    refused(&["explode"], &["unrecognized subcommand 'explode'"]);
    refused(&["run", "--shard", "1/2"], &["unexpected argument '--shard'"]);
    refused(&["run", "--gdb", "x"], &["invalid value 'x' for '--gdb <ADDRESS>'"]);
}

#[test]
fn every_option_with_a_wrong_value_is_refused() {
    refused(&["run", "--vcpus", "two"], &["'two'", "--vcpus"]);
    refused(&["run", "--vcpus", "-1"], &["-1"]);
    refused(&["run", "--repeat", "0"], &["'0'", "--repeat"]);
    refused(&["run", "--jobs", "0"], &["'0'", "--jobs"]);
    refused(&["run", "--budget", "0"], &["'0'", "--budget"]);
    refused(&["run", "--budget", "10s"], &["'10s'", "--budget"]);
    refused(&["run", "--seed", "dice"], &["'dice'", "--seed", "expected a number"]);
    refused(&["run", "--report", "jsn=x"], &["'jsn=x'", "expected human, jsonl=FILE or junit=FILE"]);
    refused(&["run", "--report", "junit"], &["junit needs a file"]);
    refused(&["run", "--report", "human", "--report", "jsonl=-"], &["only one --report can go to standard output"]);
    refused(&["run", "--report", "jsonl=r/a", "--report", "junit=r/./a"], &["jsonl=r/a", "write the same file"]);
    refused(&["run", "--case", "plain"], &["required arguments were not provided"]);
    refused(&["bench", "--runs", "0"], &["'0'", "--runs"]);
    refused(&["list", "--json", "--markdown", "table"], &["cannot be used with"]);
}

#[test]
fn unknown_names_bring_the_nearest() {
    refused(&["run", "mtrr/stack-brodcast"], &["'mtrr/stack-brodcast'", "did you mean", "mtrr/stack-broadcast"]);
    refused(&["list", "tabel"], &["'tabel'", "did you mean table"]);
    refused(&["list", "--markdown", "tabel"], &["did you mean table"]);
    refused(&["run", "mtrr/stack-broadcast", "--set", "aloc=ok"], &["unknown knob 'aloc'", "did you mean alloc"]);
    refused(
        &["run", "mtrr/stack-broadcast", "--set", "alloc=okay"],
        &["'okay' is no value of alloc", "expected ok, fail"],
    );
    refused(&["run", "mtrr/stack-broadcast", "--set", "alloc"], &["expected KNOB=VALUE"]);
    refused(
        &["run", "mtrr/stack-broadcast", "--set", "initiator=9"],
        &["'9' is no value of initiator", "not in range"],
    );
    refused(&["run", "mtrr/stack-broadcast@vcpu=4"], &["unknown knob 'vcpu'"]);
    refused(&["list", "mtrr/stack-broadcast@vcpus=999"], &["'999' is no number of vCPUs"]);
    refused(&["run", "table@call=llist,alloc=nth:7"], &["table has no cell 'call=llist,alloc=nth:7'"]);
}

#[test]
fn vcpus_of_zero_and_too_many_are_refused() {
    refused(&["run", "mtrr/stack-broadcast", "--vcpus", "0"], &["0 vCPUs", "1 to 255"]);
    refused(&["run", "mtrr/stack-broadcast", "--vcpus", "256"], &["256 vCPUs", "1 to 255"]);
}

#[test]
fn broken_scenario_files_name_file_line_and_what_was_expected() {
    let directory = tempfile::tempdir().unwrap();
    let broken = |from: &str, to: &str, parts: &[&str]| {
        let file = scenario_file(directory.path(), &MINE.replace(from, to));
        refused(&["run", &file], &[&[file.as_str()], parts].concat());
    };
    broken("[[scenario]]", "[[scenario]", &["mine.toml:4:"]);
    broken("name = \"one\"", "nam = \"one\"", &["mine.toml:5:1: unknown field `nam`, expected one of `name`"]);
    broken(
        "case = \"plain\"",
        "case = \"plian\"",
        &["mine.toml:6:8: the image has no case 'plian'; did you mean plain"],
    );
    broken("callee = \"ends\"", "calle = \"ends\"", &["mine.toml:9:9: unknown knob 'calle'; did you mean callee"]);
    broken("\"ends\"", "\"end\"", &["mine.toml:9:18: 'end' is no value of callee", "did you mean ends"]);
    broken("vcpus = [2]", "vcpus = [0]", &["mine.toml:8:9: '0' is no number of vCPUs, expected 1 to 255"]);
    broken("\"pass\"", "\"passed\"", &["mine.toml:12:11: unknown verdict 'passed'", "did you mean pass"]);
    broken("because = \"the callback ends by itself\"", "", &["missing field `because`"]);
}

#[test]
fn missing_files_and_empty_directories_are_named() {
    let directory = tempfile::tempdir().unwrap();
    refused(&["run", "./no-such-file.toml"], &["read ./no-such-file.toml", "No such file"]);
    refused(&["run", directory.path().to_str().unwrap()], &["no *.toml file in this directory"]);
    let dump = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/dumps/deadlock.core");
    refused(&["debug", dump], &["deadlock.core: an ELF file, and no scenarios: `debug --dump` looks at a dump"]);
}

#[test]
fn foreign_payloads_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let text = scenario_file(
        directory.path(),
        "no ELF at all, but long enough to hold the header of one, if it were, somewhere",
    );
    refused(&["run", "--payload", &text], &["--payload", "mine.toml"]);
    refused(&["run", "--payload", "/no/such/file"], &["--payload /no/such/file", "No such file"]);
    refused(&["run", "--payload", directory.path().to_str().unwrap()], &["not a regular file"]);
    refused(&["list", "--payload", BINARY], &["--payload"]);
}

#[test]
fn run_directory_that_holds_something_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("x"), "").unwrap();
    let path = directory.path().to_str().unwrap();
    refused(&["run", "call/smallest", "--out", path], &["--out", "is there already and is not an empty directory"]);
}

#[test]
fn file_without_scenarios_selects_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = scenario_file(directory.path(), "subject = 'mine'\nabout = ''\n");
    let output = stallbench(&["run", &file]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(stderr(&output), format!("error: nothing selected: there is no scenario in {file}\n"));
}

#[test]
fn vcpus_that_no_cell_of_a_group_has_select_nothing() {
    let output = stallbench(&["run", "table", "--vcpus", "77"]);
    assert_eq!(output.status.code(), Some(4));
    let line = "error: nothing selected: no declared cell in table has --vcpus 77; ";
    assert!(stderr(&output).starts_with(line), "{}", stderr(&output));
}

#[test]
fn list_shows_every_scenario_and_its_story() {
    let output = stallbench(&["list"]);
    assert!(output.status.success());
    assert!(stdout(&output).contains("mtrr/stack-broadcast") && stdout(&output).contains("alloc-site"));
    let story = stdout(&stallbench(&["list", "mtrr/stack-broadcast"]));
    assert!(story.contains("January 2009") && story.contains("because") && story.contains("culprit"), "{story}");
}

#[test]
fn list_as_json_has_the_documented_keys() {
    let value: Value = serde_json::from_slice(&stallbench(&["list", "--json", "table"]).stdout).unwrap();
    assert_eq!(value["schema_version"], 1);
    let scenario = &value["scenarios"][0];
    for key in ["scenario", "subject", "case", "story", "groups", "default", "vcpus", "set", "matrix", "alternate"] {
        assert!(!scenario[key].is_null(), "{key}");
    }
    let expectation = &scenario["expectations"][0];
    assert!(expectation["because"].is_string() && expectation["cells"][0].is_string(), "{expectation}");
    for key in ["when", "verdict", "kind", "strength", "culprit", "culprit_vcpu", "words", "residual_waits", "contains"]
    {
        assert!(expectation.get(key).is_some(), "{key}: {expectation}");
    }
    assert!(value["cases"][0]["knobs"].is_array() && value["knobs"][0]["values"].is_array());
}

#[test]
fn every_cell_has_a_reason_and_a_name_that_is_accepted() {
    let value: Value = serde_json::from_slice(&stallbench(&["list", "--json"]).stdout).unwrap();
    for scenario in value["scenarios"].as_array().unwrap() {
        for expectation in scenario["expectations"].as_array().unwrap() {
            assert!(expectation["because"].as_str().unwrap().len() > 10, "{scenario}");
        }
        let name = scenario["expectations"][0]["cells"][0].as_str().unwrap();
        let listed = stallbench(&["list", name]);
        assert!(listed.status.success(), "{name}: {}", stderr(&listed));
    }
}

#[test]
fn own_files_are_listed_and_their_names_are_accepted_beside_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = scenario_file(directory.path(), MINE);
    assert!(stdout(&stallbench(&["list", &file])).contains("mine/one"));
    assert!(stdout(&stallbench(&["list", &file, "mine/one@vcpus=2"])).contains("mine/one"));
}

/// A pattern with its bug and its fix.
const STOPS: &str = r#"subject = "mine"
about = "a test"

[[pattern]]
id = "X01"
name = "my-own-stops"
title = "Two stops at a time"
when = "2013"
story = "Each of two CPUs stops the other."
fix = "one lock"
step = "both queues are filled under one lock"

[[scenario]]
name = "crossed"
pattern = "X01"
case = "plain"
story = "A call."
vcpus = [2]
set = { callee = "needs-caller", wait = 1, call = "llist" }

[[scenario.expect]]
verdict = "stall"
kind = "deadlock"
because = "each waits for the other"

[[scenario]]
name = "crossed-fixed"
pattern = "X01"
case = "plain"
story = "A call."
vcpus = [2]
set = { callee = "needs-caller", wait = 0, call = "llist" }

[[scenario.expect]]
verdict = "pass"
because = "nobody waits"
"#;

#[test]
fn pattern_is_told_whole_by_its_id_in_any_case_and_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = scenario_file(directory.path(), STOPS);
    let told = ["X01", "x01", "my-own-stops"].map(|name| stdout(&stallbench(&["list", &file, name])));
    assert!(told[0] == told[1] && told[0] == told[2], "{told:?}");
    for part in [
        "X01 my-own-stops: Two stops at a time",
        "Each of two CPUs stops the other.",
        "when     2013",
        "fix      one lock",
        "step     both queues are filled under one lock",
        "mine/crossed and its fix differ in wait: 1 became 0",
        "case plain, callee=needs-caller, wait=1, call=llist; vcpus 2",
        "stall deadlock, strength proved or more (1 cell)",
        "because each waits for the other",
        "mine/crossed-fixed",
    ] {
        assert!(told[0].contains(part), "'{part}' is not in {}", told[0]);
    }
}

#[test]
fn pattern_as_json_has_the_documented_keys() {
    let directory = tempfile::tempdir().unwrap();
    let file = scenario_file(directory.path(), STOPS);
    let value: Value = serde_json::from_slice(&stallbench(&["list", "--json", &file, "X01"]).stdout).unwrap();
    let patterns = value["patterns"].as_array().unwrap();
    assert_eq!(patterns.len(), 1, "{value}");
    for (key, said) in [("pattern", "X01"), ("name", "my-own-stops"), ("when", "2013"), ("fix", "one lock")] {
        assert_eq!(patterns[0][key], said);
    }
    assert_eq!(patterns[0]["scenarios"], serde_json::json!(["mine/crossed", "mine/crossed-fixed"]));
    assert_eq!(patterns[0]["twins"], serde_json::json!([{ "bug": "mine/crossed", "fixed": "mine/crossed-fixed" }]));
    assert_eq!(value["scenarios"][0]["pattern"], "X01");
}

#[test]
fn unknown_patterns_bring_the_nearest() {
    let directory = tempfile::tempdir().unwrap();
    let file = scenario_file(directory.path(), STOPS);
    for command in ["list", "run"] {
        refused(
            &[command, &file, "x99"],
            &["no scenario, subject, group or pattern is named 'x99'", "did you mean X01"],
        );
        refused(&[command, &file, "my-own-stop"], &["did you mean my-own-stops"]);
    }
    let wrong = scenario_file(directory.path(), &STOPS.replace("pattern = \"X01\"", "pattern = \"X02\""));
    for command in ["list", "run"] {
        refused(&[command, &wrong], &["mine.toml:15:11: there is no pattern 'X02'; did you mean X01"]);
    }
}

#[test]
fn stories_of_the_documentation_are_current() {
    let made = stdout(&stallbench(&["list", "--markdown", "patterns"]));
    let kept = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/patterns.md")).unwrap();
    assert!(made == kept, "docs/patterns.md is not current: stallbench list --markdown patterns >docs/patterns.md");
}

#[test]
fn table_of_the_documentation_is_current() {
    let made = stdout(&stallbench(&["list", "--markdown", "table"]));
    let kept = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/table.md")).unwrap();
    assert!(made == kept, "docs/table.md is not current: stallbench list --markdown table >docs/table.md");
}

#[test]
fn reader_that_goes_away_is_no_error() {
    let mut child = Command::new(BINARY).arg("list").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn full_standard_output_is_a_report_that_could_not_be_written() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(BINARY).arg("list").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(110));
    assert!(stderr(&output).starts_with("error: write to standard output: No space left"), "{}", stderr(&output));
}

#[test]
fn limit_for_files_is_a_report_that_could_not_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let script = "ulimit -f 1; exec \"$0\" list --json >\"$1\"";
    let file = directory.path().join("list.json");
    let output = Command::new("sh").args(["-c", script, BINARY, file.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(110), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("error: write to standard output: File too large"), "{}", stderr(&output));
}
