//! Searches that are interrupted, and those that go on from where they were: what they come to is what one comes to that never ended.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ran;
mod wait;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ran::{Ran, stallbench_explore as explore};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use wait::wait_until;

const SMALL: &str = "acceptance/lock-and-call@vcpus=2";
const LARGE: &str = "mtrr/percpu-lock@vcpus=3";

/// What was found, without what took how long and where files lie.
fn found(ran: &Ran) -> Value {
    let mut result = ran.only().clone();
    let explored = result["explored"].as_object_mut().unwrap();
    ["took_ns", "go_on"].iter().for_each(|key| _ = explored.remove(*key));
    let keys = ["verdict", "kind", "strength", "culprit", "waits", "explored"];
    keys.iter().map(|key| result[*key].take()).collect()
}

fn file(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A search of that run that ends after so many states, with its checkpoint.
fn cut(name: &str, states: &str, path: &Path) -> Ran {
    let ran = explore(&[name, "--max-states", states, "--checkpoint", &file(path)]);
    assert!(path.exists(), "{}", ran.said);
    ran
}

#[test]
fn search_that_goes_on_comes_to_what_one_comes_to_that_never_ended() {
    let directory = tempfile::tempdir().unwrap();
    let whole = found(&explore(&[SMALL]));
    for states in ["1", "30", "60"] {
        let path = directory.path().join(format!("{states}.explore"));
        let ran = cut(SMALL, states, &path);
        let explored = &ran.only()["explored"];
        let command = explored["go_on"]["command"].as_str().unwrap();
        let twice = 2 * explored["states"].as_u64().unwrap();
        assert!(command.contains(&format!("--max-states {twice} ")), "it comes further: {command}");
        // Once more on its way.
        let again = explore(&[SMALL, "--max-states", "120", "--resume", &file(&path)]);
        assert_eq!(again.only()["explored"]["complete"], false, "{}", again.said);
        assert_eq!(found(&explore(&[SMALL, "--resume", &file(&path)])), whole, "{states} states");
    }
}

/// What is between two stops is in the checkpoint, too: passages that ended there are asked for again, and none more.
#[test]
fn search_with_places_between_two_stops_goes_on_to_the_same() {
    let name = "rendezvous/two-panics@vcpus=2";
    let directory = tempfile::tempdir().unwrap();
    let whole = found(&explore(&[name]));
    for states in ["450", "550", "650"] {
        let path = directory.path().join(format!("{states}.explore"));
        cut(name, states, &path);
        assert_eq!(found(&explore(&[name, "--resume", &file(&path)])), whole, "{states} states");
    }
}

#[test]
fn checkpoint_is_the_same_with_any_number_of_workers_and_any_number_goes_on_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let whole = found(&explore(&[SMALL]));
    let kept = ["1", "2", "3"].map(|workers| {
        let path = directory.path().join(format!("{workers}.explore"));
        let ran = explore(&[SMALL, "--max-states", "60", "--workers", workers, "--checkpoint", &file(&path)]);
        assert_eq!(ran.only()["explored"]["complete"], false, "{}", ran.said);
        let bytes = fs::read(&path).unwrap();
        let others = if workers == "1" { "3" } else { "1" };
        let more = explore(&[SMALL, "--workers", others, "--resume", &file(&path)]);
        assert_eq!(found(&more), whole, "{workers} workers, then {others}");
        bytes
    });
    assert!(kept.iter().all(|bytes| *bytes == kept[0]));
}

#[test]
fn search_under_tso_goes_on_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.explore");
    let name = "acceptance/lock-and-call-fixed@vcpus=2";
    explore(&[name, "--model", "tso", "--max-states", "1000", "--checkpoint", &file(&path)]);
    let whole = found(&explore(&[name, "--model", "tso"]));
    assert_eq!(found(&explore(&[name, "--model", "tso", "--resume", &file(&path)])), whole);
    let other = explore(&[name, "--resume", &file(&path)]);
    assert_eq!(other.code, Some(2), "{}", other.said);
    assert!(other.said.contains("of another search"), "{}", other.said);
}

/// `stallbench explore` of a search that takes some seconds, in that directory, once it has begun.
fn start(directory: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stallbench"));
    command.current_dir(directory).arg("explore").args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let descriptors = format!("/proc/{}/fd", child.id());
    wait_until("it has a machine", || {
        let links = fs::read_dir(&descriptors).into_iter().flatten().flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|to| to.to_string_lossy().contains("kvm-vcpu"))
    });
    child
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn interrupted_search_says_how_it_goes_on_and_does() {
    for workers in ["1", "3"] {
        let directory = tempfile::tempdir().unwrap();
        let child = start(directory.path(), &[LARGE, "--workers", workers]);
        signal(&child, Signal::INT);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{workers} workers: {said}");
        let name = "stallbench-mtrr_percpu-lock@vcpus=3.explore";
        assert!(said.contains("go on: stallbench explore") && said.contains(&format!("--resume '{name}'")), "{said}");
        let files = files(directory.path());
        assert_eq!(files, [directory.path().join(name)], "nothing lies there of which nobody is told");
        let path = file(&directory.path().join(name));
        let more = explore(&[LARGE, "--workers", workers, "--max-states", "40000", "--resume", &path]);
        assert_eq!(more.only()["explored"]["states"], 40001, "{}", more.said);
    }
}

#[test]
fn checkpoint_is_there_as_a_whole_or_not_at_all_whenever_its_writer_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.explore");
    let mut child = start(directory.path(), &[LARGE, "--max-states", "300000", "--checkpoint", &file(&path)]);
    wait_until("it writes", || !files(directory.path()).is_empty());
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    if path.exists() {
        let more = explore(&[LARGE, "--max-states", "300001", "--resume", &file(&path)]);
        assert_eq!(more.only()["explored"]["states"], 300_002, "{}", more.said);
    }
}

#[test]
fn checkpoint_on_a_full_disk_leaves_nothing_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let script = "ulimit -f 8; exec \"$@\"";
    let mut command = Command::new("bash");
    command.current_dir(directory.path()).args(["-c", script, "bash", env!("CARGO_BIN_EXE_stallbench"), "explore"]);
    let output =
        command.args(["mtrr/percpu-lock@vcpus=2", "--max-states", "2000", "--dump", "never"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(110), "{said}");
    assert!(said.contains("error: write checkpoint stallbench-mtrr_percpu-lock@vcpus=2.explore: "), "{said}");
    assert!(files(directory.path()).is_empty(), "{:?}", files(directory.path()));
}

#[test]
fn what_is_no_checkpoint_of_this_search_is_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.explore");
    cut(SMALL, "60", &path);
    let refused = |arguments: &[&str], why: &str| {
        let ran = explore(arguments);
        assert_eq!(ran.code, Some(2), "{}", ran.said);
        assert!(ran.said.contains(why) && ran.said.lines().count() == 1, "{}", ran.said);
    };
    refused(&["acceptance/lock-and-call-fixed@vcpus=2", "--resume", &file(&path)], "of another run");
    refused(&[SMALL, "--seed", "7", "--resume", &file(&path)], "of another guest");
    refused(&[SMALL, "mtrr/percpu-lock", "--resume", &file(&path)], "one run must be selected");
    refused(&[SMALL, "--checkpoint", &file(&path)], "is there already");
    refused(&[SMALL, "--resume", "/no/such"], "/no/such: No such file");
    refused(&[SMALL, "--resume", &file(directory.path())], "no regular file");
    let other = "of another search: sc, and this search has tso icr=buffer buffer=256";
    refused(&[SMALL, "--model", "tso", "--resume", &file(&path)], other);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    refused(&[SMALL, "--resume", &file(&path)], "edited or truncated");
}
