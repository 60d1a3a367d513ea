//! A server on the machine made up for unit tests, its own client, and clients that do not keep to the protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::answer::Answer;
use crate::follow::{Follower, Lost};
use crate::remote::{AttachError, Client};
use crate::sample;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);

struct Bench {
    server: Option<Server>,
    path: PathBuf,
    _directory: TempDir,
}

/// A server that gives what `open` says.
fn bench(open: impl Fn() -> Entry + Send + Sync + 'static) -> Bench {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control");
    let listening = Listening::at(&path).expect("nobody is there");
    Bench { server: Some(Server::start(listening, open).expect("threads")), path, _directory: directory }
}

fn of_sample() -> Bench {
    bench(|| Entry::In(Box::new(sample::machine())))
}

impl Bench {
    fn attach(&self) -> Result<Client, AttachError> {
        Client::attach(&self.path, Arc::default())
    }

    fn raw(&self) -> Raw {
        let stream = UnixStream::connect(&self.path).expect("somebody listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        let mut raw = Raw(BufReader::new(stream));
        assert_eq!(raw.line()["stallbench"], "control");
        raw
    }
}

/// A client that says what it likes.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn say(&mut self, text: &[u8]) {
        self.0.get_mut().write_all(text).expect("it listens");
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("in time");
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }
}

/// What the commands of a line come to: data, or the line that says why there is none.
fn followed(client: &mut Client, line: &str) -> Result<Vec<Result<Value, String>>, Lost> {
    let mut all = Vec::new();
    client.follow(line, &mut |_, answer: Result<Answer, String>| {
        all.push(answer.map(|answer| answer.data));
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(all)
}

#[test]
fn client_gets_what_a_session_here_would_answer() {
    let bench = of_sample();
    let mut client = bench.attach().expect("it is let in");
    let all = followed(&mut client, "vcpu 1; wiats; vcpu").expect("the server is there");
    assert_eq!((&all[0], &all[2], all.len()), (&Ok(json!({"vcpu": 1})), &Ok(json!({"vcpu": 1})), 3));
    assert!(all[1].as_ref().is_err_and(|error| error.contains("did you mean waits")));
    assert_eq!((client.current(), client.is_over()), (1, false));
    assert_eq!(Follower::complete(&client, "vcpus; ve"), (7, vec!["verdict".to_owned()]));
    let mut text = String::new();
    let mut tell = |_: &str, answer: Result<Answer, String>| {
        text = answer.expect("it has an answer").text;
        std::ops::ControlFlow::Continue(())
    };
    client.follow("vcpus", &mut tell).expect("the server is there");
    assert_eq!(text, sample::answer(&mut sample::session(), "vcpu 1; vcpus").expect("an answer").text);
    followed(&mut client, "quit; vcpu").expect("the server is there");
    assert!(client.is_over());
}

#[test]
fn second_is_told_who_is_in_and_comes_in_after_him() {
    let bench = of_sample();
    let first = bench.attach().expect("it is let in");
    let error = bench.attach().expect_err("one is in").to_string();
    assert!(error.ends_with(&format!(": process {} is in, and one can be at a time", std::process::id())), "{error}");
    drop(first);
    assert_eq!(
        followed(&mut bench.attach().expect("the one before has left"), "vcpu 1").expect("it is let in").len(),
        1
    );
}

#[test]
fn protocol_is_as_documented() {
    const DOCUMENT: &str = include_str!("../../../../../docs/attach.md");
    let bench = of_sample();
    let stream = UnixStream::connect(&bench.path).expect("somebody listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    let mut raw = Raw(BufReader::new(stream));
    let said = DOCUMENT.lines().filter_map(|line| line.split_once(": ").filter(|(who, _)| !who.contains(' ')));
    let mut followed = 0;
    for (who, line) in said {
        match who {
            "client" => raw.say(format!("{line}\n").as_bytes()),
            "server" => {
                let mut documented: Value = serde_json::from_str(line).expect("JSON");
                let mut answered = raw.line();
                // That of the process, and of the release.
                for line in [&mut documented, &mut answered] {
                    line.as_object_mut().expect("an object").retain(|key, _| !matches!(key.as_str(), "pid" | "tool"));
                }
                assert_eq!(answered, documented);
            }
            _ => continue,
        }
        followed += 1;
    }
    assert_eq!((followed, raw.line()), (12, Value::Null), "and the end");
}

#[test]
fn nonsense_is_a_line_and_the_client_stays() {
    let bench = of_sample();
    let mut raw = bench.raw();
    for nonsense in [b"\n".as_slice(), b"vcpus\n", b"{\"line\":7}\n", &[0xff, 0, b'\n'], b"{}\n"] {
        raw.say(nonsense);
        assert!(raw.line()["error"].is_string());
    }
    raw.say(&vec![b'x'; 1 << 19]);
    raw.say(b"\n{\"line\":\"vcpu 1\"}\n");
    assert_eq!(raw.line()["error"], "a line is longer than 262144 bytes");
    assert_eq!(raw.line()["data"]["vcpu"], 1);
    assert_eq!(raw.line()["done"], json!({"vcpu": 1, "over": false}));
}

#[test]
fn lines_that_are_left_out_are_told() {
    const LINE: &[u8] = b"{\"line\":\"vcpu\"}\n";
    let (entered, is_in) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let held = Mutex::new((entered, may_go_on));
    let bench = bench(move || {
        let (entered, may_go_on) = &*held.lock().expect("nobody panicked");
        entered.send(()).expect("somebody waits");
        may_go_on.recv_timeout(DEADLINE).expect("in time");
        Entry::In(Box::new(sample::machine()))
    });
    let mut raw = bench.raw();
    raw.say(LINE);
    is_in.recv_timeout(DEADLINE).expect("in time");
    // Nothing is followed now. These are more bytes than a socket holds: when the last is said, most have been read.
    raw.say(&LINE.repeat((4 << 20) / LINE.len()));
    go_on.send(()).expect("it waits");
    let said = [raw.line(), raw.line(), raw.line()];
    let left_out = said[2]["error"].as_str().is_some_and(|error| error.ends_with("lines were left out: too many wait"));
    assert!(said[0]["data"]["vcpu"] == 0 && said[1]["done"].is_object() && left_out, "{said:?}");
}

#[test]
fn who_leaves_in_mid_line_or_is_lost_lets_the_next_in() {
    let bench = of_sample();
    bench.raw().say(b"{\"line\":\"vc");
    followed(&mut bench.attach().expect("the one before has left"), "vcpu").expect("it is let in");
    drop(bench.attach().expect("the one before has left"));
    drop(bench.attach().expect("the one before has left"));
}

#[test]
fn client_waits_for_a_machine_until_he_interrupts() {
    let machines = Arc::new(AtomicUsize::new(0));
    let made = Arc::clone(&machines);
    let open = move || match made.load(Ordering::SeqCst) {
        0 => Entry::NotYet,
        _ => Entry::In(Box::new(sample::machine())),
    };
    let bench = bench(open);
    let interrupt = Arc::new(AtomicBool::new(true));
    let mut client = Client::attach(&bench.path, Arc::clone(&interrupt)).expect("it is let in");
    let all = followed(&mut client, "vcpu 1").expect("the server is there");
    assert_eq!(all, [Err("interrupted: there is no machine yet".to_owned())]);
    let (sender, receiver) = mpsc::channel();
    let waiting = thread::spawn(move || sender.send(followed(&mut client, "vcpu 1")));
    assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "there is no machine");
    machines.store(1, Ordering::SeqCst);
    let all = receiver.recv_timeout(DEADLINE).expect("in time").expect("the server is there");
    assert_eq!(all, [Ok(json!({"vcpu": 1}))]);
    waiting.join().expect("no panic").expect("sent");
}

#[test]
fn who_is_not_let_in_and_who_stays_to_the_end_are_told_why() {
    let refusing = bench(|| Entry::Refused("gdb is in".into()));
    let mut client = refusing.attach().expect("it is let in");
    assert_eq!(followed(&mut client, "vcpu"), Err(Lost("gdb is in".into())));
    let mut bench = of_sample();
    let mut client = bench.attach().expect("it is let in");
    followed(&mut client, "vcpu").expect("the server is there");
    bench.server = None;
    assert_eq!(followed(&mut client, "vcpu"), Err(Lost("the last run is over".into())));
    assert!(!bench.path.exists(), "the socket is gone");
    assert!(matches!(bench.attach(), Err(AttachError::Unreachable { .. })));
}

#[test]
fn server_ends_though_its_client_reads_nothing() {
    let mut bench = of_sample();
    let mut raw = bench.raw();
    raw.say(&b"{\"line\":\"regs all; lapic all; vcpus; regs all; lapic all; idt\"}\n".repeat(60));
    let begin = Instant::now();
    bench.server = None;
    assert!(begin.elapsed() < DEADLINE);
}

/// What a client that was let in comes to with a server that does as it likes.
fn with_server<T>(serve: impl FnOnce(&UnixStream) + Send, visit: impl FnOnce(&std::path::Path) -> T) -> T {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("nobody is there");
    thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, _) = listener.accept().expect("it connects");
            serve(&stream);
        });
        visit(&path)
    })
}

#[test]
fn run_that_hangs_is_given_up_once_it_is_interrupted() {
    let hang = |stream: &UnixStream| {
        let mut all = Vec::new();
        (&mut &*stream).write_all(b"{\"stallbench\":\"control\",\"version\":1,\"pid\":1}\n").expect("it listens");
        // Until the client is gone.
        let _ = io::Read::read_to_end(&mut &*stream, &mut all);
    };
    let interrupt = Arc::new(AtomicBool::new(true));
    let lost = with_server(hang, |path| {
        let mut client = Client::attach(path, Arc::clone(&interrupt)).expect("it is let in");
        followed(&mut client, "vcpu")
    });
    assert_eq!(lost, Err(Lost("the run does not answer".into())));
}

#[test]
fn words_and_refusals_of_another_process_move_no_cursor() {
    let serve = |stream: &UnixStream| {
        let mut asked = BufReader::new(stream).lines();
        for line in [
            r#"{"stallbench":"control","version":1,"pid":1}"#,
            r#"{"completions":{"start":0,"words":["a\u001b[2J","b\u009b"]}}"#,
            "{\"command\":\"a\",\"error\":\"b\\u001b]0;\"}\n{\"error\":\"c\\u009b\"}",
        ] {
            (&mut &*stream).write_all(format!("{line}\n").as_bytes()).expect("it listens");
            // Until it asks for something, or leaves.
            let _ = asked.next();
        }
    };
    with_server(serve, |path| {
        let mut client = Client::attach(path, Arc::default()).expect("it is let in");
        assert_eq!(Follower::complete(&client, ""), (0, vec!["a?[2J".to_owned(), "b?".to_owned()]));
        let all = followed(&mut client, "a; b").expect("it is there");
        assert_eq!(all, [Err("b?]0;".to_owned()), Err("c?".to_owned())]);
    });
}

#[test]
fn greeting_that_never_comes_to_its_end_is_not_waited_for() {
    let trickle = |stream: &UnixStream| {
        while (&mut &*stream).write_all(b"{").is_ok() {
            thread::park_timeout(Duration::from_millis(10));
        }
    };
    let began = Instant::now();
    let error = with_server(trickle, |path| Client::attach(path, Arc::default()).expect_err("no run").to_string());
    assert!(error.contains("no run of stallbench") && began.elapsed() < DEADLINE, "{error}");
}

#[test]
fn socket_of_something_else_is_told_in_a_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let error = |path: &std::path::Path| Client::attach(path, Arc::default()).expect_err("no run").to_string();
    let path = directory.path().join("control");
    assert!(error(directory.path()).contains("No such file"), "{}", error(directory.path()));
    std::fs::write(&path, "").expect("written");
    assert!(error(directory.path()).contains("no socket"));
    std::fs::remove_file(&path).expect("it is there");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("nobody is there");
    for (greeting, part) in [
        ("", "no run of stallbench"),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", "no run of stallbench"),
        ("{\"stallbench\":\"control\",\"version\":99,\"pid\":1}\n", "speaks version 99 of the protocol"),
    ] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().expect("it connects");
                (&stream).write_all(greeting.as_bytes()).expect("it listens");
            });
            let error = error(&path);
            assert!(error.starts_with(&path.display().to_string()) && error.contains(part), "{error}");
        });
    }
    drop(listener);
    assert!(error(&path).contains("nobody listens there"));
}
