//! Blocks and lines of a few results.

use std::io::ErrorKind;

use super::*;
use crate::outcome::{Address, ConsoleOutcome, Culprit, LoopOutcome, Stall, StallKind, Strength, Words};
use crate::sample;
use crate::scenario::{Expectation, Root};

fn wait(vcpu: usize, site: &str, step: &str, awaits: Vec<usize>, interrupts_enabled: bool) -> WaitReport {
    let (word, until) = if vcpu == 0 { ("flag WAIT", "to clear") } else { ("gate", "to become 1") };
    WaitReport {
        vcpu,
        site: site.into(),
        step: step.into(),
        word: word.into(),
        address: Address(0x40_0060),
        record: Some(Address(0x40_0040)),
        gone: None,
        value: 1,
        until: until.into(),
        awaits,
        awaited_do: if vcpu == 0 { "running its callback".into() } else { String::new() },
        context: "task".into(),
        depth: 0,
        interrupts_enabled,
        closed: true,
    }
}

fn seed_deadlock() -> RunResult {
    let mut outcome = sample::outcome(Verdict::Stall(Stall {
        kind: StallKind::Deadlock,
        strength: Strength::Observed,
        culprit: Some(Culprit { vcpu: 0, site: "call_many".into(), reason: "wait=0 became wait=1".into() }),
        root: vec![],
        waits: vec![wait(0, "call_many", "", vec![1], true), wait(1, "ipi_handler", "B3", vec![0], false)],
    }));
    outcome.words = Words(vec![("count".into(), 0), ("gate".into(), 0)]);
    let mut run = sample::run(2);
    run.expectation = Expectation {
        verdict: "stall",
        kind: Some("deadlock"),
        culprit: Root::Site("call_many".into()),
        ..Expectation::pass("the callee waits for the gate")
    }
    .into();
    RunResult::new(run, outcome)
}

#[test]
fn block_of_a_stall_shows_who_waits_for_whom_and_the_culprit() {
    assert_eq!(
        block(&seed_deadlock(), false),
        "call/sample@vcpus=2\n\
         STALL deadlock   2 vCPUs   observed   38 ms   as expected\n\
         \x20 vcpu0   call_many      waits for flag WAIT of record 0x400040 to clear   ← vcpu1 (running its callback)\n\
         \x20 vcpu1   ipi_handler B3 waits for gate 0x400060 to become 1, IF=0         ← vcpu0\n\
         \x20 culprit vcpu0 in call_many: wait=0 became wait=1; count=0 gate=0\n"
    );
}

#[test]
fn block_of_a_plain_guests_stall_shows_what_each_vcpu_reads_and_its_console() {
    let mut result = seed_deadlock();
    let stall =
        Stall { kind: StallKind::Livelock, strength: Strength::Proved, culprit: None, root: vec![], waits: vec![] };
    let mut outcome = sample::outcome(Verdict::Stall(stall));
    let (address, value) = (Address(0x40_0060), Address(1));
    let last_writer = Some("vcpu1 at main+0x9 (mov)".into());
    let reads = vec![ReadOutcome {
        address,
        symbol: Some("lock".into()),
        size: 4,
        value,
        ends: "when it becomes 0".into(),
        last_writer,
    }];
    let aside = vec!["rcx".into()];
    let (does, rip) = ("spins".into(), "lock+0x4".into());
    outcome.wait0 = Wait0Outcome::NotApplicable;
    outcome.loops = vec![LoopOutcome { vcpu: 0, does, rip, reads, aside }];
    outcome.console = Some(ConsoleOutcome { text: "hello\n\u{1b}[31mbye\r\n".into(), dropped: 0 });
    result.run.expectation = Expectation::asked("stall").expect("a verdict").into();
    assert_eq!(
        block(&RunResult::new(result.run, outcome), false),
        "call/sample@vcpus=2\n\
         STALL livelock   2 vCPUs   proved   38 ms   as expected\n\
         \x20 vcpu0   spins at lock+0x4: reads lock 0x400060 (4 bytes, 0x1), which ends it when it becomes 0 and \
         was last written by vcpu1 at main+0x9 (mov); set aside rcx\n\
         \x20 console hello\n\
         \x20 console bye\n"
    );
}

#[test]
fn unexpected_pass_shows_what_was_expected_and_why() {
    let mut result = seed_deadlock();
    result.outcome = sample::outcome(Verdict::Pass);
    let text = block(&RunResult::new(result.run, result.outcome), false);
    assert!(text.contains("PASS   2 vCPUs   38 ms   NOT AS EXPECTED"), "{text}");
    assert!(text.contains("not as expected: pass, expected stall deadlock"), "{text}");
    assert!(text.contains("because the callee waits for the gate"), "{text}");
}

#[test]
fn intervention_is_told_whatever_the_verdict_is_and_however_many_runs_there_are() {
    let mut text = Vec::new();
    let mut report = Human::new(&mut text);
    report.begin(&Start { scenarios: 13, ..crate::report::test::start() }).unwrap();
    let interventions = vec!["vcpu1: an nmi sent by the debugger".to_owned()];
    let outcome = RunOutcome { interventions, ..sample::outcome(Verdict::Pass) };
    report.result(&RunResult::new(sample::run(2), outcome)).unwrap();
    report.end(&Summary::default()).unwrap();
    let text = plain(std::str::from_utf8(&text).unwrap());
    assert!(text.contains("as expected   after interventions\n"), "{text}");
    assert!(text.contains("  intervention: vcpu1: an nmi sent by the debugger\n"), "{text}");
}

#[test]
fn many_runs_take_a_line_a_scenario() {
    let mut text = Vec::new();
    let mut report = Human::new(&mut text);
    report.begin(&Start { scenarios: 13, ..crate::report::test::start() }).unwrap();
    let mut summary = Summary { asked: 13, ..Summary::default() };
    for run in sample::selection(13).cells {
        let result = RunResult::new(run, sample::outcome(Verdict::Pass));
        summary.count(&result);
        report.result(&result).unwrap();
    }
    report.end(&summary).unwrap();
    let text = plain(std::str::from_utf8(&text).unwrap());
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.starts_with("ok    call/sample") && text.contains("13 pass"), "{text}");
    assert!(text.contains("13 runs: 13 pass; all as expected"), "{text}");
}

#[test]
fn guest_text_cannot_drive_the_terminal() {
    assert_eq!(plain("a\u{1b}[31mb\u{7}c"), "ab\u{fffd}c");
}

#[test]
fn endless_reasons_are_cut_between_characters() {
    assert_eq!(shortened(&"µ".repeat(401)), format!("{} … (2 more bytes)", "µ".repeat(400)));
    assert_eq!(shortened("short"), "short");
}

#[test]
fn closed_pipe_is_no_error() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut report = Human::new(Closed);
    assert!(report.result(&seed_deadlock()).is_ok() && report.end(&Summary::default()).is_ok());
}

#[test]
fn awaited_vcpus_are_a_range_where_they_are_many() {
    assert_eq!(awaited(&[1, 2, 3]), "vcpu1, vcpu2, vcpu3");
    assert_eq!(awaited(&(1..255).collect::<Vec<_>>()), "vcpu1 to vcpu254");
    assert_eq!(awaited(&[]), "nobody");
}

#[test]
fn one_vcpu_is_told_in_the_singular() {
    let shown = |vcpus| block(&RunResult::new(sample::run(vcpus), sample::outcome(Verdict::Pass)), false);
    assert!(shown(1).contains("   1 vCPU   ") && shown(2).contains("   2 vCPUs   "), "{}", shown(1));
}
