//! One run on this machine's /dev/kvm, as the library gives it: what ends it beside a verdict, and what cannot be run at all.
//! The verdicts themselves are tested through the binary, in tests/verdicts.rs.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use stallbench_abi::knob::{self, Knob};
use stallbench_core::HostKvm;
use stallbench_image::program;
use stallbench_runner::dump::Keep;
use stallbench_runner::execute::{ExecuteError, RunPlan, execute};
use stallbench_runner::oracle::order::Mode;
use stallbench_runner::outcome::{RunOutcome, StallKind, Strength, Verdict, Wait0Outcome};

fn plan(case: &str, vcpus: usize, set: &[(&Knob, &str)]) -> RunPlan {
    let (case, _) = program().case(case).expect("a case of the image");
    let mut knobs = [0; knob::KNOB_SLOTS];
    knob::ALL.iter().for_each(|knob| knobs[knob.number as usize] = knob.default_value());
    for (knob, value) in set {
        knobs[knob.number as usize] = knob.parse(value, vcpus).expect("a value of the knob");
    }
    let (injected, layout, order) = (Arc::default(), None, Mode::Off);
    let budget = Duration::from_secs(60);
    RunPlan { case, vcpus, knobs, seed: 1, injected, layout, order, budget, keep: Keep::default(), control: None }
}

fn run(plan: &RunPlan) -> Result<RunOutcome, ExecuteError> {
    execute(&HostKvm::open().expect("/dev/kvm"), program(), plan, &AtomicBool::new(false))
}

#[test]
fn stalled_run_has_its_words_and_mtrrs_beside_the_verdict() {
    let outcome = run(&plan("set-mtrr", 3, &[(&knob::CALL, "kmalloc-2.6.28"), (&knob::ALLOC, "fail")])).unwrap();
    let stall = outcome.verdict.stall().expect("a stall");
    assert_eq!(stall.kind, StallKind::Deadlock);
    assert!(stall.waits.iter().all(|wait| wait.closed) && stall.waits.len() == 3, "{stall:#?}");
    assert_eq!((outcome.words.get("count"), outcome.words.get("gate")), (Some(0), Some(0)));
    assert_eq!((outcome.mtrr.consistent, outcome.mtrr.changed), (Some(true), Some(false)));
    assert_eq!(outcome.wait0, Wait0Outcome::Broken);
}

#[test]
fn passing_run_has_every_vcpu_at_rest_and_the_mtrrs_programmed() {
    let outcome = run(&plan("set-mtrr", 2, &[])).unwrap();
    assert_eq!(outcome.verdict, Verdict::Pass, "{outcome:#?}");
    assert_eq!((outcome.mtrr.consistent, outcome.mtrr.changed), (Some(true), Some(true)));
    assert!(outcome.vcpu_states.iter().all(|vcpu| vcpu.phase == "finished" && vcpu.doing == "idle"), "{outcome:#?}");
    assert_eq!((outcome.contradictions.len(), outcome.residual_waits), (0, 0));
}

#[test]
fn false_claim_is_denied_and_what_is_proved_is_the_spin_behind_it() {
    let outcome = run(&plan("plain", 2, &[(&knob::FLIP, "false-wait")])).unwrap();
    let stall = outcome.verdict.stall().expect("it spins for ever, at no wait");
    assert_eq!((stall.strength, stall.waits.len(), &stall.culprit), (Strength::Proved, 0, &None), "{outcome:#?}");
    assert!(outcome.contradictions.iter().all(|contradiction| contradiction.vcpu == 0), "{outcome:#?}");
}

#[test]
fn interrupted_run_is_undecided() {
    let plan = plan("plain", 2, &[(&knob::FLIP, "false-wait")]);
    let outcome = execute(&HostKvm::open().unwrap(), program(), &plan, &AtomicBool::new(true)).unwrap();
    assert_eq!(outcome.verdict, Verdict::Budget { reason: "interrupted".into() });
}

#[test]
fn what_cannot_be_run_is_an_error_with_its_number() {
    let no_case = RunPlan { case: 10_000, ..plan("plain", 2, &[]) };
    assert!(matches!(run(&no_case), Err(ExecuteError::NoCase { case: 10_000, .. })));
    for vcpus in [0, 100_000] {
        let wrong = RunPlan { vcpus, ..plan("plain", 2, &[]) };
        assert!(matches!(run(&wrong), Err(ExecuteError::Create { .. })), "{vcpus}");
    }
}
