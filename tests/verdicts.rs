//! The verdicts of real guests on this machine's /dev/kvm: what must stall stalls as declared, what is flipped is found out, and
//! what is fixed is no longer as expected. Each test runs the binary as a user does and reads its JSON lines.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ran;

use ran::{Ran, stallbench};
use serde_json::Value;

impl Ran {
    fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.said);
        self
    }
}

/// vCPU and site of each wait, with its step where it has one.
fn waits(result: &Value) -> Vec<(u64, String)> {
    let site = |wait: &Value| {
        let text = |key: &str| wait[key].as_str().unwrap_or_default();
        format!("{} {}", text("site"), text("step")).trim_end().to_owned()
    };
    let wait = |wait: &Value| (wait["vcpu"].as_u64().unwrap(), site(wait));
    let mut waits: Vec<_> = result["waits"].as_array().unwrap().iter().map(wait).collect();
    waits.sort();
    waits
}

fn assert_stall(result: &Value, kind: &str, culprit: Option<&str>) {
    assert_eq!(result["verdict"], "stall", "{result:#}");
    assert_eq!(result["kind"], kind, "{result:#}");
    assert_eq!(result["strength"], "proved", "{result:#}");
    assert_eq!(result["culprit"]["site"].as_str(), culprit, "{result:#}");
}

#[test]
fn broadcast_of_2_6_28_without_memory_holds_all_others_at_the_gate() {
    let ran = stallbench(&["mtrr/stack-broadcast"]);
    let result = ran.assert_code(0).only();
    assert_stall(result, "deadlock", Some("call_many"));
    assert_eq!(result["culprit"]["vcpu"], 0);
    assert_eq!(result["words"], serde_json::json!({ "count": 0, "gate": 0 }));
    let expected: Vec<_> = [(0, "call_many"), (1, "ipi_handler B3"), (2, "ipi_handler B3"), (3, "ipi_handler B3")]
        .map(|(vcpu, site)| (vcpu, site.to_owned()))
        .into();
    assert_eq!(waits(result), expected);
    assert_eq!(result["as_expected"], true);
}

#[test]
fn serial_fallback_of_2_6_29_holds_exactly_one_at_the_gate() {
    let ran = stallbench(&["mtrr/serial-fallback"]);
    let result = ran.assert_code(0).only();
    assert_stall(result, "deadlock", Some("call_single"));
    assert_eq!(result["words"], serde_json::json!({ "count": 2, "gate": 0 }));
    assert_eq!(waits(result), [(0, "call_single".to_owned()), (1, "ipi_handler B3".to_owned())]);
}

#[test]
fn gate_that_is_not_opened_turns_a_pass_into_a_deadlock_without_a_culprit() {
    stallbench(&["mtrr/percpu-lock@vcpus=4"]).assert_code(0);
    let ran = stallbench(&["mtrr/percpu-lock@vcpus=4", "--set", "flip=no-gate-store"]);
    let result = ran.assert_code(100).only();
    assert_stall(result, "deadlock", None);
    assert_eq!(waits(result)[0], (0, "set_mtrr A6".to_owned()));
    assert_eq!(result["as_expected"], false);
}

#[test]
fn flag_that_is_not_cleared_turns_a_pass_into_a_deadlock_of_the_caller() {
    stallbench(&["mtrr/release"]).assert_code(0);
    let ran = stallbench(&["mtrr/release", "--set", "flip=no-release-clear"]);
    let result = ran.assert_code(100).only();
    assert_stall(result, "deadlock", Some("call_single"));
    assert_eq!(result["words"], serde_json::json!({ "count": 2, "gate": 0 }));
}

#[test]
fn interrupt_that_is_not_sent_turns_a_pass_into_a_lost_interrupt() {
    stallbench(&["mtrr/today@vcpus=4,apic=x2apic,initiator=3"]).assert_code(0);
    let ran = stallbench(&["mtrr/today@vcpus=4,apic=x2apic,initiator=3", "--set", "flip=no-ipi"]);
    let result = ran.assert_code(100).only();
    assert_eq!((&result["verdict"], &result["kind"]), (&"stall".into(), &"lost-interrupt".into()), "{result:#}");
    assert_eq!(waits(result), [(3, "set_mtrr A3".to_owned())]);
}

#[test]
fn write_that_is_left_out_turns_a_pass_into_inconsistent() {
    let ran = stallbench(&["mtrr/replicate@vcpus=4,initiator=0", "--set", "flip=no-mtrr-write"]);
    let result = ran.assert_code(100).only();
    assert_eq!(result["verdict"], "inconsistent", "{result:#}");
    assert_eq!(result["mtrr"]["consistent"], false);
}

#[test]
fn control_register_that_is_not_given_back_turns_a_pass_into_inconsistent() {
    for (skipped, named) in [("pge-back", "vcpu3: CR4.PGE is 0, in vcpu0 it is 1"), ("cd-back", "vcpu3: CR0.CD is 1")] {
        let ran = stallbench(&["mtrr/percpu-lock@vcpus=4", "--set", &format!("mtrr-skip={skipped}")]);
        let result = ran.assert_code(100).only();
        assert_eq!(
            (&result["verdict"], &result["mtrr"]["consistent"]),
            (&"inconsistent".into(), &true.into()),
            "{result:#}"
        );
        assert_eq!(result["control"]["consistent"], false);
        assert!(result["reason"].as_str().unwrap().starts_with(named), "{result:#}");
    }
}

#[test]
fn interrupts_that_are_off_for_longer_than_allowed_turn_a_pass_into_a_breach() {
    stallbench(&["mtrr/percpu-lock@vcpus=4", "--set", "irq-off-budget=1000"]).assert_code(0);
    let ran = stallbench(&["mtrr/percpu-lock@vcpus=4", "--set", "irq-off-budget=3"]);
    let result = ran.assert_code(100).only();
    assert_eq!((&result["verdict"], &result["kind"]), (&"breach".into(), &"irq-off".into()), "{result:#}");
    assert_eq!((&result["vcpu"], &result["site"]), (&0.into(), &"set_mtrr".into()), "{result:#}");
}

/// Whether ring 0 of a guest runs in the instruction emulator of this host's KVM.
fn is_emulated() -> bool {
    std::path::Path::new("/sys/module/kvm_pvm").exists()
}

#[test]
fn vcpu_that_works_for_long_is_the_root_of_the_waits_and_never_a_stall() {
    let ran = stallbench(&["slow/busy-member", "--repeat", "3"]);
    ran.assert_code(0);
    for result in &ran.results {
        let last = result["vcpus"].as_u64().unwrap() - 1;
        let slow = &result["slow"];
        assert_eq!(result["verdict"], "pass", "{result:#}");
        // Where guests run natively the work takes less time than any suspicion.
        if slow.is_null() && !is_emulated() {
            continue;
        }
        assert_eq!(slow["vcpu"].as_u64(), Some(last), "{result:#}");
        assert!(slow["doing"].as_str().unwrap().contains("slow::work"), "{result:#}");
        assert_eq!(slow["waiting"].as_array().unwrap().len() as u64, last, "{result:#}");
        assert!(result["watch"]["suspicions"].as_u64() > Some(0), "{result:#}");
    }
}

#[test]
fn budget_that_ends_before_the_work_names_who_is_at_it() {
    // A host that is busy enough may not run it at all, or not up to the work.
    let is_named = |_| {
        let ran = stallbench(&["slow/busy-member@vcpus=2", "--budget", "40", "--set", "spin=yield"]);
        let result = ran.assert_code(100).only();
        assert!(["budget", "starved"].contains(&result["verdict"].as_str().unwrap()), "{result:#}");
        let reason = result["reason"].as_str().unwrap();
        result["verdict"] == "budget" && reason.starts_with("vcpu0 waits for vcpu1, which runs at ")
    };
    assert!((0..50).any(is_named), "none of fifty runs was broken off at the work");
}

#[test]
fn fix_in_a_stalling_case_is_not_as_expected() {
    for fix in ["call=percpu-lock", "call=release", "call=llist", "alloc=ok"] {
        let ran = stallbench(&["mtrr/stack-broadcast", "--set", fix]);
        let result = ran.assert_code(100).only();
        assert_eq!((&result["verdict"], &result["as_expected"]), (&"pass".into(), &false.into()), "{fix}");
    }
}

#[test]
fn wait_that_is_published_and_not_true_is_found_out() {
    let ran = stallbench(&["call/smallest", "--set", "flip=false-wait"]);
    let result = ran.assert_code(100).only();
    // It spins for ever, elsewhere: that is proved without its word, and the wait that it claims is none.
    assert_eq!((&result["verdict"], &result["strength"]), (&"stall".into(), &"proved".into()), "{result:#}");
    assert_eq!((&result["waits"], &result["culprit"]), (&serde_json::json!([]), &Value::Null), "{result:#}");
    assert_eq!(result["contradictions"][0]["vcpu"], 0, "{result:#}");
}

#[test]
fn promise_that_is_broken_without_a_stall_is_a_breach() {
    let ran = stallbench(&["call/broken-promise"]);
    ran.assert_code(0);
    assert_eq!(ran.results.len(), 4);
    for result in &ran.results {
        assert_eq!((&result["verdict"], &result["kind"]), (&"breach".into(), &"wait0-waited".into()), "{result:#}");
    }
}

#[test]
fn rendezvous_leaves_all_vcpus_with_the_range_that_was_asked_for_and_no_other() {
    let ran = stallbench(&["mtrr/today@vcpus=4"]);
    ran.assert_code(0);
    assert!(ran.results.iter().all(|result| result["mtrr"]["consistent"] == true), "{}", ran.said);
    // The range that is there at start is no change: the oracle asks for values that differ from it.
    let same = ["mtrr-reg=0", "mtrr-base=0xc0000000", "mtrr-size=0x40000000", "mtrr-type=uc"];
    let settings = same.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = ["mtrr/percpu-lock@vcpus=2"].into_iter().chain(settings).collect();
    let ran = stallbench(&arguments);
    assert_eq!(ran.assert_code(100).only()["verdict"], "inconsistent");
}

#[test]
fn panic_of_a_guest_reaches_the_host_with_text_file_and_line() {
    let ran = stallbench(&["mtrr/timed-out@vcpus=2"]);
    let result = ran.assert_code(0).only();
    assert_eq!(result["verdict"], "guest-fault");
    assert!(ran.said.contains("mtrr: timed out waiting for other CPUs"), "{}", ran.said);
    assert!(ran.said.contains("rendezvous.rs:"), "{}", ran.said);
}

#[test]
fn same_seed_gives_the_same_failures() {
    let fallbacks = |seed: &str| {
        let ran = stallbench(&["call/random-failure", "--set", "call=kmalloc-2.6.29", "--seed", seed]);
        let result = ran.only();
        (result["verdict"].clone(), result["words"].clone(), result["culprit"].clone())
    };
    assert_eq!(fallbacks("7"), fallbacks("7"));
    assert_eq!(fallbacks("8"), fallbacks("8"));
}

/// Every cell of the default catalogue but the table's: those are run by `run_table`.
#[test]
fn whole_catalogue_is_as_expected() {
    let ran = stallbench(&[]);
    ran.assert_code(0);
    assert!(ran.results.len() > 500, "{}", ran.said);
    assert!(ran.results.iter().all(|result| result["as_expected"] == true), "{}", ran.said);
}

#[test]
fn two_hundred_runs_of_a_deadlock_and_of_its_fix_have_two_verdicts() {
    let ran = stallbench(&["mtrr/stack-broadcast", "mtrr/percpu-lock@vcpus=4", "--repeat", "100"]);
    ran.assert_code(0);
    assert_eq!(ran.results.len(), 200);
}
