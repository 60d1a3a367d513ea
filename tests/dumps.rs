//! Dumps through the binary and through gdb: when one is written, where it lies, what is in it, and what becomes of damaged ones. Those
//! of fixtures/dumps need no KVM.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod executable;
mod gdb;
mod missing;
mod wait;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use executable::executable;
use gdb::gdb_is_missing;
use missing::kvm_is_missing;
use serde_json::Value;
use stallbench_state::dump::Dump;
use stallbench_state::memory::Memory;
use stallbench_state::program::Payload;
use tempfile::TempDir;
use wait::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
const SHELF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/dumps");
/// A stall as expected, and a pass that is none.
const DEADLOCK: &str = "mtrr/stack-broadcast@vcpus=4";
const SMALLEST: &str = "call/smallest@vcpus=2";

/// The dumps of the shelf, with the verdict and the kind of each.
const KINDS: [(&str, &str, Option<&str>); 12] = [
    ("absent-member", "stall", Some("absent-member")),
    ("breach", "breach", Some("cache-off")),
    ("budget", "budget", None),
    ("deadlock", "stall", Some("deadlock")),
    ("guest-fault", "guest-fault", None),
    ("inconsistent", "inconsistent", None),
    ("lifetime", "stall", Some("lifetime")),
    ("livelock", "stall", Some("livelock")),
    ("lost-interrupt", "stall", Some("lost-interrupt")),
    ("not-accepting", "stall", Some("not-accepting")),
    ("pass", "pass", None),
    ("starved", "starved", None),
];

fn shelved(name: &str) -> PathBuf {
    Path::new(SHELF).join(format!("{name}.core"))
}

fn read(path: &Path) -> Dump {
    Dump::read(&fs::read(path).unwrap()).unwrap()
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("run").args(arguments).current_dir(directory).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What lies in a directory, by name.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn shelf_has_a_dump_of_each_kind_that_says_what_it_is_of() {
    let mut found = names(Path::new(SHELF));
    found.retain(|name| name.ends_with(".core"));
    assert_eq!(found, KINDS.map(|(name, ..)| format!("{name}.core")));
    for (name, verdict, kind) in KINDS {
        let dump = read(&shelved(name));
        let result = dump.about.result.as_ref().unwrap();
        assert_eq!((result["verdict"].as_str(), result["kind"].as_str()), (Some(verdict), kind), "{name}");
        assert_eq!(result["vcpus"], dump.machine.vcpus.len(), "{name}");
        assert!(dump.about.command.starts_with("stallbench run ") && dump.about.host["kernel"].is_string(), "{name}");
        assert_eq!(matches!(Payload::parse(dump.payload), Ok(Payload::Plain(_))), name == "livelock", "{name}");
    }
}

#[test]
fn shelf_holds_all_of_each_vcpu_and_the_memory_that_it_runs_on() {
    for (name, ..) in KINDS {
        let dump = read(&shelved(name));
        for vcpu in &dump.machine.vcpus {
            assert!(vcpu.apic.is_ok() && vcpu.events.is_ok() && vcpu.mp_state.is_ok(), "{name}");
            let msrs = vcpu.msrs.as_ref().unwrap().as_ref().unwrap();
            let pat = msrs.iter().find(|(index, _)| *index == 0x277).unwrap().1;
            assert_eq!(vcpu.mtrr.as_ref().unwrap().as_ref().unwrap().pat, pat, "{name}");
            let (registers, system) = (vcpu.registers.as_ref().unwrap(), vcpu.system.as_ref().unwrap());
            // Guests map themselves to their own addresses; one that never came up has no page tables yet.
            let is_up = system.cr3 != 0;
            assert!(!is_up || dump.memory.read_u32(registers.rip).is_some_and(|code| code != 0), "{name}");
        }
    }
}

#[test]
fn shelf_is_written_as_it_is_read() {
    for (name, ..) in KINDS {
        let dump = read(&shelved(name));
        let mut again = Vec::new();
        dump.write(&mut again).unwrap();
        // The same but for how hard the payload is compressed, which for the built-in one is done when it is built.
        assert!(Dump::read(&again).unwrap() == dump, "{name}");
    }
}

#[test]
fn prefixes_and_flipped_bits_of_a_real_dump_are_refused() {
    let mut bytes = fs::read(shelved("livelock")).unwrap();
    for end in (0..bytes.len()).step_by(97).chain(bytes.len() - 9..bytes.len()) {
        let error = Dump::read(&bytes[..end]).unwrap_err().to_string();
        assert!(!error.contains('\n') && (end < 64 || error.contains("cut short")), "{end}: {error}");
    }
    for at in (0..bytes.len()).step_by(89).chain(0..128) {
        bytes[at] ^= 1 << (at % 8);
        assert!(Dump::read(&bytes).is_err(), "{at:#x}");
        bytes[at] ^= 1 << (at % 8);
    }
}

/// What gdb says to these commands about a dump, with the dump's own payload as the program.
fn gdb(dump: &Path, commands: &[&str]) -> String {
    let directory = TempDir::new().unwrap();
    let payload = directory.path().join("payload.elf");
    fs::write(&payload, read(dump).payload).unwrap();
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx"]).args(commands.iter().flat_map(|command| ["-ex", command])).arg(payload).arg(dump);
    let output = gdb.stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said).unwrap()
}

#[test]
fn gdb_sees_a_thread_a_vcpu_with_symbols_lines_and_memory() {
    if gdb_is_missing() {
        return;
    }
    let commands = ["info threads", "thread 1", "bt", "thread 4", "bt", "x/2xw 0x400064", "x/gx 0xb00000", "p/x $cs"];
    let said = gdb(&shelved("deadlock"), &commands);
    for part in [
        "LWP 1",
        "LWP 4",
        "wait_for_completion",
        "guest/payload/src/call/kmalloc.rs:",
        "ipi_handler",
        "0x400064:\t0x00000000",
        "0xb00000:\t0x0000000000000000",
        "$1 = 0x8",
    ] {
        assert!(said.contains(part), "'{part}' is not in:\n{said}");
    }
    for part in ["LWP 5", "Cannot access memory", "may not match", "Unexpected size"] {
        assert!(!said.contains(part), "'{part}' is in:\n{said}");
    }
}

#[test]
fn gdb_sees_a_plain_guest_too() {
    if gdb_is_missing() {
        return;
    }
    let said = gdb(&shelved("livelock"), &["info threads", "x/i $pc", "x/wx &token", "info symbol $pc"]);
    for part in ["LWP 1", "LWP 2", "token.s:", "<token>:\t0x0000000", " in section .text"] {
        assert!(said.contains(part), "'{part}' is not in:\n{said}");
    }
    assert!(!said.contains("Cannot access memory"), "{said}");
}

#[test]
fn dump_is_written_where_a_run_is_not_as_expected() {
    if kvm_is_missing() {
        return;
    }
    let directory = TempDir::new().unwrap();
    assert_eq!(run(directory.path(), &[DEADLOCK, SMALLEST]).status.code(), Some(0));
    assert_eq!(names(directory.path()), [""; 0], "all is as expected");
    let unexpected = [DEADLOCK, "--set", "alloc=ok", "--report", "jsonl=-"];
    assert_eq!(run(directory.path(), &[&unexpected[..], &["--dump", "never"]].concat()).status.code(), Some(100));
    assert_eq!(names(directory.path()), [""; 0], "none is wanted");
    let output = run(directory.path(), &unexpected);
    assert_eq!(output.status.code(), Some(100), "{}", text(&output.stderr));
    let name = "stallbench-mtrr_stack-broadcast@vcpus=4.core";
    assert_eq!(names(directory.path()), [name]);
    let line = text(&output.stdout).lines().nth(1).unwrap();
    assert_eq!(serde_json::from_str::<Value>(line).unwrap()["dump"], name);
    let about = read(&directory.path().join(name)).about;
    assert_eq!(about.run, DEADLOCK);
    assert!(about.command.ends_with("--set alloc=ok --seed 0"), "{}", about.command);
    assert_eq!(about.result.unwrap()["verdict"], "pass");
}

#[test]
fn dump_lies_in_the_directory_of_its_run_and_the_report_names_it() {
    if kvm_is_missing() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let output = run(directory.path(), &[DEADLOCK, SMALLEST, "--dump", "always", "--out", "out", "--repeat", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let paths = [DEADLOCK, SMALLEST].into_iter().flat_map(|run| [run.to_owned(), format!("{run}#2")]);
    for path in paths.map(|run| format!("out/{run}/dump.core")) {
        assert!(text(&output.stdout).contains(&format!("\n  dump: {path}\n")), "{path}: {}", text(&output.stdout));
        let dump = read(&directory.path().join(&path));
        assert!(path.starts_with(&format!("out/{}", dump.about.run)), "{path}");
    }
    assert_eq!(names(directory.path()), ["out"]);
}

#[test]
fn dump_that_cannot_be_written_is_one_line_and_costs_no_verdict() {
    if kvm_is_missing() {
        return;
    }
    let directory = TempDir::new().unwrap();
    // Files of at most 100 KiB, as on a disk that is full.
    let limited = format!("trap '' XFSZ; ulimit -f 100; exec '{BINARY}' run '{DEADLOCK}' --dump always");
    let mut command = Command::new("bash");
    let output = command.args(["-c", &limited]).current_dir(directory.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(110));
    assert!(text(&output.stdout).contains("STALL deadlock"), "{}", text(&output.stdout));
    let said = text(&output.stderr);
    assert!(said.starts_with("error: write dump stallbench-mtrr_stack-broadcast@vcpus=4.core: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(names(directory.path()), [""; 0], "nothing stays of it");
}

/// A guest that reads the clock for ever: rdtsc, and a jump back to it.
const CLOCK_READER: &[u8] = &[0x0f, 0x31, 0xeb, 0xfc];

/// Every dump of a running machine below a directory, complete.
fn of_running(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("dump-running-") && name.ends_with(".core")
    };
    directories.iter().flat_map(|path| of_running(path)).chain(files.into_iter().filter(is_one)).collect()
}

fn signal(process: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &process.id().to_string()]).status().unwrap().success());
}

#[test]
fn quit_signal_writes_a_dump_of_the_machine_that_runs_and_ends_nothing() {
    if kvm_is_missing() {
        return;
    }
    for arguments in
        [&["--payload", "clock.elf", "--vcpus", "2", "--budget", "600000"][..], &[SMALLEST, "--repeat", "900000"]]
    {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("clock.elf"), executable(CLOCK_READER, 0)).unwrap();
        let mut command = Command::new(BINARY);
        command.arg("run").args(arguments).args(["--dump", "never", "--out", "out"]);
        let command =
            command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let out = directory.path().join("out");
        wait_until("a run begins", || ["call", "payload"].iter().any(|subject| out.join(subject).is_dir()));
        wait_until("a dump", || {
            signal(&process, "-QUIT");
            !of_running(&out).is_empty()
        });
        let dump = read(&of_running(&out)[0]);
        assert!(dump.about.result.is_none() && dump.machine.vcpus.len() == 2, "{dump:?}");
        assert_eq!(process.try_wait().unwrap(), None, "it runs on");
        signal(&process, "-INT");
        assert_eq!(process.wait().unwrap().code(), Some(130));
    }
}

#[test]
fn choice_that_is_none_is_refused() {
    let output = run(Path::new("."), &["--dump", "sometimes", SMALLEST]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("expected never, unexpected or always"), "{}", text(&output.stderr));
}
