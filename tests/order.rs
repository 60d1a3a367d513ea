//! The order of MTRR programming on this machine's /dev/kvm: the whole procedure is seen, each step that is left out is found by
//! the mode that shows it, and by no other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ran;

use assert_cmd::Command;
use ran::stallbench;
use serde_json::Value;

fn only(arguments: &[&str]) -> (Option<i32>, Value) {
    let ran = stallbench(arguments);
    (ran.code, ran.only().clone())
}

/// The steps of which this is known, by their numbers.
fn steps(result: &Value, finding: &str) -> Vec<u64> {
    let number = |word: &String| word.split('-').next().unwrap().parse().unwrap();
    let steps = result["order"]["steps"].as_object().unwrap();
    let mut numbers: Vec<_> =
        steps.iter().filter(|(_, found)| *found == finding).map(|(word, _)| number(word)).collect();
    numbers.sort_unstable();
    numbers
}

/// What leaves no trace at an access to an MTRR.
const UNSEEN: [u64; 7] = [5, 7, 11, 12, 13, 14, 15];
const ALL: [u64; 14] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Scenarios that leave one step out: the step, and whether an access shows it.
const LEFT_OUT: [(&str, u64, bool); 8] = [
    ("mtrr/order-no-irq-off@vcpus=2", 2, true),
    ("mtrr/order-no-barrier@vcpus=2", 3, true),
    ("mtrr/order-no-cd@vcpus=2", 4, true),
    ("mtrr/order-no-wbinvd@vcpus=2", 5, false),
    ("mtrr/order-no-cr3@vcpus=2,global-pages=off", 7, false),
    ("mtrr/order-no-disable@vcpus=2", 8, true),
    ("mtrr/order-no-flush-after@vcpus=2,global-pages=on", 11, false),
    ("mtrr/order-no-flush-after@vcpus=2,global-pages=off", 11, false),
];

#[test]
fn whole_procedure_is_ok_in_what_each_mode_shows() {
    let (code, step) = only(&["mtrr/order@vcpus=4,global-pages=on"]);
    assert_eq!((code, steps(&step, "ok")), (Some(0), ALL.to_vec()), "{step:#}");
    assert_eq!(step["order"]["procedures"], 4);
    assert!(step["order"]["instructions"].as_u64() > Some(400), "{step:#}");
    // E off, base, mask, E on, and a look at the default type before, on each vCPU.
    assert_eq!(step["order"]["accesses"], 20);
    let (code, filter) = only(&["mtrr/today@vcpus=4,apic=x2apic,initiator=0", "--order", "filter"]);
    assert_eq!((code, steps(&filter, "not-observed")), (Some(0), UNSEEN.to_vec()), "{filter:#}");
    assert_eq!((steps(&filter, "ok").len(), &filter["order"]["accesses"]), (7, &20.into()), "{filter:#}");
    assert_eq!(filter["order"]["instructions"], 0);
    let (code, off) = only(&["mtrr/today@vcpus=4,apic=x2apic,initiator=0"]);
    assert_eq!((code, steps(&off, "not-observed")), (Some(0), ALL.to_vec()), "{off:#}");
}

#[test]
fn each_step_left_out_is_found_by_step_and_is_the_only_one() {
    for (scenario, step, _) in LEFT_OUT {
        let (_, result) = only(&[scenario, "--order", "step"]);
        assert_eq!(steps(&result, "violated"), [step], "{result:#}");
        assert_ne!(result["verdict"], "pass", "{result:#}");
        assert!(steps(&result, "not-observed").is_empty(), "{result:#}");
    }
}

#[test]
fn step_without_a_trace_at_an_access_passes_the_filter_and_is_not_said_to_be_ok() {
    for (scenario, step, shows) in LEFT_OUT {
        let (_, result) = only(&[scenario, "--order", "filter"]);
        let expected = if shows { "violated" } else { "not-observed" };
        assert!(steps(&result, expected).contains(&step), "{result:#}");
        assert_eq!(result["verdict"] == "pass", !shows, "{result:#}");
    }
}

#[test]
fn without_a_look_at_the_order_the_same_guests_pass_unexpectedly() {
    // A stop of the machine may happen to find the caches of this one off, while the initiator is held.
    for (scenario, ..) in LEFT_OUT.into_iter().filter(|(_, step, _)| *step != 3) {
        let (code, result) = only(&[scenario, "--order", "off"]);
        assert_eq!((code, &result["verdict"]), (Some(100), &"pass".into()), "{result:#}");
        assert_eq!(steps(&result, "not-observed"), ALL, "{result:#}");
    }
}

#[test]
fn fix_in_place_of_the_step_left_out_is_unexpected() {
    for (scenario, step, _) in LEFT_OUT {
        let (code, result) = only(&[scenario, "--set", "mtrr-skip=none"]);
        assert_eq!((code, &result["verdict"]), (Some(100), &"pass".into()), "step {step}: {result:#}");
    }
}

#[test]
fn step_left_out_of_the_whole_procedure_is_unexpected() {
    for skip in ["irq-off", "cd", "wbinvd", "pge", "disable", "flush-after", "cd-back", "pge-back"] {
        let (code, result) = only(&["mtrr/order@vcpus=2,global-pages=on", "--set", &format!("mtrr-skip={skip}")]);
        assert_eq!((code, &result["as_expected"]), (Some(100), &false.into()), "{skip}: {result:#}");
        assert!(!steps(&result, "violated").is_empty(), "{skip}: {result:#}");
    }
}

#[test]
fn stall_within_the_procedure_stays_a_stall_when_it_is_stepped() {
    let (code, result) = only(&["mtrr/no-gate-store@vcpus=4", "--order", "step"]);
    assert_eq!((code, &result["verdict"], &result["kind"]), (Some(0), &"stall".into(), &"deadlock".into()));
    assert_eq!(steps(&result, "violated"), Vec::<u64>::new(), "{result:#}");
    assert_eq!(
        steps(&result, "not-observed"),
        [14, 15],
        "the initiator has programmed, and nobody has left: {result:#}"
    );
}

#[test]
fn unknown_mode_is_refused_with_those_that_there_are() {
    let output =
        Command::cargo_bin("stallbench").unwrap().args(["run", "mtrr/order", "--order", "all"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected off, filter or step"));
}
