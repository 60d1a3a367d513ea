//! The command line on real KVM: verdicts, reports, exit codes, interrupts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod documented;
mod missing;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use documented::{documented_keys, undocumented};
use missing::kvm_is_missing;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
/// Where the binary runs: dumps of runs that are not as expected stay out of the sources.
const PLACE: &str = env!("CARGO_TARGET_TMPDIR");
const STALLED: &str = "mtrr/stack-broadcast@vcpus=4";
const PASSING: &str = "call/smallest@vcpus=2";

fn stallbench(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).current_dir(PLACE).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn declared_stall_is_success_and_shows_who_waits_for_whom() {
    if kvm_is_missing() {
        return;
    }
    let output = stallbench(&["run", STALLED]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}{}", text(&output.stderr));
    for part in [
        "STALL deadlock   4 vCPUs   proved",
        "proof: 4096 states, closed under every order of the vCPUs",
        "vcpu1   ipi_handler B3",
        "IF=0",
        "culprit vcpu0 in call_many",
        "count=0 gate=0",
    ] {
        assert!(shown.contains(part), "'{part}' is not in:\n{shown}");
    }
}

#[test]
fn fix_put_into_a_stalling_scenario_is_unexpected() {
    if kvm_is_missing() {
        return;
    }
    let output = stallbench(&["run", STALLED, "--set", "alloc=ok"]);
    assert_eq!(output.status.code(), Some(100));
    assert!(text(&output.stdout).contains("pass, expected stall deadlock"), "{}", text(&output.stdout));
}

#[test]
fn json_lines_hold_what_is_documented_and_nothing_else() {
    if kvm_is_missing() {
        return;
    }
    let names = [
        STALLED,
        PASSING,
        "call/broken-promise",
        "mtrr/timed-out",
        "mtrr/forgotten-write",
        "rendezvous/stack-record@vcpus=2",
        "rendezvous/caches-off-alone@vcpus=2",
        "acceptance/unwoken@vcpus=2",
        "slow/busy-member@vcpus=2",
    ];
    let output = stallbench(&[&["run", "--report", "jsonl=-"][..], &names].concat());
    let lines = json_lines(text(&output.stdout));
    let types: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!((types[0], types[types.len() - 1]), ("run-start", "run-end"));
    for line in &lines {
        let documented = documented_keys(line["type"].as_str().unwrap());
        assert_eq!(undocumented(line, "", &documented), Vec::<String>::new(), "{line}");
    }
    let stall = lines.iter().find(|line| line["scenario"] == STALLED).unwrap();
    for key in [
        "verdict",
        "kind",
        "strength",
        "culprit",
        "waits",
        "as_expected",
        "vcpus",
        "wall_ns",
        "verdict_ns",
        "mtrr",
        "residual_waits",
        "words",
    ] {
        assert!(stall.get(key).is_some(), "{key} is missing: {stall}");
    }
    let words = (&stall["verdict"], &stall["kind"], &stall["strength"], &stall["culprit"]["site"]);
    assert_eq!(words, (&"stall".into(), &"deadlock".into(), &"proved".into(), &"call_many".into()));
    assert_eq!(stall["waits"][0]["awaits"], serde_json::json!([1, 2, 3]));
    assert!(stall["waits"][0]["address"].as_str().unwrap().starts_with("0x"));
    let end = lines.last().unwrap();
    assert_eq!((&end["total"], &end["unexpected"]), (&(lines.len() - 2).into(), &0.into()));
}

#[test]
fn variants_of_arch_that_diverge_are_told_in_both_reports() {
    if kvm_is_missing() {
        return;
    }
    let report = tempfile::NamedTempFile::new().unwrap();
    let option = format!("--report=jsonl={}", report.path().display());
    let output = stallbench(&["run", "table/set-mtrr@vcpus=3,call=release,alloc=fail", "mtrr/today", &option]);
    let told = text(&output.stdout);
    let line = "  set-mtrr, 3 vCPUs, call=release, alloc=fail   generic pass · generic-old-handler stall deadlock\n";
    assert!(told.contains(&format!("where variants of arch diverge\n{line}")), "{told}");
    let lines = json_lines(&fs::read_to_string(report.path()).unwrap());
    let end = lines.last().unwrap();
    assert_eq!(undocumented(end, "", &documented_keys("run-end")), Vec::<String>::new(), "{end}");
    let divergences = end["arch_divergences"].as_array().unwrap();
    assert_eq!(divergences.len(), 1, "{end}");
    assert_eq!(
        divergences[0]["verdicts"],
        serde_json::json!({ "generic": ["pass"], "generic-old-handler": ["stall deadlock"] })
    );
    let agreeing = stallbench(&["run", "table/set-mtrr@vcpus=3,call=release,alloc=ok"]);
    assert!(!text(&agreeing.stdout).contains("diverge"), "{}", text(&agreeing.stdout));
}

#[test]
fn report_that_cannot_be_opened_is_110_and_results_are_on_the_terminal() {
    if kvm_is_missing() {
        return;
    }
    let output = stallbench(&["run", PASSING, "--report", "jsonl=/no/such/directory/x"]);
    assert_eq!(output.status.code(), Some(110));
    assert!(text(&output.stdout).contains("PASS") && text(&output.stdout).contains("1 run: 1 pass"));
    let line = text(&output.stderr);
    assert!(line.starts_with("error: write report jsonl=/no/such/directory/x: No such file"), "{line}");
}

#[test]
fn report_on_a_full_disk_is_110_and_the_other_reports_are_whole() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let junit = directory.path().join("x.xml");
    let junit_option = format!("junit={}", junit.display());
    let output = stallbench(&["run", PASSING, "--report", "jsonl=/dev/full", "--report", &junit_option]);
    assert_eq!(output.status.code(), Some(110));
    assert!(text(&output.stderr).contains("write report jsonl=/dev/full: No space left"));
    assert!(text(&output.stdout).contains("PASS"));
    assert!(fs::read_to_string(junit).unwrap().trim_end().ends_with("</testsuites>"));
}

#[test]
fn run_directory_holds_identity_verdict_and_the_command_that_repeats_it() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let output = stallbench(&["run", STALLED, "--repeat", "2", "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let read = |path: &Path| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
    let identity = read(&out.join(STALLED).join("run.json"));
    assert_eq!(identity["repeat"], format!("stallbench run --budget 10000 '{STALLED}' --seed 0"));
    assert_eq!(read(&out.join(format!("{STALLED}#2")).join("verdict.json"))["verdict"], "stall");
    assert_eq!(read(&out.join("summary.json"))["total"], 2);
    assert!(read(&out.join("session.json"))["host"]["vendor_module"].is_string());
}

#[test]
fn interrupt_keeps_results_so_far_in_all_reports() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let junit = directory.path().join("x.xml");
    let mut child = Command::new(BINARY)
        .args([
            "run",
            PASSING,
            "--repeat",
            "100000",
            "--report",
            "jsonl=-",
            "--report",
            &format!("junit={}", junit.display()),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen: Vec<String> = lines.by_ref().take(3).map(Result::unwrap).collect();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    seen.extend(lines.map(Result::unwrap));
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let lines = json_lines(&seen.join("\n"));
    let end = lines.last().unwrap();
    assert_eq!((&end["type"], &end["interrupted"]), (&"run-end".into(), &true.into()));
    let results = lines.iter().filter(|line| line["type"] == "result").count();
    assert_eq!(end["total"], results);
    let junit = fs::read_to_string(junit).unwrap();
    assert!(junit.trim_end().ends_with("</testsuites>"));
    assert_eq!(junit.matches("<testcase ").count(), results);
}

#[test]
fn reader_that_goes_away_leaves_the_verdict_to_the_exit_code() {
    if kvm_is_missing() {
        return;
    }
    let mut child = Command::new(BINARY)
        .args(["run", STALLED, "--set", "alloc=ok"])
        .current_dir(PLACE)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(100), ""));
}

#[test]
fn reader_of_a_report_that_goes_away_is_no_error() {
    if kvm_is_missing() {
        return;
    }
    for report in ["jsonl=-", "junit=-"] {
        let mut child = Command::new(BINARY)
            .args(["run", PASSING, "--report", report])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{report}");
    }
}

#[test]
fn limit_of_descriptors_is_96_and_says_what_to_raise() {
    if kvm_is_missing() {
        return;
    }
    let script = "ulimit -n 4; exec \"$0\" run \"$1\"";
    let output = Command::new("sh").args(["-c", script, BINARY, PASSING]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(96), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("ulimit -n"), "{}", text(&output.stderr));
}

#[test]
fn case_of_a_payload_runs_by_itself() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let payload = directory.path().join("guest.elf");
    fs::write(&payload, stallbench_image::PAYLOAD).unwrap();
    let payload = payload.to_str().unwrap();
    let with = |more: &[&str]| stallbench(&[&["run", "--payload", payload, "--case"][..], more].concat());
    assert_eq!(with(&["plain", "--set", "callee=ends", "--vcpus", "2,3"]).status.code(), Some(0));
    let stalled = with(&["plain", "--set", "alloc=fail", "--set", "call=kmalloc-2.6.28"]);
    assert_eq!(stalled.status.code(), Some(100), "{}", text(&stalled.stdout));
    let named = stallbench(&["run", "--payload", payload, "payload/plain@vcpus=2", "--set", "callee=ends"]);
    assert_eq!(named.status.code(), Some(0), "{}{}", text(&named.stdout), text(&named.stderr));
    let unknown = with(&["plian"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("did you mean plain"));
}

#[test]
fn bench_shows_its_figures() {
    if kvm_is_missing() {
        return;
    }
    let output = stallbench(&["bench", "--json", "--runs", "1"]);
    let value: Value = serde_json::from_str(text(&output.stdout)).unwrap();
    let names: Vec<_> =
        value["figures"].as_array().unwrap().iter().map(|figure| figure["figure"].as_str().unwrap()).collect();
    for name in ["run-stalled-4", "verdict-stalled-4", "all-up-8", "process-smallest", "explore-2", "explore-way-bare"]
    {
        assert!(names.contains(&name), "{name}");
    }
}

#[test]
fn host_names_its_vendor_module() {
    if kvm_is_missing() {
        return;
    }
    let value: Value = serde_json::from_str(text(&stallbench(&["host", "--json"]).stdout)).unwrap();
    assert_eq!(value["usable"], true);
    assert!(value["host"]["vendor_module"].as_str().unwrap().starts_with("kvm_"));
    let probed = value["probed"].as_array().unwrap();
    assert!(probed.len() == 5 && probed.iter().all(|probed| probed["answer"].is_boolean()), "{probed:?}");
    let names = |list: &Value| list.as_array().map_or(0, Vec::len);
    assert!(names(&value["by_name"]) <= names(&value["host"]["known"]), "what was asked is not known by name only");
}
