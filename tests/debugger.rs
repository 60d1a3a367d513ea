//! `stallbench debug`: the walk of docs/debugger.md, followed word by word on a real stall, and what is said to requests that are wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
const DOCUMENT: &str = include_str!("../docs/debugger.md");
const DEADLOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/dumps/deadlock.core");

fn debug(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("debug").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A debugger that needs no input may be gone.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A line without what differs from run to run: numbers of more than a digit, times, and white space.
fn shape(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let of = |(at, word): (usize, &&str)| {
        let is_time = words.get(at + 1) == Some(&"ms");
        if is_time { "#".to_owned() } else { without_numbers(word) }
    };
    words.iter().enumerate().map(of).collect::<Vec<_>>().join(" ")
}

fn without_numbers(word: &str) -> String {
    let mut rest = word;
    let mut shape = String::new();
    while let Some(first) = rest.chars().next() {
        let digits = rest.strip_prefix("0x").map_or(0, |hex| 2 + length(hex, |c| c.is_ascii_hexdigit()));
        let digits = digits.max(length(rest, |c| c.is_ascii_digit()));
        let taken = if digits == 0 { first.len_utf8() } else { digits };
        shape.push_str(if digits > 1 { "#" } else { &rest[..taken] });
        rest = &rest[taken..];
    }
    shape
}

fn length(text: &str, is: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is(c)).unwrap_or(text.len())
}

/// The commands of the walk, each with the lines that it is said to print.
fn walk() -> Vec<(&'static str, Vec<&'static str>)> {
    let blocks = DOCUMENT.split("```console\n$ ").skip(1);
    let block = |block: &'static str| {
        let mut lines = block.split("\n```").next().unwrap().lines();
        (lines.next().unwrap(), lines.collect())
    };
    blocks.map(block).collect()
}

fn follow(directory: &Path, command: &str) -> Output {
    let own = Path::new(BINARY).parent().unwrap();
    let path = format!("{}:{}", own.display(), std::env::var("PATH").unwrap());
    Command::new("sh").args(["-c", command]).current_dir(directory).env("PATH", path).output().unwrap()
}

#[test]
fn walk_of_the_document_prints_what_the_document_says() {
    if !Path::new("/dev/kvm").exists() {
        assert!(std::env::var_os("CI").is_none(), "there is no /dev/kvm");
        eprintln!("SKIPPED: there is no /dev/kvm; the walk is not followed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    std::os::unix::fs::symlink(fixtures, directory.path().join("fixtures")).unwrap();
    assert!(walk().len() >= 10, "the walk has its steps");
    for (command, lines) in walk() {
        let output = follow(directory.path(), command);
        let printed = text(&output.stdout);
        assert!(output.status.success(), "{command}: {printed}{}", text(&output.stderr));
        let shapes: Vec<_> = printed.lines().map(shape).collect();
        for line in lines {
            assert!(shapes.contains(&shape(line)), "{command}\n  does not print: {line}\n{printed}");
        }
    }
}

#[test]
fn document_tells_of_every_command() {
    let help = debug(&["--dump", DEADLOCK, "--json", "-c", "help"], "");
    let help: serde_json::Value = serde_json::from_slice(&help.stdout).unwrap();
    for command in help["data"].as_array().unwrap() {
        let of = |key: &str| command[key].as_str().unwrap().replace('|', "\\|");
        let row = format!("| `{}` | {} |", of("usage"), of("summary"));
        assert!(DOCUMENT.contains(&row), "docs/debugger.md lacks: {row}");
    }
}

#[test]
fn commands_come_from_the_command_line_or_from_a_pipe() {
    let given = debug(&["--dump", DEADLOCK, "-c", "vcpu 1; vcpu"], "");
    assert_eq!((given.status.code(), text(&given.stdout)), (Some(0), "vcpu1\nvcpu1\n".into()));
    let piped = debug(&["--dump", DEADLOCK], "vcpu 1\n\n# nothing\nvcpu; quit; vcpu 2\nvcpu 3\n");
    assert_eq!((piped.status.code(), text(&piped.stdout)), (Some(0), "vcpu1\nvcpu1\n".into()));
}

#[test]
fn wrong_command_costs_no_other_and_is_told_by_the_exit_code() {
    let output = debug(&["--dump", DEADLOCK], "wiats\nvcpu 9\nmem \"1\nvcpu 1\n");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), "vcpu1\n".into()));
    let errors = text(&output.stderr);
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), 3, "{errors}");
    assert_eq!(lines[0], "error: no command wiats; did you mean waits?; `help` lists them");
    assert!(lines.iter().all(|line| line.starts_with("error: ")), "{errors}");
    let json = debug(&["--dump", DEADLOCK, "--json", "-c", "nonsense; vcpu"], "");
    let lines: Vec<serde_json::Value> =
        text(&json.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((json.status.code(), lines.len()), (Some(2), 2));
    assert!(lines[0]["error"].is_string() && lines[1]["data"]["vcpu"] == 0);
}

#[test]
fn file_that_is_no_dump_is_one_line() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (file, part) in [
        ("/nonexistent", "No such file"),
        (manifest, "failed to"),
        ("/dev/null", "not a regular file"),
        (BINARY, "failed to"),
    ] {
        let output = debug(&["--dump", file, "-c", "vcpus"], "");
        let line = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len(), line.lines().count()), (Some(2), 0, 1), "{line}");
        assert!(line.starts_with(&format!("error: --dump {file}: ")) && line.contains(part), "{line}");
    }
}

#[test]
fn line_without_an_end_is_refused_before_it_fills_memory() {
    let output = debug(&["--dump", DEADLOCK], &"x".repeat(1 << 17));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("a line is longer than 65536 bytes"));
}
