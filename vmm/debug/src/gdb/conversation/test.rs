//! Packets to a machine made up by hand: what comes back, and what does no harm.

use super::super::frame::Frames;
use super::*;
use crate::sample;
use crate::session::Session;

fn conversation(session: &mut Session) -> Conversation<'_> {
    let mut conversation = Conversation::new(Machine::new(session));
    asked(&mut conversation, "qSupported:multiprocess+");
    conversation
}

/// What comes back for the body of a packet, without acknowledgement and frame.
fn asked(conversation: &mut Conversation<'_>, body: &str) -> String {
    let answer = conversation.take(Frame::Packet(body.as_bytes().to_vec()));
    let mut frames = Frames::default();
    match answer.iter().filter_map(|byte| frames.push(*byte)).last() {
        Some(Frame::Packet(body)) => String::from_utf8_lossy(&body).into_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn registers_and_memory_are_those_of_the_thread() {
    let mut session = sample::session();
    let mut conversation = conversation(&mut session);
    assert!(asked(&mut conversation, "qSupported:multiprocess+").ends_with(";qXfer:threads:read+"));
    for (thread, word) in (1..).zip(sample::WORDS) {
        assert_eq!(asked(&mut conversation, &format!("Hgp1.{thread}")), "OK");
        // RDI, the sixth register, holds the word that the vCPU waits for; its zeros are told in short.
        let rdi: String = word.to_le_bytes()[..3].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(asked(&mut conversation, "p5").starts_with(&rdi[..5]));
        assert_eq!(asked(&mut conversation, &format!("m{word:x},4")), "010*\"");
    }
    assert!(asked(&mut conversation, "m7fffffff0000,4").starts_with('E'));
    assert!(asked(&mut conversation, "Hgp1.3") == "OK" && asked(&mut conversation, "g").starts_with('E'));
}

#[test]
fn dump_refuses_what_would_change_it_and_says_why() {
    let mut session = sample::session();
    let mut conversation = conversation(&mut session);
    for body in ["P0=0100000000000000", "M400000,1:00", "Z0,100000,1", "Z2,400000,4"] {
        assert!(asked(&mut conversation, body).contains("this is a dump"), "{body}");
    }
    for body in ["vCont;c", "vCont;s:p1.1;c:p1.-1", "c", "s"] {
        assert_eq!(asked(&mut conversation, body), "T00thread:p01.01;", "{body}");
        assert!(!conversation.is_running());
    }
}

#[test]
fn what_is_no_packet_costs_no_more_than_an_error() {
    let mut session = sample::session();
    let mut conversation = conversation(&mut session);
    asked(&mut conversation, "qSupported:multiprocess+");
    asked(&mut conversation, "QStartNoAckMode");
    asked(&mut conversation, "Hgp1.2");
    for body in
        ["m", "mzz,4", "m0,ffffffffff", "vCont;x", "vCont;s", "vCont;c:p1.1;t", "X1", "Hx1", "p", "G00", "Z9", "T0"]
    {
        let answer = asked(&mut conversation, body);
        assert!(answer.starts_with('E') || answer.is_empty() || answer.starts_with("T00"), "{body}: {answer}");
        assert_eq!(asked(&mut conversation, &format!("m{:x},1", sample::WORDS[1])), "01", "{body}");
    }
    assert_eq!(conversation.take(Frame::Damaged), b"", "the wire is sure");
    assert!(conversation.over().is_none());
}

#[test]
fn who_is_not_gdb_changes_nothing() {
    let lively = sample::live::Lively::new();
    let mut session = lively.session();
    let mut conversation = Conversation::new(Machine::new(&mut session));
    let all =
        ["c", "s", "C05", "vCont;c", "vCont;s:p1.1", "P0=00", "G00", "M400000,1:00", "X400000,1:x", "Z0,100000,1"];
    for body in all.into_iter().chain(["z0,100000,1", "k", "vKill;1", "qRcmd,656e64", "!", "R00"]) {
        assert_eq!(asked(&mut conversation, body), "E16", "{body}");
    }
    assert!(asked(&mut conversation, "?").starts_with('T') && !conversation.is_gdb);
    assert!(!conversation.is_running() && conversation.over().is_none());
    assert!(lively.inner().asked.is_empty() && lively.inner().stops.is_empty());
    asked(&mut conversation, "qSupported:multiprocess+");
    assert_eq!(asked(&mut conversation, "Z0,100000,1"), "OK");
}

#[test]
fn report_is_told_whole() {
    let lively = sample::live::Lively::new();
    let mut session = lively.session();
    let mut conversation = conversation(&mut session);
    lively.comes_to(crate::live::Why::End { text: "same\nother\nsame\n".into(), result: serde_json::Value::Null });
    let mut told = conversation.take(Frame::Packet(b"vCont;c".to_vec()));
    told.extend(conversation.wait());
    let same = console("same\n");
    assert_eq!(told.windows(same.len()).filter(|part| *part == same).count(), 2);
    conversation.machine.note_refusal("no");
    conversation.machine.note_refusal("no");
    assert_eq!(conversation.machine.notices, ["no"]);
}

#[test]
fn report_that_is_too_long_says_how_much_is_left_out() {
    let lively = sample::live::Lively::new();
    let mut session = lively.session();
    let mut conversation = conversation(&mut session);
    let text = "a line\n".repeat(1024 + 7);
    lively.comes_to(crate::live::Why::End { text, result: serde_json::Value::Null });
    let mut told = conversation.take(Frame::Packet(b"vCont;c".to_vec()));
    told.extend(conversation.wait());
    let count = |line: &str| told.windows(console(line).len()).filter(|part| *part == console(line)).count();
    let last = "the run is over; `continue` ends the machine\n";
    assert_eq!((count("a line\n"), count("… 7 lines more are left out here\n"), count(last)), (1024, 1, 1));
    assert!(conversation.machine.take_notices().is_empty());
}

/// What `monitor` prints.
fn monitor(conversation: &mut Conversation<'_>, line: &str) -> String {
    let hex: String = line.bytes().map(|byte| format!("{byte:02x}")).collect();
    let answer = conversation.take(Frame::Packet(format!("qRcmd,{hex}").into_bytes()));
    let mut frames = Frames::default();
    let mut said = Vec::new();
    for frame in answer.iter().filter_map(|byte| frames.push(*byte)) {
        let Frame::Packet(body) = frame else { continue };
        let (pairs, _) = body.strip_prefix(b"O").unwrap_or_default().as_chunks::<2>();
        said.extend(pairs.iter().filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()));
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn files_are_for_who_came_by_a_socket_of_the_user() {
    let mut session = sample::session();
    let mut conversation = conversation(&mut session);
    asked(&mut conversation, "qSupported:multiprocess+");
    for line in ["diff /nonexistent/a", "dump /nonexistent/a", "payload /nonexistent/a", "vcpu; payload /nonexistent/a"]
    {
        conversation.machine.client.is_by_tcp = true;
        let said = monitor(&mut conversation, line);
        assert!(said.contains("no files by TCP") && said.contains("unix:PATH"), "{line}: {said}");
        conversation.machine.client.is_by_tcp = false;
        let said = monitor(&mut conversation, line);
        assert!(!said.contains("no files by TCP") && said.contains("error: "), "{line}: {said}");
    }
    conversation.machine.client.is_by_tcp = true;
    assert!(monitor(&mut conversation, "help dump").starts_with("dump FILE"));
    assert!(monitor(&mut conversation, "vcpu 1").contains("vcpu1"));
}

#[test]
fn threads_are_listed_in_parts() {
    let mut session = sample::session();
    let mut conversation = conversation(&mut session);
    let mut whole = String::new();
    loop {
        let part = asked(&mut conversation, &format!("qXfer:threads:read::{:x},40", whole.len()));
        whole.push_str(&part[1..]);
        if part.starts_with('l') {
            break;
        }
    }
    assert!(whole.contains("name=\"vcpu1\"") && whole.ends_with("</threads>\n"), "{whole}");
    assert_eq!(asked(&mut conversation, "qXfer:threads:read::ffffff,40"), "l");
    assert_eq!(asked(&mut conversation, "qXfer:threads:read::x,40"), "E16");
}

/// Packets that are almost right: heads that mean something, with anything behind.
#[test]
fn no_packet_ends_a_conversation_but_those_that_say_so() {
    const HEADS: [&str; 34] = [
        "?",
        "g",
        "G",
        "H",
        "Hg",
        "Hc",
        "m",
        "M",
        "X",
        "p",
        "P",
        "T",
        "c",
        "s",
        "vCont",
        "vCont;c",
        "vCont;s:",
        "z0,",
        "Z0,",
        "Z2,",
        "qAttached",
        "qC",
        "qfThreadInfo",
        "qSupported",
        "qRcmd,",
        "qXfer:features:read:target.xml:",
        "qXfer:threads:read::",
        "qXfer:exec-file:read::",
        "vFile:open:",
        "vFile:pread:",
        "vFile:fstat:",
        "vFile:close:",
        "QStartNoAckMode",
        "",
    ];
    const SIGNS: &[u8] = b"0123456789abcdef,;:.-p=+*}xz\x00\xff";
    let mut random = 1_u64;
    let mut below = |end: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize % end
    };
    let mut session = sample::session();
    let mut conversation = conversation(&mut session);
    for _ in 0..4000 {
        let mut body = HEADS[below(HEADS.len())].as_bytes().to_vec();
        body.extend((0..below(24)).map(|_| SIGNS[below(SIGNS.len())]));
        conversation.take(Frame::Packet(body));
        conversation.wait();
        assert!(conversation.over().is_none() && !conversation.is_running());
    }
    assert_eq!(asked(&mut conversation, "Hgp1.1"), "OK");
    assert_eq!(asked(&mut conversation, &format!("m{:x},1", sample::WORDS[0])), "01");
}
