//! Every command on every dump of the shelf, against what is stored of it in fixtures/dumps/golden.
//!
//! No KVM. `STALLBENCH_BLESS=1 cargo test -p stallbench-debug --test golden` stores what the commands say now; what that changes
//! is for a reader to look at.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use stallbench_debug::{Session, command, commands};
use stallbench_state::dump::Dump;

/// The lines that are followed on each dump; each command stands in one of them.
const LINES: &[&str] = &[
    "about",
    "vcpus",
    "waits",
    "waits --dot",
    "waits --svg",
    "verdict",
    "bt",
    "events",
    "events 1 5",
    "regs all",
    "control all",
    "sregs",
    "lapic all",
    "mtrr all",
    "msr all",
    "print boot",
    "print knobs",
    "print ghost",
    "print pause",
    "print faults",
    "print page 1",
    "print contexts 1",
    "print epitaph 1",
    "print log",
    "print --types call::record",
    "print record::CallSingle 0x4000c0",
    "print mark 0x4000c0",
    "print queue 0x402080",
    "mem $rsp 8 q",
    "mem phys:0x400000 32",
    "disas",
    "vcpu 1",
    "disas $rip 3",
    "vcpu 0",
    "paging $rsp",
    "paging 0xffff800000000000",
    "idt",
    "idt 0 0xfb",
    "gdt 1",
    "symbols interrupt",
    "search 0x4000e0",
    "diff '{shelf}/deadlock.core'",
    "diff",
    "dump /dev/null",
    "payload /dev/null",
    "help",
    "help waits",
    "help print",
    "wiats",
    "bt 9",
    "mem $rpi",
    "print contxets",
    "disas 0xffff800000000000",
    "forward",
    "back 2",
    "goto 0",
    "view",
    "run",
    "stop",
    "step",
    "until progress",
    "break $rip",
    "watch $rsp",
    "delete all",
    "release call_many/sent",
    "irq 0 0xfb",
    "nmi 0",
    "write $rax 0 --yes",
    "end",
    "quit",
];

/// Its data is as long as it is dull; the data of one gate is there too.
const LONG: &str = "idt";

fn shelf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/dumps")
}

fn dumps() -> Vec<PathBuf> {
    let files = fs::read_dir(shelf()).expect("the shelf is there").map(|entry| entry.expect("it can be read").path());
    let mut dumps: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "core")).collect();
    dumps.sort();
    dumps
}

fn session(dump: &Path) -> Session {
    let bytes = fs::read(dump).expect("it can be read");
    Session::new(Box::new(Dump::read(&bytes).unwrap_or_else(|error| panic!("{}: {error}", dump.display()))))
}

/// What a line leads to, as text and as a line of JSON.
fn followed(session: &mut Session, line: &str) -> (String, String) {
    let shelf = shelf();
    let shelf = shelf.to_str().expect("a path in words");
    let all = commands(&line.replace("{shelf}", shelf)).expect("lines are whole");
    match session.run(&all[0]) {
        Ok(answer) => (uncoloured(&answer.text), json!({"command": line, "data": answer.data}).to_string()),
        Err(error) => {
            let error = error.to_string();
            (format!("error: {error}\n"), json!({"command": line, "error": error}).to_string())
        }
    }
}

/// Without the sequences that make colours.
fn uncoloured(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once('m').map_or("", |(_, rest)| rest))
}

fn check(path: &Path, now: &str) -> Option<String> {
    if std::env::var_os("STALLBENCH_BLESS").is_some() {
        fs::create_dir_all(path.parent().expect("it lies in a directory")).expect("it can be made");
        fs::write(path, now).expect("it can be written");
        return None;
    }
    let stored = fs::read_to_string(path).unwrap_or_default();
    let differs = |(before, after): &(&str, &str)| before != after;
    let pairs = stored.lines().chain(std::iter::repeat("(its end)")).zip(now.lines().chain(["(its end)"]));
    let (before, after) =
        pairs.into_iter().find(differs).or((stored.len() != now.len()).then_some(("more", "its end")))?;
    Some(format!("{}:\n  stored {before}\n  now    {after}", path.display()))
}

#[test]
fn every_command_says_of_every_dump_what_is_stored() {
    let mut wrong = Vec::new();
    for dump in dumps() {
        let (mut text, mut data) = (String::new(), String::new());
        let mut session = session(&dump);
        for line in LINES {
            let (words, json) = followed(&mut session, line);
            let _ = write!(text, "> {line}\n{words}\n");
            if *line != LONG {
                let _ = writeln!(data, "{json}");
            }
        }
        let name = dump.file_stem().expect("it has a name").to_owned();
        let golden = shelf().join("golden").join(name);
        wrong.extend(check(&golden.with_extension("txt"), &text));
        wrong.extend(check(&golden.with_extension("jsonl"), &data));
    }
    assert!(wrong.is_empty(), "STALLBENCH_BLESS=1 stores what is now:\n{}", wrong.join("\n"));
}

#[test]
fn lines_have_every_command_in_them() {
    for command in command::ALL {
        assert!(LINES.iter().any(|line| line.split(' ').next() == Some(command.name)), "{}", command.name);
    }
    assert!(dumps().len() >= 10, "one of each kind of verdict");
}
