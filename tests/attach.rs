//! `run --control`, `debug --attach`, `dump --attach`: who looks into real runs while they last, and what becomes of the runs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

mod clock;
mod executable;
mod missing;
mod wait;

use missing::kvm_is_missing;
use serde_json::Value;
use tempfile::TempDir;
use wait::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process that is ended with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(piped.spawn().unwrap())
    }

    fn say(&mut self, text: &str) {
        self.0.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits until it ends: its exit code, and what it said.
    fn end(mut self) -> (Option<i32>, String, String) {
        drop(self.0.stdin.take());
        wait_until("the process ends", || self.0.try_wait().unwrap().is_some());
        let (mut out, mut error) = (String::new(), String::new());
        let _ = self.0.stdout.take().map(|mut stdout| stdout.read_to_string(&mut out));
        let _ = self.0.stderr.take().map(|mut stderr| stderr.read_to_string(&mut error));
        (self.0.wait().unwrap().code(), out, error)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory for sockets and dumps.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A run of some seconds that passes, whose socket is there.
    fn long_run(&self) -> Process {
        self.run(&clock::options(self.0.path()))
    }

    /// A run whose socket is there.
    fn run(&self, what: &[impl AsRef<OsStr>]) -> Process {
        let mut command = Command::new(BINARY);
        command.arg("run").args(what).arg("--control").arg(self.path("control"));
        let mut run = Process::start(command.current_dir(self.0.path()));
        wait_until("the socket is there", || {
            assert!(run.0.try_wait().unwrap().is_none(), "the run is over already");
            UnixStream::connect(self.path("control")).is_ok()
        });
        run
    }

    fn attach(&self, options: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["debug", "--attach"]).arg(self.path("control")).args(options).current_dir(self.0.path());
        command
    }

    /// A client that has the machine stand still, and reads more commands.
    fn holder(&self) -> (Process, BufReader<std::process::ChildStdout>) {
        let mut client = Process::start(&mut self.attach(&["--json"]));
        client.say("stop\n");
        let mut answers = BufReader::new(client.0.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(value(&line)["data"]["why"], "asked", "{line}");
        (client, answers)
    }
}

fn value(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_default()
}

fn assert_passed((code, out, error): (Option<i32>, String, String)) {
    assert!(code == Some(0) && out.contains("1 pass; all as expected"), "{code:?}\n{out}{error}");
}

#[test]
fn second_is_told_who_is_in_and_who_leaves_lets_the_run_go_on() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let run = bench.long_run();
    let (mut client, mut answers) = bench.holder();
    let second = bench.attach(&["-c", "vcpus"]).output().unwrap();
    let who = format!("process {} is in", client.0.id());
    assert_eq!(second.status.code(), Some(2));
    assert!(text(&second.stderr).contains(&who), "{}", text(&second.stderr));
    client.say("vcpus; mtrr; wiats\n");
    let mut answered = || {
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        value(&line)
    };
    assert_eq!(answered()["data"].as_array().unwrap().len(), 2);
    assert!(answered()["data"]["differences"].is_array() && answered()["error"].is_string());
    assert_eq!(client.end().0, Some(2), "a command was wrong");
    assert_passed(run.end());
    assert!(!bench.path("control").exists(), "the socket is gone");
}

#[test]
fn run_goes_on_however_its_client_is_lost() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let run = bench.long_run();
    let (mut client, _answers) = bench.holder();
    client.0.kill().unwrap();
    client.0.wait().unwrap();
    wait_until("the next is let in", || {
        let mut stream = UnixStream::connect(bench.path("control")).unwrap();
        let mut hello = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut hello).unwrap();
        let is_in = value(&hello)["stallbench"] == "control";
        // One that is lost in the middle of a line that had the machine stand still.
        let _ = stream.write_all(b"{\"line\":\"stop\"}\n{\"line\":\"vcp");
        is_in
    });
    assert_passed(run.end());
}

#[test]
fn client_of_a_run_that_is_killed_is_told_and_its_socket_is_replaced() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let mut run = bench.long_run();
    let (mut client, _answers) = bench.holder();
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    // It may know already.
    let _ = client.0.stdin.as_mut().unwrap().write_all(b"vcpus\n");
    let (code, _, error) = client.end();
    assert_eq!((code, error.as_str()), (Some(2), "error: the run is gone\n"));
    let dead = bench.attach(&["-c", "vcpus"]).output().unwrap();
    assert!(text(&dead.stderr).contains("nobody listens there; its run is over"), "{}", text(&dead.stderr));
    assert!(fs::metadata(bench.path("control")).unwrap().file_type().is_socket());
    assert_passed(bench.long_run().end());
}

#[test]
fn interrupt_stops_the_machine_and_is_not_the_end_of_who_asked() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let run = bench.long_run();
    let mut client = Process::start(&mut bench.attach(&["--json"]));
    client.say("about\nrun\n");
    let mut answers = BufReader::new(client.0.stdout.take().unwrap());
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    // Ctrl-C may come before `run` is followed, and is then to end what comes before it.
    line.clear();
    let pid = client.0.id().to_string();
    let reader = std::thread::spawn(move || {
        answers.read_line(&mut line).unwrap();
        line
    });
    wait_until("it is interrupted", || {
        assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
        std::thread::park_timeout(Duration::from_millis(50));
        reader.is_finished()
    });
    let line = reader.join().unwrap();
    assert_eq!(value(&line)["data"]["why"], "asked", "{line}");
    let _ = client.0.kill();
    assert_passed(run.end());
}

#[test]
fn dump_of_a_run_that_goes_on_is_one_as_any_other() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let run = bench.long_run();
    let dump = |file: &str| {
        let mut command = Command::new(BINARY);
        command.args(["dump", "--attach"]).arg(bench.0.path()).arg(file).current_dir(bench.0.path());
        command.output().unwrap()
    };
    let first = dump("it's a.core");
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let written = fs::read(bench.path("it's a.core")).unwrap();
    let again = dump("it's a.core");
    assert_eq!((again.status.code(), text(&again.stderr).lines().count()), (Some(2), 1), "{}", text(&again.stderr));
    assert_eq!(fs::read(bench.path("it's a.core")).unwrap(), written, "it is not overwritten");
    assert_passed(run.end());
    let mut debugger = Command::new(BINARY);
    let looked = debugger.args(["debug", "--json", "-c", "about; vcpus", "--dump"]).arg(bench.path("it's a.core"));
    let looked = looked.output().unwrap();
    let lines: Vec<Value> = text(&looked.stdout).lines().map(value).collect();
    assert!(lines[0]["data"]["run"].as_str().unwrap().starts_with("payload/clock@vcpus=2"), "{lines:?}");
    assert_eq!(lines[1]["data"].as_array().unwrap().len(), 2);
}

#[test]
fn client_stays_from_run_to_run_until_the_last_is_over() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let run = bench.run(&[clock::options(bench.0.path()), ["--repeat", "2"].map(str::to_owned).into()].concat());
    let mut client = Process::start(&mut bench.attach(&["--json"]));
    client.say(&"run\n".repeat(6));
    let (code, out, error) = client.end();
    let ends: Vec<Value> = out.lines().map(value).filter(|line| line["data"]["why"] == "end").collect();
    assert_eq!(ends.len(), 2, "{out}");
    assert!(ends.iter().all(|end| end["data"]["result"]["verdict"] == "pass"), "{out}");
    assert_eq!((code, error.as_str()), (Some(2), "error: the last run is over\n"), "{out}");
    let (code, out, error) = run.end();
    assert!(code == Some(0) && out.contains("2 pass; all as expected"), "{out}{error}");
}

#[test]
fn another_user_is_not_let_in() {
    if kvm_is_missing() {
        return;
    }
    if text(&Command::new("id").arg("-u").output().unwrap().stdout).trim() != "0" {
        eprintln!("SKIPPED: only root can be another user; nobody tries to come in");
        return;
    }
    let bench = Bench::new();
    let binary = bench.path("stallbench");
    fs::copy(BINARY, &binary).unwrap();
    fs::set_permissions(bench.0.path(), Permissions::from_mode(0o755)).unwrap();
    let run = bench.long_run();
    let come_in = || {
        let mut command = Command::new(&binary);
        command.args(["debug", "-c", "vcpus", "--attach"]).arg(bench.path("control")).current_dir(bench.0.path());
        command.uid(65534).gid(65534).output().unwrap()
    };
    let output = come_in();
    assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
    // Whatever the file says, the kernel says who it is.
    fs::set_permissions(bench.path("control"), Permissions::from_mode(0o666)).unwrap();
    let output = come_in();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(
        text(&output.stderr).contains("only user 0 may come in, and you are user 65534"),
        "{}",
        text(&output.stderr)
    );
    assert_passed(run.end());
}

/// What a run with that socket comes to before it begins, in one line.
fn refused(path: &Path, options: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    let output = command.args(["run", "mtrr/release", "--control"]).arg(path).args(options).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len(), error.lines().count()), (Some(2), 0, 1), "{error}");
    error
}

#[test]
fn socket_that_cannot_be_had_is_one_line_before_anything_runs() {
    let bench = Bench::new();
    let path = bench.path("control");
    assert!(refused(&path, &["--jobs", "2"]).contains("--control: there is one guest to look into"));
    fs::write(&path, "mine").unwrap();
    assert!(refused(&path, &[]).contains("is there, and no socket"));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    fs::remove_file(&path).unwrap();
    let _listener = UnixListener::bind(&path).unwrap();
    let who = format!("process {} listens there", std::process::id());
    assert!(refused(&path, &[]).contains(&who), "{}", refused(&path, &[]));
    if !kvm_is_missing() {
        assert!(refused(Path::new("/nonexistent/control"), &[]).contains("No such file or directory"));
    }
}

/// What somebody who cannot come in is told, in one line.
fn kept_out(arguments: &[&str]) -> String {
    let output: Output = Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len(), error.lines().count()), (Some(2), 0, 1), "{error}");
    error
}

#[test]
fn run_that_is_none_is_one_line() {
    let bench = Bench::new();
    let directory = bench.0.path().display().to_string();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (run, part) in
        [("/nonexistent", "No such file"), (&*directory, "/control: No such file"), (manifest, "no socket")]
    {
        for arguments in [&["debug", "--attach", run, "-c", "vcpus"][..], &["dump", "--attach", run]] {
            let error = kept_out(arguments);
            assert!(error.starts_with("error: --attach ") && error.contains(part), "{error}");
        }
    }
}

#[test]
fn interrupt_of_the_run_ends_it_though_somebody_holds_its_machine() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let run = bench.long_run();
    let (mut client, _answers) = bench.holder();
    assert!(Command::new("kill").args(["-s", "INT", &run.0.id().to_string()]).status().unwrap().success());
    assert_eq!(run.end().0, Some(130));
    let _ = client.0.stdin.as_mut().unwrap().write_all(b"vcpus\n");
    let (code, _, error) = client.end();
    assert_eq!((code, error.as_str()), (Some(2), "error: the last run is over\n"));
}
