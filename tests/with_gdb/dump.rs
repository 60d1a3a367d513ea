//! Dumps: everything can be looked at, and nothing changed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::{fs, str};

use crate::binary::binary;
use crate::client::Client;
use crate::gdb::gdb_is_missing;
use crate::server::{Server, has, shelved, stallbench};

#[test]
fn gdb_sees_every_vcpu_of_a_dump() {
    if gdb_is_missing() {
        return;
    }
    let server = Server::of_dump("deadlock");
    let commands = [
        "info threads",
        "bt",
        "thread 4",
        "bt",
        "x/2xw 0x400064",
        "x/gx 0xb00000",
        "x/x 0x7fffffff0000",
        "info registers cr0 cr3 efer fs_base cr8",
        "p $st0",
        "monitor vcpus",
        "monitor nonsense",
        "monitor mtrr",
        "monitor",
        "monitor quit",
        "detach",
    ];
    let said = server.gdb(&commands);
    let parts = [
        "Thread 1.1 \"vcpu0\" (runnable, waits in call_many for flag WAIT)",
        "Thread 1.4 \"vcpu3\" (runnable, waits in ipi_handler B3 for gate)",
        "wait_for_completion (record=",
        "guest/payload/src/call/kmalloc.rs:",
        "ipi_handler (info=",
        "0x400064:\t0x00000000",
        "0xb00000:\t0x0000000000000000",
        "Cannot access memory at address 0x7fffffff0000",
        "[ PE ET NE WP PG ]",
        "[ LME LMA NXE ]",
        "= <unavailable>",
        "*  0     case      runnable",
        "error: no command nonsense",
        "all vCPUs that were read hold the same values",
        "`detach` lets the machine go on",
        "[Inferior 1 (process 1) detached]",
    ];
    has(&said, &parts);
    assert!(!said.contains('\u{1b}') && !said.contains("vcpu4"), "{said}");
    assert_eq!(server.end().status.code(), Some(0));
}

#[test]
fn what_would_change_a_dump_is_refused_and_gdb_goes_on() {
    if gdb_is_missing() {
        return;
    }
    let server = Server::of_dump("livelock");
    let commands = [
        "set var $rax = 1",
        "set var *(char *) &token = 1",
        "break *0x101000",
        "continue",
        "delete",
        "hbreak *0x101001",
        "continue",
        "delete",
        "watch *(int *) &token",
        "continue",
        "delete",
        "stepi",
        "continue",
        "x/i $pc",
        "kill",
    ];
    let said = server.gdb(&commands);
    let parts = [
        "remote failure reply 'E.this is a dump: it can be looked at, and no more'",
        "Cannot insert breakpoint 1",
        "Could not insert hardware watchpoint 3",
        "Cannot insert hardware breakpoint 2",
        "\nthis is a dump: it can be looked at, and no more\n",
        "token.s:",
        "[Inferior 1 (process 1) killed]",
    ];
    has(&said, &parts);
    assert_eq!(server.end().status.code(), Some(0));
}

#[test]
fn vcpu_that_does_not_run_is_a_thread_too() {
    if gdb_is_missing() {
        return;
    }
    let server = Server::of_dump("absent-member");
    let said = server.gdb(&["info threads", "thread apply all x/i $pc"]);
    has(&said, &["\"vcpu1\" (halted with interrupts off)", "=> 0x"]);
    // gdb leaves as it ends.
    assert_eq!(server.end().status.code(), Some(0));
}

#[test]
fn noise_is_answered_and_gdb_comes_after_it() {
    if gdb_is_missing() {
        return;
    }
    let mut server = Server::of_dump("deadlock");
    let mut noise = Client::new(&server.socket());
    noise.send(b"GET / HTTP/1.1\r\n\r\n\0\xff\x03\x03$$$##$bad#00");
    assert_eq!(noise.byte(), Some(b'-'), "a damaged packet is asked for again");
    // Whoever says nothing of gdb gives way.
    let mut client = Client::let_in(&server.socket());
    assert!(client.ask("qSupported:multiprocess+").contains("PacketSize="));
    assert_eq!(client.ask("Hgp1.2"), "OK");
    for body in ["m", "mxx,1", "vCont;nonsense", "m0,fffffffff", "G00", "p"] {
        assert!(client.ask(body).starts_with('E'), "{body}");
    }
    assert_eq!(client.ask("m400064,1"), "00");
    assert_eq!(noise.byte(), None, "it has given way");
    assert_eq!(Client::new(&server.socket()).byte(), None, "one at a time");
    assert_eq!(client.ask("qAttached"), "1");
    client.send(b"$m4000");
    drop(client);
    server.wait_until("it ends", |server| server.child().try_wait().unwrap().is_some());
    assert_eq!(server.end().status.code(), Some(0));
}

#[test]
fn address_that_cannot_be_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("taken");
    let _taken = UnixListener::bind(&path).unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let long = format!("unix:{}/{}", directory.path().display(), "x".repeat(120));
    let dump = shelved("livelock");
    let cases = [
        (format!("unix:{}", path.display()), "taken: process "),
        (format!("unix:{}", file.display()), "file: is there, and no socket"),
        (port.local_addr().unwrap().to_string(), "is taken"),
        ("unix:/nowhere/at/all".into(), "/nowhere/at/all: No such file"),
        ("no.such.host.invalid:1".into(), "cannot wait at no.such.host.invalid:1"),
        (long, "x: "),
    ];
    for (address, why) in cases {
        let output = stallbench(&["debug", "--dump", dump.to_str().unwrap(), "--gdb", &address]);
        let said = str::from_utf8(&output.stderr).unwrap();
        assert!(said.starts_with("error: --gdb: ") && said.contains(why) && said.lines().count() == 1, "{said}");
        assert_eq!(output.status.code(), Some(2));
    }
    let output = stallbench(&["debug", "--dump", dump.to_str().unwrap(), "--gdb", "1234"]);
    assert!(str::from_utf8(&output.stderr).unwrap().contains("expected unix:PATH, HOST:PORT or :PORT"));
    assert_eq!(output.status.code(), Some(2));
    let mut left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "taken"], "nothing else stays");
}

#[test]
fn socket_is_its_owners_and_replaces_that_of_a_process_that_is_gone() {
    let mut server = Server::of_dump("livelock");
    let socket = server.socket();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    server.child().kill().unwrap();
    server.child().wait().unwrap();
    assert!(socket.exists(), "nobody has removed it");
    server.again(&["debug", "--dump", shelved("livelock").to_str().unwrap()]);
    let mut client = Client::let_in(&socket);
    assert!(client.ask("qSupported:multiprocess+").starts_with("PacketSize="));
    assert_eq!(client.ask("D"), "OK");
    let output = server.end();
    assert_eq!(output.status.code(), Some(0));
    let hint = "waiting for gdb: gdb -ex 'target remote ";
    assert!(str::from_utf8(&output.stderr).unwrap().starts_with(hint), "{output:?}");
}

#[test]
fn another_user_is_hung_up_on() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("SKIPPED: only root can be another user; nobody tries to come in");
        return;
    }
    if gdb_is_missing() {
        return;
    }
    let server = Server::of_dump("livelock");
    // Whatever the files say.
    fs::set_permissions(server.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(server.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let target = format!("target remote {}", server.socket().display());
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-ex", &target, "-ex", "info threads"]).uid(65534).gid(65534);
    let output = gdb.current_dir("/").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("vcpu0"), "{said}");
    has(&server.gdb(&["info threads"]), &["\"vcpu0\""]);
    assert_eq!(server.end().status.code(), Some(0));
}

#[test]
fn port_is_any_that_is_free_and_who_may_come_there_is_warned_of() {
    for (asked, who) in [(":0", "every user of this machine"), ("0.0.0.0:0", "whoever reaches that port")] {
        let dump = shelved("livelock");
        let mut command = Command::new(binary());
        command.args(["debug", "--dump", dump.to_str().unwrap(), "--gdb", asked]).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let said: Vec<_> = BufReader::new(process.stderr.take().unwrap()).lines().take(2).collect();
        let said: Vec<_> = said.into_iter().map(Result::unwrap).collect();
        assert!(said[0].starts_with("warning: --gdb ") && said[0].contains(who), "{said:?}");
        let port = said[1].split('\'').nth(1).unwrap().rsplit(':').next().unwrap().parse().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"$qSupported:xmlRegisters=i386#c1$?#3f$k#6b").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("+$T05thread:"), "{answer:?}");
        assert_eq!(process.wait().unwrap().code(), Some(0));
    }
}
