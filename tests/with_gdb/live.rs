//! Machines that run: gdb stops them, steps them and changes them, and a run that is left to itself ends as it would without.

use std::process::Output;
use std::{fs, str};

use crate::client::Client;
use crate::executable::{CODE, executable};
use crate::gdb::gdb_is_missing;
use crate::missing::kvm_is_missing;
use crate::server::{Server, has, stallbench};

/// A deadlock with 4 vCPUs, and a pass.
const DEADLOCK: &str = "mtrr/stack-broadcast@vcpus=4";
const SMALLEST: &str = "call/smallest@vcpus=2";
/// What the others run in it.
const HANDLER: &str = "stallbench_payload::mtrr::rendezvous::ipi_handler";
/// A word that a plain guest counts up for ever.
const WORD: u64 = 0x10_2000;

/// A plain guest: `incl WORD; pause; jmp CODE`. Without `pause`, Bochs never comes out of it (docs/hosts.md).
fn counter() -> Vec<u8> {
    let word = (WORD as u32).to_le_bytes();
    let code = [&[0xff, 0x04, 0x25][..], &word, &[0xf3, 0x90, 0xeb, 0xf5]].concat();
    executable(&code, 0x3000)
}

/// Runs the counter on one vCPU.
fn counting() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("counter.elf");
    fs::write(&file, counter()).unwrap();
    let plain = ["run", "--payload", file.to_str().unwrap(), "--vcpus", "1", "--budget", "2000", "--dump", "never"];
    Server::start(&plain)
}

fn said(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

/// A line of a report that says which verdict it is, without its times.
fn verdict(output: &Output) -> Vec<&str> {
    let line = said(output).lines().nth(1).unwrap();
    line.split("   ").filter(|part| !part.ends_with(" ms") && !part.ends_with(" s")).collect()
}

/// A run under gdb, stopped at a function, stepped and looked at, ends as it does without.
fn ends_as_without(run: &[&str], function: &str, exited: &str) {
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let run = [&["run", "--dump", "never"], run].concat();
    let alone = stallbench(&run);
    let server = Server::start(&run);
    let stop = format!("break {function}");
    let looks = ["p $_thread", "stepi", "stepi", "info registers cr0 efer cr8", "monitor vcpus"];
    let last = ["info threads", "delete", "continue", "bt 1", "continue"];
    let gdb = server.gdb(&[&["info threads", &stop, "continue"], &looks[..], &last].concat());
    has(&gdb, &["runs at _start", "Breakpoint 1, ", "[ PE ET NE WP PG ]", "[ LME LMA NXE ]", "   vcpu  phase "]);
    has(&gdb, &["the run is over; `continue` ends the machine", exited]);
    let under = server.end();
    assert_eq!(under.status.code(), alone.status.code(), "{}", said(&under));
    assert_eq!(verdict(&under), verdict(&alone));
    // What the report says is told to gdb too.
    has(&gdb, &verdict(&under));
}

#[test]
fn stall_under_gdb_ends_as_it_does_without() {
    ends_as_without(&[DEADLOCK], HANDLER, "exited normally");
}

#[test]
fn pass_under_gdb_ends_as_it_does_without() {
    ends_as_without(&[SMALLEST], "stallbench_payload::call::many", "exited normally");
}

#[test]
fn unexpected_end_under_gdb_is_as_it_is_without() {
    ends_as_without(&[DEADLOCK, "--set", "call=percpu-lock"], HANDLER, "exited with code 0144");
}

#[test]
fn breakpoint_names_the_vcpu_that_came_there() {
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let server = Server::start(&["run", DEADLOCK]);
    // Each of the other vCPUs runs the function, and each once.
    let hit = ["continue", "p $_thread - 1", "monitor vcpus", "x/i $pc"];
    let stop = format!("break {HANDLER}");
    let gdb = server.gdb(&[&[&*stop][..], &hit, &hit, &hit, &["detach"]].concat());
    let mut vcpus: Vec<_> = gdb.split(" \"vcpu").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    vcpus.sort_unstable();
    assert_eq!(vcpus, ["1", "2", "3"], "{gdb}");
    assert_eq!(server.end().status.code(), Some(0), "the run goes on without gdb");
}

#[test]
fn what_is_written_is_there_and_the_report_tells_of_it() {
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let server = counting();
    let word = format!("set {{int}}{WORD:#x} = 77");
    let commands = [
        "stepi",
        "stepi",
        "p $pc",
        "set var $r15 = 0x1234",
        "p/x $r15",
        "set var $cr3 = 0",
        &word,
        "stepi",
        "stepi",
        "x/wd 0x102000",
        "set {char}0x7fffffff0000 = 1",
        "x/x 0x7fffffff0000",
        "monitor lapic",
        "monitor mtrr",
        "monitor write 0x102000 1",
        "kill",
    ];
    let gdb = server.gdb(&commands);
    let parts = [
        "0x100009",
        "= 0x1234",
        "E.only general registers can be written",
        "0x102000:\t78",
        "Cannot access memory at address 0x7fffffff0000",
        "--yes",
        "killed]",
    ];
    has(&gdb, &parts);
    let output = server.end();
    assert_eq!(output.status.code(), Some(130), "gdb has ended it");
}

#[test]
fn watchpoint_stops_behind_the_write_as_this_host_can() {
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let server = counting();
    let word = format!("*(char[4] *){WORD:#x}");
    let watch = format!("watch {word}");
    let gdb =
        server.gdb(&[&watch, "continue", "p/x $pc", "delete", "hbreak *0x100009", "continue", "p/x $pc", "detach"]);
    let parts = ["Hardware watchpoint 1", "New value = \"\\001", "= 0x100007", "Breakpoint 2, ", "= 0x100009"];
    has(&gdb, &parts);
    assert_eq!(server.end().status.code(), Some(100), "it never ends, and nobody said so");
}

#[test]
fn one_vcpu_is_one_thread_of_its_dump_too() {
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let server = counting();
    let gdb = server.gdb(&["info threads", "break *0x100007", "continue", "monitor dump one.core", "detach"]);
    has(&gdb, &["* 1    Thread 1.1 \"vcpu0\" (runnable", "Breakpoint 1, "]);
    let file = server.directory.path().join("one.core");
    let dump = Server::start(&["debug", "--dump", file.to_str().unwrap()]);
    let looked = dump.gdb(&["info threads", "x/i $pc", "x/wd 0x102000", "thread 2"]);
    has(&looked, &["* 1    Thread 1.1 \"vcpu0\"", "=> 0x100007:\tpause", "0x102000:\t1", "Unknown thread 2"]);
    assert_eq!((dump.end().status.code(), server.end().status.code()), (Some(0), Some(100)));
}

/// What gdb does to have its thread stand at a `hlt`, or wait behind it. A slow host may not have come there yet.
const TO_HLT: &str = "set language c
set $steps = 0
while *(unsigned char *) $pc != 0xf4 && *(unsigned char *) ($pc - 1) != 0xf4 && $steps++ < 5000
  stepi
end
set language auto
";

#[test]
fn vcpu_that_waits_for_an_interrupt_is_stepped_over_its_wait() {
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let server = Server::start(&["run", SMALLEST]);
    fs::write(server.directory.path().join("to-hlt"), TO_HLT).unwrap();
    let to_hlt = format!("source {}", server.directory.path().join("to-hlt").display());
    let begins = ["thread 2", "stepi", "thread 1", "break stallbench_payload::call::many", "continue", "delete"];
    let waits = ["thread 2", &to_hlt, "x/2i $pc-1", "stepi", "p 1+1", "continue", "continue"];
    let gdb = server.gdb(&[&begins[..], &waits].concat());
    has(&gdb, &["hlt", "vcpu1 waits for an interrupt: all vCPUs run until it is over", "= 2", "exited normally"]);
    assert_eq!(server.end().status.code(), Some(0));
}

#[test]
fn client_interrupts_leaves_or_vanishes_and_the_run_goes_on() {
    if kvm_is_missing() {
        return;
    }
    for farewell in ["D", ""] {
        let server = counting();
        let mut client = Client::let_in(&server.socket());
        assert!(client.ask("qSupported:multiprocess+").contains("vContSupported+"));
        client.send(b"$vCont;c#a8\x03");
        let stopped = client.answer();
        assert!(stopped.starts_with("T02thread:p01.01;"), "{stopped}");
        assert_eq!(client.ask(&format!("Z0,{:x},1", CODE + 7)), "OK");
        match farewell {
            "" => client.send(b"$m10"),
            packet => assert_eq!(client.ask(packet), "OK"),
        }
        drop(client);
        let output = server.end();
        assert_eq!(output.status.code(), Some(100), "{farewell}");
        assert!(said(&output).contains("STALL deadlock") && !said(&output).contains("intervention"), "{output:?}");
    }
}

#[test]
fn debugger_serves_gdb_in_the_place_of_commands() {
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let server = Server::start(&["debug", DEADLOCK]);
    let gdb = server.gdb(&["info threads", "stepi", "monitor about", "detach"]);
    has(&gdb, &["\"vcpu3\" (not started", DEADLOCK]);
    assert_eq!(server.end().status.code(), Some(0));
}

#[test]
fn gdb_looks_into_one_run() {
    if kvm_is_missing() {
        return;
    }
    for (more, why) in [(&["call"][..], "runs are selected"), (&[SMALLEST, "--repeat", "2"], "2 runs are selected")] {
        let output = stallbench(&[&["run", "--gdb", ":0"], more].concat());
        assert_eq!(output.status.code(), Some(2));
        let line = str::from_utf8(&output.stderr).unwrap();
        assert!(line.contains(why) && line.lines().count() == 1, "{line}");
    }
    let both = stallbench(&["run", SMALLEST, "--gdb", ":0", "--control", "socket"]);
    assert_eq!(both.status.code(), Some(2));
}

/// A line without its numbers and their units, and white space as one space.
fn shape(line: &str) -> String {
    let word = |word: &str| word.chars().filter(|c| !c.is_ascii_hexdigit()).collect::<String>();
    line.split_whitespace().map(word).filter(|word| !["", "s", "ms"].contains(&&**word)).collect::<Vec<_>>().join(" ")
}

#[test]
fn session_of_the_document_prints_what_the_document_says() {
    const DOCUMENT: &str = include_str!("../../docs/gdb.md");
    if gdb_is_missing() || kvm_is_missing() {
        return;
    }
    let between = |start: &str, end: &str| DOCUMENT.split(start).nth(1).unwrap().split(end).next().unwrap();
    let run = between("```console\n$ stallbench ", "--gdb").split_whitespace().collect::<Vec<_>>();
    let lines: Vec<_> = between("```text\n$ gdb -ex 'target remote gdb'\n", "```").lines().collect();
    let commands: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("(gdb) ")).collect();
    assert!(commands.len() > 9, "it is found: {commands:?}");
    let server = Server::start(&run);
    let gdb = server.gdb(&commands);
    let printed: String = gdb.lines().map(|line| shape(line) + "\n").collect();
    for line in lines.iter().filter(|line| !line.starts_with("(gdb) ")) {
        assert!(printed.contains(&shape(line)), "'{line}' is not in:\n{gdb}");
    }
    assert!(!gdb.contains("not defined") && !gdb.contains("No symbol"), "{gdb}");
    assert_eq!(server.end().status.code(), Some(0));
}
