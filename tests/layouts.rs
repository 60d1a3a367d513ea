//! Memory layouts from the command line: what is refused before a machine exists, and what real guests make of the rest.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod missing;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use missing::kvm_is_missing;
use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
/// Where the binary runs: dumps of runs that are not as expected stay out of the sources.
const PLACE: &str = env!("CARGO_TARGET_TMPDIR");

/// A /proc/mtrr as newer kernels print it.
const PROC: &str = "reg00: base=0x000000000 (    0MB), size= 2048MB, count=1: write-back\n\
                    reg01: base=0x07c000000 ( 1984MB), size=   64MB, count=1: uncachable\n\
                    reg02: base=0x0d0000000 ( 3328MB), size=  256MB, count=1: write-combining\n";

fn stallbench(arguments: &[&str]) -> Output {
    Command::new(BINARY).arg("run").args(arguments).current_dir(PLACE).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A file of this name and text, for as long as the directory is there.
fn file(name: &str, text: impl AsRef<[u8]>) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// A request that is wrong: exit 2, and one line that says all of `parts`.
fn refused(arguments: &[&str], parts: &[&str]) {
    let output = stallbench(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    assert!(output.stdout.is_empty(), "{arguments:?}");
    let line = stderr(&output).lines().next().unwrap_or_default();
    for part in ["error: "].iter().chain(parts) {
        assert!(line.contains(part), "{arguments:?}: '{part}' is not in: {line}");
    }
}

fn refused_layout(text: impl AsRef<[u8]>, parts: &[&str]) {
    let (_directory, path) = file("my.toml", text);
    let named = format!("--layout: {path}:");
    refused(&["mtrr/layout", "--layout", &path], &[&[named.as_str()][..], parts].concat());
}

#[test]
fn layout_that_cannot_be_is_refused_with_file_line_and_reason() {
    let range = |base: &str, size: &str, kind: &str| {
        format!("machine = 'mine'\n\n[[range]]\nbase = '{base}'\nsize = '{size}'\ntype = '{kind}'\n")
    };
    refused_layout(range("0", "3GB", "write-back"), &["my.toml:3: ", "size 0xc0000000 (3 GiB) is no power of two"]);
    refused_layout(
        range("0x100000", "2MB", "write-back"),
        &["my.toml:3: ", "no multiple of its size 0x200000 (2 MiB)"],
    );
    refused_layout(range("0", "1MB", "cached"), &["my.toml:3: ", "'cached', expected uncachable, write-combining"]);
    refused_layout(range("0x8000000000", "1GB", "write-back"), &["my.toml:3: ", "39 address bits (MAXPHYADDR)"]);
    let ninth = format!("{PROC}reg08: base=0x100000000 ( 4096MB), size=  256MB, count=1: write-back\n");
    refused_layout(ninth, &["my.toml:4: ", "range 8: the machine has 8 variable ranges (VCNT)"]);
    let overlap = format!("{PROC}reg03: base=0x000000000 (    0MB), size=   64MB, count=1: write-protect\n");
    refused_layout(overlap, &["my.toml:4: ", "range 0 (write-back, line 1)", "the manual leaves undefined"]);
}

#[test]
fn file_that_is_no_layout_is_refused() {
    refused_layout("", &[":1: there is nothing to program"]);
    refused_layout("subject = 'mtrr'\n", &[":1: ", "unknown field `subject`"]);
    refused_layout([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0xff, 0xfe], &[":1: "]);
    refused_layout("[[range]\n", &[":1: "]);
    refused(
        &["mtrr/layout", "--layout", "/nonexistent/my.toml"],
        &["--layout: read /nonexistent/my.toml: No such file"],
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    refused(&["mtrr/layout", "--layout", path], &["--layout: read ", "Is a directory"]);
    let (_directory, large) = file("large", vec![b'\n'; (4 << 20) + 1]);
    refused(&["mtrr/layout", "--layout", &large], &["larger than 4194304 bytes"]);
}

#[test]
fn layout_where_none_is_programmed_or_another_is_named_is_refused() {
    let (_directory, path) = file("mtrr.txt", PROC);
    refused(&["call/smallest", "--layout", &path], &["--layout: nothing that is selected programs a layout"]);
    let named = "mtrr/machines@vcpus=3,layout=aptio-j1900,initiator=2";
    refused(&[named, "--layout", &path], &["and this one is in the name: aptio-j1900"]);
    refused(&["mtrr/layout", "--set", "layout=own"], &["layout=own is the layout of --layout FILE, and there is none"]);
    refused(&["mtrr/layout", "--set", "layout=thinkpad-r51p"], &["did you mean thinkpad-r50p"]);
}

/// The results of a run, and its exit code.
fn results(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = stallbench(&[&["--report", "jsonl=-"], arguments].concat());
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    (output.status.code(), lines.filter(|line| line["type"] == "result").collect())
}

fn only(arguments: &[&str]) -> (Option<i32>, Value) {
    let (code, mut results) = results(arguments);
    assert_eq!(results.len(), 1, "{arguments:?}: {results:#?}");
    (code, results.remove(0))
}

fn map(result: &Value) -> Vec<&str> {
    result["mtrr"]["map"].as_array().unwrap().iter().map(|region| region.as_str().unwrap()).collect()
}

#[test]
fn text_of_proc_mtrr_is_programmed_on_all_vcpus_and_its_map_is_told() {
    if kvm_is_missing() {
        return;
    }
    let (_directory, path) = file("mtrr.txt", PROC);
    let (code, result) = only(&["mtrr/layout@vcpus=4", "--layout", &path]);
    assert_eq!((code, result["verdict"].as_str()), (Some(0), Some("pass")), "{result:#}");
    assert_eq!((result["layout"].as_str(), result["mtrr"]["changed"].as_bool()), (Some(path.as_str()), Some(true)));
    let expected = [
        "0x0 to 0x9ffff write-back",
        "0xa0000 to 0xbffff uncachable",
        "0xc0000 to 0xfffff write-protect",
        "0x100000 to 0x7bffffff write-back",
        "0x7c000000 to 0xcfffffff uncachable",
        "0xd0000000 to 0xdfffffff write-combining",
        "0xe0000000 to 0x7fffffffff uncachable",
    ];
    assert_eq!(map(&result), expected);
}

#[test]
fn run_directory_holds_the_layout_and_the_command_that_repeats_it() {
    if kvm_is_missing() {
        return;
    }
    let (directory, path) = file("mtrr.txt", PROC);
    let out = directory.path().join("out");
    let output = stallbench(&["mtrr/layout@vcpus=2", "--layout", &path, "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains(&format!("  layout {path}\n    0x0 to 0x9ffff write-back\n")), "{shown}");
    let identity = fs::read_to_string(Path::new(&out).join("mtrr/layout@vcpus=2/run.json")).unwrap();
    let identity: Value = serde_json::from_str(&identity).unwrap();
    assert_eq!((identity["layout"].as_str(), identity["knobs"]["layout"].as_str()), (Some(path.as_str()), Some("own")));
    assert!(identity["repeat"].as_str().unwrap().contains(&format!(" --layout '{path}'")), "{identity}");
}

#[test]
fn published_layouts_pass_each_with_its_name() {
    if kvm_is_missing() {
        return;
    }
    let (code, results) = results(&["mtrr/machines"]);
    assert_eq!((code, results.len()), (Some(0), 8));
    for result in &results {
        let name = result["scenario"].as_str().unwrap();
        assert!(name.contains(&format!("layout={}", result["layout"].as_str().unwrap())), "{result:#}");
        assert!(result["mtrr"]["consistent"] == true && map(result).len() > 3, "{result:#}");
    }
}

#[test]
fn vcpu_that_leaves_out_its_writes_is_inconsistent_and_named() {
    if kvm_is_missing() {
        return;
    }
    for name in ["mtrr/layout@vcpus=4", "mtrr/random@vcpus=4"] {
        let (code, result) = only(&[name, "--set", "flip=no-mtrr-write"]);
        assert_eq!((code, result["verdict"].as_str()), (Some(100), Some("inconsistent")), "{result:#}");
        let problems = result["mtrr"]["problems"].as_array().unwrap();
        assert!(problems.iter().all(|line| line.as_str().unwrap().starts_with("vcpu3: ")), "{result:#}");
    }
}

#[test]
fn what_kvm_takes_and_the_manual_forbids_is_found_by_its_rule() {
    if kvm_is_missing() {
        return;
    }
    let (code, results) = results(&["mtrr/against-the-manual"]);
    assert_eq!((code, results.len()), (Some(0), 3));
    let rules = ["is no multiple of the size", "the mask has holes", "base6 and base7 overlap"];
    for (result, rule) in results.iter().zip(rules) {
        let problems: Vec<_> = result["mtrr"]["problems"].as_array().unwrap().iter().collect();
        // One line a vCPU: nothing but this rule is broken.
        assert_eq!(problems.len(), 2, "{result:#}");
        assert!(problems.iter().all(|line| line.as_str().unwrap().contains(rule)), "{result:#}");
    }
    let (code, result) = only(&["mtrr/against-the-manual@invalid=size", "--set", "invalid=none"]);
    assert_eq!((code, result["verdict"].as_str()), (Some(100), Some("pass")));
    let (code, result) = only(&["mtrr/layout@vcpus=2", "--set", "invalid=misaligned"]);
    assert_eq!((code, result["verdict"].as_str()), (Some(100), Some("inconsistent")));
}

#[test]
fn same_seed_is_the_same_programme_and_another_seed_is_another() {
    if kvm_is_missing() {
        return;
    }
    let run = |seed: &str| {
        let (code, result) = only(&["mtrr/random@vcpus=2", "--seed", seed]);
        assert_eq!((code, result["seed"].to_string().as_str()), (Some(0), seed), "{result:#}");
        map(&result).iter().map(|region| (*region).to_owned()).collect::<Vec<_>>()
    };
    let seven = run("7");
    assert_eq!(run("7"), seven);
    assert_ne!(run("8"), seven);
}

#[test]
fn gate_that_stays_closed_stalls_initiators_that_queue_up() {
    if kvm_is_missing() {
        return;
    }
    let (code, result) = only(&["mtrr/concurrent@vcpus=4,call=llist", "--set", "flip=no-gate-store"]);
    assert_eq!(
        (code, result["verdict"].as_str(), result["kind"].as_str()),
        (Some(100), Some("stall"), Some("deadlock"))
    );
}

#[test]
fn long_programmes_are_seen_whole_and_say_so_where_they_are_not() {
    if kvm_is_missing() {
        return;
    }
    let (code, result) = only(&["mtrr/repeated@vcpus=2"]);
    assert_eq!((code, result["wait0"].as_str()), (Some(0), Some("kept")), "{result:#}");
    let (code, result) = only(&["mtrr/repeated@vcpus=2", "--set", "events=all"]);
    assert_eq!((code, result["wait0"].as_str()), (Some(100), Some("not-observed")), "{result:#}");
}
