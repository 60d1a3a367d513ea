//! Plain guests through the binary: what they come to, what is refused, and the example that docs/plain-guests.md shows.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod documented;
mod executable;
mod gdb;
mod missing;
mod wait;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use documented::{documented_keys, undocumented};
use executable::executable;
use gdb::gdb_is_missing;
use missing::kvm_is_missing;
use serde_json::Value;
use tempfile::TempDir;
use wait::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_stallbench");
const DOCUMENT: &str = include_str!("../docs/plain-guests.md");

/// Guests as bytes.
mod code {
    /// xor eax, eax; out 0xf4, al.
    pub(super) const PASS: &[u8] = &[0x31, 0xc0, 0xe6, 0xf4];
    /// mov al, 7; out 0xf4, al.
    pub(super) const FAIL: &[u8] = &[0xb0, 7, 0xe6, 0xf4];
    /// cli; hlt; jmp back to the first.
    pub(super) const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
    /// sti; hlt; jmp back to the second.
    pub(super) const IDLE: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfd];
    /// nop; ud2.
    pub(super) const UD2: &[u8] = &[0x90, 0x0f, 0x0b];
    /// rdtsc; jmp back to it.
    pub(super) const CLOCK: &[u8] = &[0x0f, 0x31, 0xeb, 0xfc];
    /// test edi, edi; jz over the next; cli; hlt; jmp back to it: all but vCPU 0 stay here.
    pub(super) const OTHERS_HALT: &[u8] = &[0x85, 0xff, 0x74, 0x04, 0xfa, 0xf4, 0xeb, 0xfc];
    /// The local APIC enabled, an INIT to itself, a spin.
    pub(super) const INIT_SELF: &[u8] = &[
        0xbf, 0, 0, 0xe0, 0xfe, 0xc7, 0x87, 0xf0, 0, 0, 0, 0xff, 1, 0, 0, 0xc7, 0x87, 0, 3, 0, 0, 0, 0x45, 0, 0, 0xeb,
        0xfe,
    ];
    /// mov eax, 0xdead000; mov cr3, rax.
    pub(super) const NO_TABLES: &[u8] = &[0xb8, 0, 0xd0, 0xea, 0x0d, 0x0f, 0x22, 0xd8, 0xeb, 0xfe];
    /// mov edi, 0x1000; mov ecx, 0x6000; xor eax, eax; rep stosb: over the tables that it runs on.
    pub(super) const OVER_TABLES: &[u8] =
        &[0xbf, 0, 0x10, 0, 0, 0xb9, 0, 0x60, 0, 0, 0x31, 0xc0, 0xf3, 0xaa, 0xeb, 0xfe];
    /// mov eax, 0x80000000; jmp rax: where nothing is.
    pub(super) const NOWHERE: &[u8] = &[0xb8, 0, 0, 0, 0x80, 0xff, 0xe0];
    /// mov rcx, -1; mov edx, 0x3f8; mov esi, 0x100000; rep outsb.
    pub(super) const FLOOD: &[u8] =
        &[0x48, 0xc7, 0xc1, 0xff, 0xff, 0xff, 0xff, 0xba, 0xf8, 3, 0, 0, 0xbe, 0, 0, 0x10, 0, 0xf3, 0x6e];
    /// mov edx, 0x3f8; mov al, 'h'; out dx, al; mov al, 'i'; out dx, al; mov al, 27; out dx, al.
    pub(super) const HI: &[u8] = &[0xba, 0xf8, 3, 0, 0, 0xb0, b'h', 0xee, 0xb0, b'i', 0xee, 0xb0, 27, 0xee];
}

/// The bytes of an ELF file, each of its fields open to change.
#[derive(Clone)]
struct Elf(Vec<u8>);

impl Elf {
    fn new(code: &[&[u8]]) -> Self {
        Self(executable(&code.concat(), 0))
    }

    /// With other bytes at an offset: those of the file header, or from 64 on of the program header.
    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn file(&self, elf: &Elf) -> PathBuf {
        let path = self.directory.path().join("guest.elf");
        fs::write(&path, &elf.0).unwrap();
        path
    }

    fn command(&self, elf: &Elf, options: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("run").arg("--payload").arg(self.file(elf)).args(options).stdin(Stdio::null());
        command.current_dir(self.directory.path());
        command
    }

    fn run(&self, elf: &Elf, options: &[&str]) -> Output {
        self.command(elf, options).output().unwrap()
    }

    /// The result of a run, and its exit code.
    fn result(&self, elf: &Elf, options: &[&str]) -> (Value, i32) {
        result(&self.run(elf, &[options, &["--report", "jsonl=-"]].concat()))
    }

    /// A wrong request: exit 2, and a first line that says all of `parts`.
    fn refused(&self, elf: &Elf, options: &[&str], parts: &[&str]) {
        let output = self.run(elf, options);
        let said = text(&output.stderr);
        let line = said.lines().next().unwrap_or_default();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        assert!(output.stdout.is_empty() && line.starts_with("error: "), "{options:?}: {said}");
        for part in parts {
            assert!(line.contains(part), "{options:?}: '{part}' is not in: {line}");
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn result(output: &Output) -> (Value, i32) {
    let lines = text(&output.stdout).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let result = lines.into_iter().find(|line| line["type"] == "result");
    let result = result.unwrap_or_else(|| panic!("no result: {}", text(&output.stderr)));
    assert_eq!(undocumented(&result, "", &documented_keys("result")), Vec::<String>::new(), "{result}");
    (result, output.status.code().unwrap())
}

#[test]
fn status_at_the_exit_port_decides() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let (passed, code) = bench.result(&Elf::new(&[code::PASS]), &[]);
    assert_eq!((&passed["scenario"], &passed["verdict"], code), (&"payload/guest@vcpus=1".into(), &"pass".into(), 0));
    let (failed, code) = bench.result(&Elf::new(&[code::FAIL]), &[]);
    assert_eq!((&failed["verdict"], code), (&"guest-fault".into(), 100));
    assert_eq!(failed["text"], "ended with status 7");
    let (_, code) = bench.result(&Elf::new(&[code::FAIL]), &["--expect", "guest-fault"]);
    assert_eq!(code, 0);
}

#[test]
fn triple_fault_is_a_fault_unless_it_is_the_end_that_was_asked_for() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let (died, code) = bench.result(&Elf::new(&[code::UD2]), &[]);
    assert_eq!((&died["verdict"], &died["text"], code), (&"guest-fault".into(), &"triple fault".into(), 100));
    let (ended, code) = bench.result(&Elf::new(&[code::UD2]), &["--end", "shutdown"]);
    assert_eq!((&ended["verdict"], code), (&"pass".into(), 0));
}

#[test]
fn vcpus_that_halt_for_good_pass_only_where_that_was_asked_for() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    for options in [&["--vcpus", "1,3"][..], &["--vcpus", "3", "--aps", "started"]] {
        let (ended, code) = bench.result(&Elf::new(&[code::HALT]), &[options, &["--end", "halted"]].concat());
        assert_eq!((&ended["verdict"], code), (&"pass".into(), 0), "{options:?}");
    }
    for (guest, options) in
        [(code::HALT, &["--budget", "300"][..]), (code::IDLE, &["--budget", "300", "--end", "halted"])]
    {
        let (other, code) = bench.result(&Elf::new(&[guest]), options);
        assert!(other["verdict"] != "pass" && code == 100, "{other}");
    }
}

#[test]
fn console_is_shown_and_cannot_drive_the_terminal() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let guest = Elf::new(&[code::OTHERS_HALT, code::HI, code::PASS]);
    let (passed, _) = bench.result(&guest, &["--vcpus", "2", "--aps", "started"]);
    assert_eq!(passed["console"]["text"], "hi\u{1b}");
    let human = bench.run(&guest, &[]);
    assert!(text(&human.stdout).contains("  console hi"), "{}", text(&human.stdout));
    assert!(!text(&human.stdout).contains('\u{1b}'));
}

#[test]
fn guest_that_reads_the_clock_for_ever_ends_with_its_budget_and_what_each_vcpu_does() {
    if kvm_is_missing() {
        return;
    }
    let (ended, code) = Bench::new().result(&Elf::new(&[code::CLOCK]), &["--budget", "300", "--expect", "budget"]);
    assert_eq!((&ended["verdict"], code), (&"budget".into(), 0), "{ended}");
    assert!(ended["reason"].as_str().unwrap().contains("vcpu0"), "{ended}");
    assert!(ended["watch"]["suspicions"].as_u64() > Some(2), "{ended}");
}

#[test]
fn every_name_that_is_printed_is_accepted_and_evidence_repeats_the_run() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let guest = Elf::new(&[code::OTHERS_HALT, code::HI, code::PASS]);
    let out = bench.directory.path().join("out");
    let options = ["payload/guest@vcpus=2", "--aps", "started", "--memory", "3", "--out", out.to_str().unwrap()];
    let (passed, code) = bench.result(&guest, &options);
    assert_eq!((&passed["vcpus"], code), (&2.into(), 0));
    let directory = out.join("payload/guest@vcpus=2");
    assert_eq!(fs::read(directory.join("console.txt")).unwrap(), b"hi\x1b");
    let run: Value = serde_json::from_slice(&fs::read(directory.join("run.json")).unwrap()).unwrap();
    let repeat = run["repeat"].as_str().unwrap();
    assert!(repeat.ends_with("guest.elf' --memory 3 --aps started --vcpus 2"), "{repeat}");
}

#[test]
fn file_that_is_no_static_executable_for_this_machine_is_refused_by_field_and_value() {
    let bench = Bench::new();
    let good = Elf::new(&[code::PASS]);
    let refused = |elf: Elf, parts: &[&str]| bench.refused(&elf, &[], parts);
    refused(Elf(b"#!/bin/sh\n".to_vec()), &["is no ELF file"]);
    refused(good.clone().with(4, &[1]), &["class 1 (EI_CLASS"]);
    refused(good.clone().with(5, &[2]), &["byte order 2 (EI_DATA"]);
    refused(good.clone().with(18, &[183]), &["machine 183 (e_machine)"]);
    refused(good.clone().with(16, &[3]), &["type 3 (e_type: shared or position-independent)"]);
    refused(good.clone().with(16, &[1]), &["type 1 (e_type: object file)"]);
    refused(good.clone().with(64, &[3]), &["wants a dynamic loader (PT_INTERP)"]);
    refused(good.clone().with(64, &[2]), &["wants a dynamic loader (PT_DYNAMIC)"]);
    refused(good.clone().with(64, &[6]), &["has no loadable segment"]);
    refused(good.clone().with(24, &[9, 0, 0, 0]), &["starts at 0x9 (e_entry)"]);
    let code_at = |address: u64| good.clone().with(24, &address.to_le_bytes()).with(88, &address.to_le_bytes());
    refused(code_at(0x7ffd), &["0x7ffd (p_paddr)", "0x4 bytes (p_memsz)", "page tables", "0x0..0x8000"]);
    refused(code_at(0x3ff_c000), &["0x3ffc000 (p_paddr)", "the stacks of the vcpus, 0x3ffc000..0x4000000"]);
    refused(code_at(0x400_0000), &["0x4000000 (p_paddr)", "does not fit in 0x4000000 bytes of memory"]);
    refused(code_at(u64::MAX - 1), &["(p_paddr)", "does not fit"]);
    let mut cut = good;
    cut.0.truncate(122);
    refused(cut, &["is cut short", "0x78, 0x4 of them, in a file of 0x7a"]);
}

#[test]
fn options_that_do_not_fit_the_guest_are_refused() {
    let bench = Bench::new();
    let guest = Elf::new(&[code::PASS]);
    for options in [["--case", "plain"], ["--set", "callee=ends"], ["--order", "filter"], ["--seed", "3"]] {
        bench.refused(&guest, &options, &[options[0], "is a plain guest"]);
    }
    bench.refused(&guest, &["call/smallest"], &["'call/smallest'", "payload/guest"]);
    bench.refused(&guest, &["payload/other"], &["'payload/other'", "payload/guest"]);
    bench.refused(&guest, &["--end", "doorbel"], &["'doorbel'", "exit-port or shutdown or halted"]);
    bench.refused(&guest, &["--aps", "start"], &["parked or started", "did you mean started?"]);
    bench.refused(&guest, &["--memory", "1"], &["1 is not in 2..=3072"]);
    bench.refused(&guest, &["--memory", "2", "--vcpus", "127"], &["--memory 2: no room for the stacks of 127 vCPUs"]);
    bench.refused(&guest, &["--expect", "stall=dead"], &["'dead' is no kind of stall"]);
    bench.refused(&guest, &["--ghost", "0x10"], &["expected ADDRESS+SIZE"]);
    bench.refused(&guest, &["--ghost", "0x3ffffff+2"], &["--ghost 0x3ffffff+2", "0x4000000 bytes of memory"]);
    bench.refused(&guest, &["--nmi", "1@5"], &["--nmi 1@5", "there are 1 vCPUs"]);
    for option in [["--memory", "64"], ["--aps", "parked"], ["--end", "halted"], ["--expect", "pass"], ["--nmi", "0@1"]]
    {
        let output = Command::new(BINARY).args(["run", "call/smallest"]).args(option).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.contains(option[0]) && said.contains("only a plain guest takes it"), "{said}");
    }
}

#[test]
fn nmi_that_the_host_sends_reaches_the_guest() {
    if kvm_is_missing() {
        return;
    }
    // It has no interrupt table: the NMI is its end, and says so.
    let options = ["--nmi", "0@20", "--end", "shutdown"];
    let (ended, code) = Bench::new().result(&Elf::new(&[code::IDLE]), &options);
    assert_eq!((&ended["verdict"], code), (&"pass".into(), 0), "{ended}");
    assert_eq!(ended["injected"]["faults"][0]["what"], "nmi 0@20");
    assert_eq!(ended["injected"]["faults"][0]["by"], "host-injected");
}

/// A run of a guest that passes within its budget, whose process is held up for longer than that: whether it still passes.
fn assert_passes_though_held_up(hold_up: impl FnOnce(u32, &dyn Fn())) {
    let budget = Duration::from_millis(4_000);
    let bench = Bench::new();
    let out = bench.directory.path().join("out");
    // It is over by an NMI that is due before the budget is: a process that is stopped before that has it still to come.
    let guest = Elf::new(&[code::IDLE]);
    let mut command = bench.command(&guest, &["--nmi", "0@2500", "--end", "shutdown", "--report", "jsonl=-"]);
    command.arg(format!("--budget={}", budget.as_millis())).arg("--out").arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the run begins", || out.join("payload/guest@vcpus=1/run.json").is_file());
    hold_up(child.id(), &|| {
        let stopped = Instant::now();
        wait_until("longer than its budget", || stopped.elapsed() > budget + Duration::from_millis(500));
    });
    let (ended, code) = result(&child.wait_with_output().unwrap());
    assert_eq!((&ended["verdict"], code), (&"pass".into(), 0), "{ended}");
    assert!(ended["wall_ns"].as_u64() > Some(budget.as_nanos() as u64), "it was stopped while it ran: {ended}");
}

#[test]
fn time_in_which_the_process_is_stopped_counts_against_no_guest() {
    if kvm_is_missing() {
        return;
    }
    assert_passes_though_held_up(|pid, beyond_its_budget| {
        signal(pid, "STOP");
        wait_until("it is stopped", || state(pid) == Some('T'));
        beyond_its_budget();
        assert_eq!(state(pid), Some('T'));
        signal(pid, "CONT");
    });
}

#[test]
fn time_in_which_a_debugger_holds_the_process_counts_against_no_guest() {
    if kvm_is_missing() || gdb_is_missing() {
        return;
    }
    assert_passes_though_held_up(|pid, beyond_its_budget| {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-quiet", "-p", &pid.to_string()]).stdin(Stdio::piped());
        let mut gdb = gdb.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("it is stopped by the debugger", || state(pid) == Some('t'));
        beyond_its_budget();
        assert_eq!(state(pid), Some('t'));
        gdb.stdin.take().unwrap().write_all(b"detach\nquit\n").unwrap();
        assert!(gdb.wait().unwrap().success());
    });
}

#[test]
fn hostile_guests_come_to_a_verdict_and_do_no_harm() {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    for guest in [code::INIT_SELF, code::NO_TABLES, code::OVER_TABLES, code::NOWHERE, code::FLOOD] {
        for vcpus in ["1", "3"] {
            let options = ["--vcpus", vcpus, "--aps", "started", "--budget", "500", "--memory", "3"];
            let (ended, code) = bench.result(&Elf::new(&[guest]), &options);
            // What KVM makes of some of it is not the same on all hosts, but it is never a pass.
            assert!(ended["verdict"] != "pass" && code == 100, "{guest:x?}: {ended}");
        }
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}

/// The state of a process, as in its /proc/PID/stat.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The first block of code of that language below a heading of the document.
fn block(heading: &str, language: &str) -> &'static str {
    let (_, section) = DOCUMENT.split_once(&format!("## {heading}\n")).unwrap();
    let (_, rest) = section.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

/// Builds and runs the guest that is shown below a heading by the commands that are shown there. Gives what it says.
fn said_by_documented(heading: &str, file: &str) -> String {
    let bench = Bench::new();
    let directory = bench.directory.path();
    fs::write(directory.join(file), block(heading, "asm")).unwrap();
    let mut said = String::new();
    for line in block(heading, "sh").lines() {
        let path = format!("{}:{}", Path::new(BINARY).parent().unwrap().display(), std::env::var("PATH").unwrap());
        let output = Command::new("sh").args(["-ec", line]).current_dir(directory).env("PATH", path).output().unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        said.push_str(text(&output.stdout));
    }
    said
}

#[test]
fn documented_example_is_built_and_runs_as_documented() {
    if kvm_is_missing() {
        return;
    }
    let said = said_by_documented("An example", "hello.s");
    assert!(said.contains("PASS") && said.contains("  console hello from 2 vCPUs"), "{said}");
}

#[test]
fn documented_deadlock_is_proved_and_names_what_each_vcpu_waits_for() {
    if kvm_is_missing() {
        return;
    }
    let said = said_by_documented("A guest that stalls", "abba.s");
    assert!(said.contains("STALL deadlock   2 vCPUs   proved"), "{said}");
    for (vcpu, lock) in [("vcpu0", "lock_b"), ("vcpu1", "lock_a")] {
        let line = said.lines().find(|line| line.starts_with(&format!("  {vcpu} "))).unwrap_or_default();
        let reads = format!("reads {lock} 0x");
        assert!(line.contains(&reads) && line.contains(", which ends it when it becomes 0"), "{said}");
    }
}
