//! Holds and faults of scenarios that a user writes, on this machine's /dev/kvm: what comes about is reported with who did it, and
//! what does not is never a silent pass. Each test runs the binary as a user does and reads its JSON lines.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ran;

use assert_cmd::Command;
use ran::{Ran, stallbench};
use serde_json::{Value, json};

/// A scenario with three vCPUs in which vCPU 0 and vCPU 1 call each other, and which passes if nothing comes between.
struct Calls {
    holds: Vec<&'static str>,
    faults: Vec<&'static str>,
    expect: &'static str,
}

const PASS: &str = "verdict = 'pass'";

impl Calls {
    fn held(hold: &'static str) -> Self {
        Self { holds: vec![hold], faults: vec![], expect: PASS }
    }

    fn faulty(fault: &'static str) -> Self {
        Self { holds: vec![], faults: vec![fault], expect: PASS }
    }

    fn expect(self, expect: &'static str) -> Self {
        Self { expect, ..self }
    }

    fn run(&self) -> Ran {
        let Self { holds, faults, expect } = self;
        run(&format!(
            "subject = 'mine'\nabout = 'of a user'\n[[scenario]]\nname = 'calls'\ncase = 'mutual-calls'\n\
             story = 'two calls'\nvcpus = [3]\nset = {{ call = 'llist', fix = 'present' }}\n\
             holds = {holds:?}\nfaults = {faults:?}\n[[scenario.expect]]\n{expect}\nbecause = 'nothing comes between'\n"
        ))
    }
}

fn run(scenarios: &str) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.toml");
    std::fs::write(&file, scenarios).unwrap();
    stallbench(&[file.to_str().unwrap()])
}

impl Ran {
    /// Not as expected, for this reason and no other.
    #[track_caller]
    fn assert_unexpected(&self, verdict: &str, reason: &str) {
        assert_eq!(self.code, Some(100), "{}", self.said);
        let result = self.only();
        assert_eq!((&result["verdict"], &result["as_expected"]), (&json!(verdict), &json!(false)), "{result:#}");
        assert_eq!(result["differences"], json!([reason]), "{result:#}");
        assert!(self.said.contains(&format!("not as expected: {reason}")), "{}", self.said);
    }

    /// Refused before anything runs, for this reason.
    #[track_caller]
    fn assert_refused(&self, reason: &str) {
        assert_eq!(self.code, Some(2), "{}", self.said);
        assert!(self.results.is_empty(), "{}", self.said);
        assert!(self.said.contains(reason), "{}", self.said);
    }

    #[track_caller]
    fn assert_expected(&self) {
        assert_eq!(self.code, Some(0), "{}", self.said);
    }
}

#[test]
fn hold_that_nobody_reaches_is_not_as_expected() {
    let ran = Calls::held("2 at call_other/begin until quiet").run();
    ran.assert_unexpected("pass", "no vCPU was ever held by '2 at call_other/begin until quiet'");
    assert_eq!(ran.only()["injected"]["holds"][0]["vcpu"], Value::Null);
}

#[test]
fn hold_at_an_arrival_that_never_comes_is_not_as_expected() {
    let ran = Calls::held("1 at call_other/begin#2 until quiet").run();
    ran.assert_unexpected("pass", "no vCPU was ever held by '1 at call_other/begin#2 until quiet'");
}

#[test]
fn vcpu_that_is_held_to_the_end_is_not_as_expected_even_where_its_stall_is() {
    let hold = "1 at call_other/begin until 0 at kexec/loaded";
    let ran = Calls::held(hold).expect("verdict = 'stall'\nkind = 'absent-member'\nwords = { ran = 1 }").run();
    ran.assert_unexpected("stall", &format!("vcpu1 is still held by '{hold}': what ends it never came"));
}

#[test]
fn vcpu_that_is_held_for_ever_by_declaration_is_as_declared() {
    let held = Calls::held("1 at call_other/begin until never");
    let ran = held.expect("verdict = 'stall'\nkind = 'absent-member'\nculprit = 'none'\nwords = { ran = 1 }").run();
    ran.assert_expected();
    let hold = &ran.only()["injected"]["holds"][0];
    assert_eq!((&hold["vcpu"], &hold["over"]), (&json!(1), &json!(false)));
}

#[test]
fn held_vcpu_is_let_go_when_nothing_else_moves() {
    let ran = Calls::held("1 at call_other/begin until quiet").expect("verdict = 'pass'\nwords = { ran = 2 }").run();
    ran.assert_expected();
    let hold = &ran.only()["injected"]["holds"][0];
    assert_eq!((&hold["vcpu"], &hold["over"]), (&json!(1), &json!(true)));
}

#[test]
fn fault_without_an_interrupt_to_hit_is_not_as_expected() {
    let ran = Calls::faulty("drop ipi nmi to 1").run();
    ran.assert_unexpected("pass", "the fault 'drop ipi nmi to 1' found nothing to hit");
    let ran = Calls::faulty("duplicate ipi call-single from 0 to 1 #2").run();
    ran.assert_unexpected("pass", "the fault 'duplicate ipi call-single from 0 to 1 #2' found nothing to hit");
    let ran = Calls::faulty("delay ipi call-single from 2 until 0 at call_other/begin").run();
    let fault = "delay ipi call-single from 2 until 0 at call_other/begin";
    ran.assert_unexpected("pass", &format!("the fault '{fault}' found nothing to hit"));
}

#[test]
fn host_that_finds_no_init_to_lose_is_not_as_expected() {
    let ran = Calls::faulty("lose-init 2").run();
    ran.assert_unexpected("pass", "the fault 'lose-init 2' found nothing to hit");
    assert_eq!(ran.only()["injected"]["faults"][0]["by"], "host-injected");
}

#[test]
fn dropped_interrupt_is_marked_as_the_guest_s_doing_wherever_its_result_is_shown() {
    let expect = "verdict = 'stall'\nkind = 'lost-interrupt'\nculprit-vcpu = 0\nwords = { ran = 1 }";
    let ran = Calls::faulty("drop ipi call-single from 0 to 1").expect(expect).run();
    ran.assert_expected();
    let fault = &ran.only()["injected"]["faults"][0];
    assert_eq!((&fault["by"], &fault["hits"]), (&json!("guest-injected"), &json!(1)), "{fault:#}");
    assert!(ran.only()["culprit"]["reason"].as_str().unwrap().contains("guest-injected"), "{:#}", ran.only());
}

#[test]
fn duplicated_interrupt_finds_nothing_left_to_do() {
    let ran =
        Calls::faulty("duplicate ipi call-single from 0 to 1").expect("verdict = 'pass'\nwords = { ran = 2 }").run();
    ran.assert_expected();
}

#[test]
fn delayed_interrupt_arrives_when_it_is_let_go_and_not_before() {
    let delayed = |until: &str, expect: &str| {
        run(&format!(
            "subject = 'mine'\nabout = 'of a user'\n[[scenario]]\nname = 'late'\ncase = 'set-mtrr'\nstory = 'a late interrupt'\n\
             vcpus = [2]\nset = {{ call = 'llist' }}\nfaults = ['delay ipi call-single from 0 to 1 until {until}']\n\
             [[scenario.expect]]\n{expect}\nbecause = 'everything waits for the interrupt'\n"
        ))
    };
    // Behind the call, which returns without it.
    let ran = delayed("0 at set_mtrr/A1", "verdict = 'pass'\nwords = { count = 0 }");
    ran.assert_expected();
    assert_eq!(ran.only()["injected"]["faults"][0]["hits"], json!(1));
    // Behind the wait for what it would bring about.
    let ran = delayed("0 at set_mtrr/begin#2", "verdict = 'stall'\nkind = 'lost-interrupt'\nwords = { count = 1 }");
    ran.assert_expected();
}

#[test]
fn vcpu_that_is_never_started_is_named_as_absent() {
    let ran = run(
        "subject = 'mine'\nabout = 'of a user'\n[[scenario]]\nname = 'a'\ncase = 'monarch'\nstory = 's'\nvcpus = [3]\n\
         set = { fix = 'absent' }\nfaults = ['no-start last']\n[[scenario.expect]]\nverdict = 'stall'\nkind = 'absent-member'\n\
         culprit-vcpu = 2\nbecause = 'all vCPUs are waited for, and one is never started'\n",
    );
    ran.assert_expected();
    assert_eq!(ran.only()["injected"]["faults"][0]["by"], "guest-injected");
}

#[test]
fn unknown_pause_point_names_the_nearest() {
    let ran = Calls::held("1 at call_other/began until quiet").run();
    ran.assert_refused("the image has no pause point 'call_other/began'; did you mean call_other/begin");
    let ran = Calls::held("1 at call_other/begin until 0 at kexec/load").run();
    ran.assert_refused("the image has no pause point 'kexec/load'; did you mean kexec/loaded");
    let ran = Calls::faulty("delay ipi call until 0 at kexec/load").run();
    ran.assert_refused("the image has no pause point 'kexec/load'; did you mean kexec/loaded");
}

#[test]
fn vcpu_that_the_run_does_not_have_is_refused() {
    Calls::held("3 at call_other/begin until quiet").run().assert_refused("there is no vCPU 3 in a run with 3");
    Calls::faulty("keep-out 3 until quiet").run().assert_refused("there is no vCPU 3 in a run with 3");
}

#[test]
fn what_is_no_hold_and_no_fault_is_refused_with_what_was_expected() {
    let ran = Calls::held("1 at call_other/begin until tomorrow").run();
    ran.assert_refused("'1 at call_other/begin until tomorrow' is no hold: expected 'VCPU at POINT until");
    let ran = Calls::faulty("drop ipi telegram to 1").run();
    ran.assert_refused("'drop ipi telegram to 1' is no fault: expected 'drop|duplicate|delay ipi IPI");
    let nine = Calls { holds: vec!["1 at call_other/begin until quiet"; 9], faults: vec![], expect: PASS };
    nine.run().assert_refused("9 holds");
}

#[test]
fn unknown_pattern_is_refused() {
    for command in ["run", "list"] {
        let output = Command::cargo_bin("stallbench").unwrap().args([command, "C99"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("no scenario, subject, group or pattern is named 'C99'"), "{said}");
    }
}
