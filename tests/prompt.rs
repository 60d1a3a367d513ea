//! The prompt of `stallbench debug` at a real terminal: editing, Ctrl-C, questions.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod missing;
mod terminal;

use missing::kvm_is_missing;
use terminal::Terminal;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
const DEADLOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/dumps/deadlock.core");
/// Ctrl-C and Ctrl-D.
const INTERRUPT: &str = "\u{3}";
const END: &str = "\u{4}";

/// A debugger at a prompt.
fn debug(arguments: &[&str]) -> Terminal {
    let all: Vec<_> = ["debug"].iter().chain(arguments).copied().collect();
    let mut terminal = Terminal::start(BINARY, &all, (200, 50));
    terminal.shows("vcpu0> ");
    terminal
}

#[test]
fn words_are_completed_and_a_line_can_be_cleared() {
    let mut terminal = debug(&["--dump", DEADLOCK]);
    terminal.types("verd\t");
    terminal.shows("verdict");
    terminal.types(INTERRUPT);
    terminal.shows("vcpu0> ");
    terminal.types("vcpu 1\r");
    terminal.shows("vcpu1> ");
    terminal.types("step\r");
    terminal.shows("error: that needs a machine that can run on; this is a dump");
    // Before the prompt is there the terminal takes it for the end of a line.
    terminal.shows("vcpu1> ");
    terminal.types(END);
    let (code, rest) = terminal.ends();
    assert_eq!(code, Some(0), "{rest}");
}

#[test]
fn machine_that_runs_is_stopped_by_an_interrupt_and_looked_at() {
    if kvm_is_missing() {
        return;
    }
    let mut terminal = debug(&["mtrr/repeated@vcpus=2", "--set", "rounds=100000", "--budget", "600000"]);
    terminal.types("run\r");
    terminal.types_until(INTERRUPT, "the machine stands still");
    terminal.shows("> ");
    terminal.types("bt 0\r");
    terminal.shows("#0  0x");
    terminal.types("run 50\r");
    terminal.shows("the machine stands still");
    terminal.types("quit\r");
    let (code, rest) = terminal.ends();
    assert_eq!(code, Some(0), "{rest}");
}

#[test]
fn guest_is_changed_only_after_a_yes() {
    if kvm_is_missing() {
        return;
    }
    let mut terminal = debug(&["mtrr/release@vcpus=2"]);
    for (answer, says) in
        [("n\r", "error: nothing was done"), (INTERRUPT, "error: nothing was done"), ("y\r", "vcpu0 rax: ")]
    {
        terminal.types("write $rax 0x1234\r");
        terminal.shows("vcpu0: rax from ");
        terminal.shows("[y/N] ");
        terminal.types(answer);
        terminal.shows(says);
        terminal.shows("vcpu0> ");
    }
    terminal.types("regs 0\r");
    terminal.shows("0x0000000000001234");
    terminal.types("quit\r");
    assert_eq!(terminal.ends().0, Some(0));
}
