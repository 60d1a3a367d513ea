//! The live view and the prompt of `stallbench debug` at a real terminal, on dumps, scenarios and runs of other processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

mod clock;
mod executable;
mod missing;
mod terminal;
mod wait;

use missing::kvm_is_missing;
use terminal::Terminal;
use wait::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
const DEADLOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/dumps/deadlock.core");
/// What gives a terminal back: the other screen is left, the cursor shown.
const GIVEN_BACK: &str = "\u{1b}[?1049l\u{1b}[?25h";
/// What comes before a terminal of another size is drawn on.
const CLEARED: &str = "\u{1b}[2J";
const ROOMY: (u16, u16) = (140, 24);

fn view(arguments: &[&str]) -> Terminal {
    let all: Vec<_> = ["debug", "--tui"].iter().chain(arguments).copied().collect();
    Terminal::start(BINARY, &all, ROOMY)
}

/// Has a terminal of one cell and then the same as before drawn on: what is drawn over something else is not there as a whole.
fn anew(terminal: &mut Terminal) {
    for size in [(1, 1), ROOMY] {
        terminal.resize(size);
        terminal.shows(CLEARED);
    }
}

#[test]
fn view_gives_the_terminal_back_and_knows_that_a_dump_does_not_run() {
    let mut terminal = view(&["--dump", DEADLOCK]);
    terminal.shows("vcpu0 at ");
    terminal.types(" ");
    terminal.shows("which is over");
    terminal.types("q");
    terminal.shows(GIVEN_BACK);
    assert_eq!(terminal.ends(), (Some(0), String::new()));
}

#[test]
fn view_without_a_terminal_is_refused() {
    let output =
        Command::new(BINARY).args(["debug", "--tui", "--dump", DEADLOCK]).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len(), error.lines().count()), (Some(2), 0, 1), "{error}");
    assert!(error.contains("--tui: standard input and output are not a terminal"), "{error}");
}

/// The process of a view on a dump at a terminal of script(1), in whose hands it is.
fn script() -> (Child, String) {
    let shell = format!("echo process $$; exec '{BINARY}' debug --dump '{DEADLOCK}' --tui");
    let mut script = Command::new("script");
    script.args(["-qec", &shell, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().unwrap();
    let mut output = BufReader::new(script.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let mut shown = Vec::new();
    // The cursor is hidden behind each frame.
    while !shown.ends_with(b"[?25l") {
        assert!(output.read_until(b'l', &mut shown).unwrap() > 0);
    }
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    (script, line.trim().trim_start_matches("process ").to_owned())
}

#[test]
fn view_ends_by_a_signal_and_with_its_terminal() {
    let (mut ended, pid) = script();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    assert_eq!(ended.wait().unwrap().code(), Some(130));
    let (mut gone, pid) = script();
    gone.kill().unwrap();
    gone.wait().unwrap();
    wait_until("the view ends", || !Path::new("/proc").join(&pid).exists());
}

#[test]
fn view_of_a_scenario_goes_from_its_start_to_its_verdict() {
    if kvm_is_missing() {
        return;
    }
    let mut terminal = view(&["mtrr/stack-broadcast@vcpus=4"]);
    terminal.shows("(start)");
    terminal.types(" ");
    terminal.shows("stall deadlock, as expected");
    anew(&mut terminal);
    terminal.shows("(end)");
    terminal.shows("waits in ipi_handler B3 for gate");
    terminal.types("q");
    terminal.shows(GIVEN_BACK);
    assert_eq!(terminal.ends(), (Some(0), String::new()));
}

/// A run of some seconds with its socket.
fn run(directory: &Path) -> Child {
    let mut command = Command::new(BINARY);
    let socket = directory.join("control");
    command.arg("run").args(clock::options(directory)).arg("--control").arg(&socket).stdout(Stdio::null());
    let run = command.spawn().unwrap();
    wait_until("the socket is there", || UnixStream::connect(&socket).is_ok());
    run
}

#[test]
fn view_of_another_process_stops_its_machine_and_leaves_it_running() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut run = run(directory.path());
    let mut terminal = view(&["--attach", directory.path().to_str().unwrap()]);
    terminal.shows("running");
    terminal.types(" ");
    terminal.shows("asked");
    terminal.types("q");
    terminal.shows(GIVEN_BACK);
    assert_eq!(terminal.ends().0, Some(0));
    assert_eq!(run.wait().unwrap().code(), Some(0));
}

#[test]
fn prompt_of_another_process_completes_words_and_is_interrupted() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut run = run(directory.path());
    let mut terminal = Terminal::start(BINARY, &["debug", "--attach", directory.path().to_str().unwrap()], ROOMY);
    terminal.shows("vcpu0> ");
    terminal.types("verd\t");
    terminal.shows("verdict");
    terminal.types("\u{3}");
    terminal.shows("vcpu0> ");
    terminal.types("run\r");
    terminal.types_until("\u{3}", "the machine stands still");
    terminal.shows("vcpu");
    terminal.types("write $r15 7\r");
    terminal.shows("write $r15 7? [y/N] ");
    terminal.types("n\r");
    terminal.shows("error: nothing was done");
    terminal.types("write $r15 7; write $r15 8 --yes\r");
    terminal.shows("write $r15 7? [y/N] ");
    terminal.types("y\r");
    terminal.shows("r15: ");
    terminal.shows("0x7 -> 0x8");
    terminal.types_until("quit\r", "quit");
    assert_eq!(terminal.ends().0, Some(0));
    assert_eq!(run.wait().unwrap().code(), Some(0));
}
