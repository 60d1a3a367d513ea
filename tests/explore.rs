//! `stallbench explore` on this machine's /dev/kvm: known answers, with the numbers of states and transitions that lead to them.
//!
//! The numbers are those of the built-in payload on every host; a change of the payload changes them, and a change of the search that
//! does must say why.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ran;

use assert_cmd::Command;
use ran::{Ran, stallbench_explore as explore};
use serde_json::Value;

impl Ran {
    fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.said);
        self
    }
}

/// States, transitions, and states from which no schedule leads to the end.
fn counts(result: &Value) -> [u64; 3] {
    ["states", "transitions", "stuck"].map(|key| result["explored"][key].as_u64().unwrap())
}

/// A run that is as declared, of which all schedules are known.
fn known(name: &str) -> Value {
    let ran = explore(&[name]);
    let result = ran.assert_code(0).only();
    assert_eq!(result["explored"]["complete"], true, "{result:#}");
    result.clone()
}

fn assert_passes(name: &str, states: u64, transitions: u64) {
    let result = known(name);
    assert_eq!(result["verdict"], "pass", "{result:#}");
    assert_eq!(counts(&result), [states, transitions, 0], "{name}");
}

fn assert_stalls(name: &str, kind: &str, culprit: Option<&str>, expected: [u64; 3]) -> Value {
    let result = known(name);
    assert_eq!((&result["verdict"], &result["kind"]), (&"stall".into(), &kind.into()), "{result:#}");
    assert_eq!(result["strength"], "proved", "{result:#}");
    assert_eq!(result["culprit"]["site"].as_str(), culprit, "{result:#}");
    assert_eq!(counts(&result), expected, "{name}");
    result
}

#[test]
fn rendezvous_of_today_passes_in_every_schedule_of_two() {
    assert_passes("mtrr/percpu-lock@vcpus=2", 2376, 4689);
    assert_passes("mtrr/today@vcpus=2,apic=x2apic,initiator=0", 2492, 4930);
    assert_passes("mtrr/today@vcpus=2,apic=xapic,initiator=1", 4854, 9653);
}

#[test]
fn rendezvous_without_memory_stalls_in_every_schedule() {
    let result = assert_stalls("mtrr/serial-fallback@vcpus=2", "deadlock", Some("call_single"), [365, 685, 365]);
    assert_eq!(result["explored"]["schedule"]["no_return"], 0, "{result:#}");
}

#[test]
fn lock_that_is_taken_in_the_wrong_order_is_found_with_no_pause_point() {
    let result = assert_stalls("acceptance/lock-and-call@vcpus=2", "not-accepting", Some("spin_lock"), [527, 974, 76]);
    let schedule = &result["explored"]["schedule"];
    assert!(schedule["no_return"].as_u64() > Some(0), "some schedules lead to the end: {result:#}");
    assert_eq!(result["explored"]["left_out"].as_array().unwrap().len(), 2, "its holds");
    assert_passes("acceptance/lock-and-call-fixed@vcpus=2", 671, 1270);
}

#[test]
fn caller_of_each_other_with_interrupts_off_stall_in_some_schedules() {
    let result = assert_stalls("acceptance/mutual-calls@vcpus=2", "not-accepting", None, [1764, 3482, 529]);
    assert_eq!(result["explored"]["schedule"]["preemptions"], 0, "{result:#}");
}

#[test]
fn vcpu_that_halts_for_good_is_waited_for_in_every_schedule() {
    assert_stalls(
        "acceptance/offline-subject@vcpus=2",
        "absent-member",
        Some("halted with interrupts off"),
        [61, 118, 61],
    );
}

#[test]
fn memory_that_is_used_after_its_life_is_found_by_one_preemption() {
    let result = known("acceptance/early-done@vcpus=2");
    assert_eq!((&result["verdict"], &result["kind"]), (&"breach".into(), &"lifetime".into()), "{result:#}");
    assert_eq!(result["explored"]["schedule"]["preemptions"], 1, "{result:#}");
    assert_passes("acceptance/early-done-fixed@vcpus=2", 247, 438);
}

#[test]
fn nmi_that_comes_at_any_instruction_between_two_accesses_is_followed() {
    assert_stalls("acceptance/nmi-rendezvous@vcpus=2", "not-accepting", Some("stay"), [234, 465, 234]);
}

#[test]
fn interrupt_between_the_two_stores_of_an_icr_is_found_with_no_pause_point() {
    let result = known("records/between-two-stores@vcpus=3");
    assert_eq!((&result["verdict"], &result["kind"]), (&"stall".into(), &"lost-interrupt".into()), "{result:#}");
    assert_eq!(result["culprit"]["site"], "call_and_wait", "{result:#}");
    assert_eq!(result["explored"]["schedule"]["preemptions"], 0, "{result:#}");
}

/// A scenario of its own, which says what exploring it comes to.
const OWN: &str = r#"
subject = "own"
about = ""

[[scenario]]
name = "calls"
case = "mutual-calls"
story = ""
vcpus = [4]
set = { call = "llist", fix = "absent" }

[[scenario.expect]]
verdict = "pass"
because = "one does not begin before the other is through, most often"

[[scenario.explore]]
vcpus = 2
stuck = 529
preemptions = 1

[scenario.explore.expect]
verdict = "stall"
kind = "not-accepting"
because = "some schedule has both call at the same time"
"#;

#[test]
fn what_exploring_comes_to_is_declared_beside_what_a_run_does() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.toml");
    std::fs::write(&file, OWN).unwrap();
    let file = file.to_str().unwrap();
    let ran = explore(&["--declared", file]);
    let result = ran.assert_code(100).only();
    assert_eq!((&result["scenario"], &result["verdict"]), (&"own/calls@vcpus=2".into(), &"stall".into()), "{result:#}");
    let differences = result["differences"].as_array().unwrap();
    assert_eq!(differences[..], ["0 preemptions, expected 1"], "{result:#}");
    std::fs::write(file, OWN.replace("preemptions = 1", "preemptions = 0")).unwrap();
    assert_eq!(explore(&["--declared", file]).assert_code(0).only()["expected"]["kind"], "not-accepting");
}

#[test]
fn caches_that_are_off_on_one_vcpu_alone_are_seen_between_two_stops_too() {
    let result = known("rendezvous/caches-off-alone@vcpus=2");
    assert_eq!((&result["verdict"], &result["kind"]), (&"breach".into(), &"cache-off".into()), "{result:#}");
    assert_passes("rendezvous/caches-off-alone-fixed@vcpus=2", 1769, 3383);
}

#[test]
fn fair_schedule_that_goes_round_for_ever_is_a_livelock_and_no_proof() {
    let result = known("rounds/give-way@vcpus=2");
    assert_eq!((&result["kind"], &result["strength"]), (&"livelock".into(), &"observed".into()), "{result:#}");
    assert_eq!(result["explored"]["stuck"], 0, "another schedule leads out: {result:#}");
    let schedule = &result["explored"]["schedule"];
    let begins = schedule["round_from"].as_u64().unwrap();
    let legs = schedule["legs"].as_array().unwrap();
    let inside = legs.iter().filter(|leg| leg["last"].as_u64() > Some(begins));
    let goes: std::collections::BTreeSet<_> = inside.map(|leg| leg["vcpu"].as_u64()).collect();
    assert_eq!(goes, [Some(0), Some(1)].into(), "nobody is left out: {result:#}");
}

#[test]
fn round_that_is_not_fair_and_wait_that_gives_up_are_no_stall() {
    for name in ["rounds/look-again@vcpus=3", "rounds/give-up@vcpus=3", "rounds/give-way-fixed@vcpus=2"] {
        assert_eq!(known(name)["verdict"], "pass");
    }
}

#[test]
fn search_that_does_not_know_all_states_says_so_and_passes_nothing() {
    let ran = explore(&["mtrr/percpu-lock@vcpus=2", "--max-states", "1000"]);
    let result = ran.assert_code(100).only();
    assert_eq!((&result["verdict"], &result["explored"]["complete"]), (&"budget".into(), &false.into()), "{result:#}");
    assert!(result["explored"]["frontier"].as_u64() > Some(0), "{result:#}");
    // Nobody has looked at a machine: of events and words there is nothing to say.
    assert_eq!(result["differences"], serde_json::json!(["budget, expected pass"]), "{result:#}");
    assert!(ran.said.contains("--max-states"), "{}", ran.said);
}

#[test]
fn stall_without_preemptions_is_proved_before_all_states_are_known() {
    let ran = explore(&["acceptance/mutual-calls@vcpus=2", "--max-states", "1000"]);
    let result = ran.only();
    assert_eq!((&result["verdict"], &result["strength"]), (&"stall".into(), &"proved".into()), "{result:#}");
    let explored = &result["explored"];
    assert_eq!((&explored["complete"], &explored["preemptions"]), (&false.into(), &0.into()), "{result:#}");
    assert_eq!(explored["schedule"]["preemptions"], 0, "{result:#}");
}

#[test]
fn search_that_ends_early_says_how_many_preemptions_it_has_followed() {
    let preemptions = |most: &str| {
        let ran = explore(&["mtrr/percpu-lock@vcpus=2", "--max-states", most]);
        ran.only()["explored"]["preemptions"].clone()
    };
    assert_eq!(preemptions("100"), Value::Null);
    assert_eq!([preemptions("1000"), preemptions("1500")], [1, 2]);
}

/// Walks of that strategy.
fn walks(name: &str, strategy: &str, more: &[&str]) -> Ran {
    let mut arguments = vec![name, "--strategy", strategy];
    arguments.extend(more);
    explore(&arguments)
}

#[test]
fn walks_find_stalls_and_prove_them() {
    for (name, strategy) in [
        ("acceptance/lock-and-call@vcpus=2", "pct"),
        ("records/between-two-stores@vcpus=3", "pct"),
        ("acceptance/mutual-calls@vcpus=2", "random"),
    ] {
        let ran = walks(name, strategy, &[]);
        let result = ran.assert_code(0).only();
        assert_eq!((&result["verdict"], &result["strength"]), (&"stall".into(), &"proved".into()), "{result:#}");
        assert!(result["explored"]["walks"]["walks"].as_u64() < Some(10_000), "{result:#}");
    }
}

#[test]
fn walk_becomes_as_short_as_the_graph_says_and_replays() {
    let directory = tempfile::tempdir().unwrap();
    for (at, (cell, more)) in [
        ("acceptance/lock-and-call@vcpus=2", &[][..]),
        ("acceptance/mutual-calls@vcpus=2", &[]),
        ("rendezvous/unfenced@vcpus=2", &["--model", "tso"]),
    ]
    .into_iter()
    .enumerate()
    {
        let length = |result: &Value| {
            let schedule = &result["explored"]["schedule"];
            ["preemptions", "steps"].map(|key| schedule[key].as_u64().unwrap())
        };
        let nearest = length(explore(&[&[cell], more].concat()).only());
        let trace = directory.path().join(at.to_string());
        let trace = trace.to_str().unwrap();
        let ran = walks(cell, "random", &[more, &["--trace-out", trace]].concat());
        let result = ran.assert_code(0).only();
        assert_eq!(length(result), nearest, "{result:#}");
        let walk = &result["explored"]["walks"]["minimised"];
        assert!(walk["preemptions"].as_u64() > Some(2 + nearest[0]), "it was another way: {result:#}");
        assert!(ran.said.contains("minimised: the walk had"), "{}", ran.said);
        Command::cargo_bin("stallbench").unwrap().args(["replay", trace]).assert().success();
    }
}

#[test]
fn walks_that_find_nothing_say_how_little_that_is() {
    let ran = walks("acceptance/lock-and-call-fixed@vcpus=2", "pct", &["--walks", "200", "--depth", "2"]);
    let result = ran.assert_code(100).only();
    assert_eq!((&result["verdict"], &result["explored"]["complete"]), (&"budget".into(), &false.into()), "{result:#}");
    let made = &result["explored"]["walks"];
    assert_eq!((&made["walks"], &made["endless"], &made["depth"]), (&200.into(), &0.into(), &2.into()), "{result:#}");
    let [agents, steps] = ["agents", "steps"].map(|key| made[key].as_f64().unwrap());
    assert_eq!(made["bound"].as_f64(), Some(1.0 / (agents * steps)), "{result:#}");
    assert!(ran.said.contains("with a probability of at least 1/("), "{}", ran.said);
}

#[test]
fn seed_makes_the_same_walks_and_another_one_others() {
    let way = |seed: &str| {
        let ran = walks("acceptance/mutual-calls@vcpus=2", "random", &["--seed", seed]);
        // What is left of them can be the same.
        ["schedule", "walks"].map(|key| ran.only()["explored"][key].clone())
    };
    let first = way("1");
    assert!(first == way("1") && first != way("2"));
}

#[test]
fn walk_breaks_what_must_hold_while_it_runs() {
    let ran = walks("acceptance/early-done@vcpus=2", "pct", &["--walks", "1000"]);
    let result = ran.assert_code(0).only();
    assert_eq!((&result["verdict"], &result["kind"]), (&"breach".into(), &"lifetime".into()), "{result:#}");
}

#[test]
fn scenario_whose_fault_is_no_part_of_the_state_is_refused() {
    let ran = explore(&["acceptance/lost-init@vcpus=2"]);
    assert_eq!(ran.assert_code(100).only()["verdict"], "budget");
    assert!(ran.said.contains("the injected fault 'lose-init 1' is about a host"), "{}", ran.said);
}

#[test]
fn fault_that_is_over_when_all_are_up_is_explored_and_one_that_keeps_them_from_it_is_said() {
    for cell in ["acceptance/one-sipi-fixed@vcpus=2", "rendezvous/two-counts@vcpus=2"] {
        let ran = explore(&[cell]);
        let result = ran.assert_code(0).only();
        assert_eq!(result["injected"]["faults"][0]["hits"], 1, "{result:#}");
    }
    let ran = explore(&["acceptance/one-sipi@vcpus=2"]);
    assert_eq!(ran.assert_code(100).only()["verdict"], "budget");
    assert!(ran.said.contains("with 'drop ipi sipi to last' it does not come to where exploring"), "{}", ran.said);
}

#[test]
fn vcpu_that_is_started_again_is_followed_in_all_of_its_ways_and_in_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("way.trace");
    let ran = explore(&["acceptance/lost-init-fixed@vcpus=2", "--trace-out", trace.to_str().unwrap()]);
    assert_eq!(ran.assert_code(0).only()["explored"]["complete"], true);
    let steps = std::fs::read_to_string(&trace).unwrap();
    assert!(steps.contains(" init 1 | ") && steps.contains(" sipi 1 0x8 | "), "{steps}");
    Command::cargo_bin("stallbench").unwrap().args(["replay", trace.to_str().unwrap()]).assert().success();
}

#[test]
fn stall_leaves_the_certificate_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let run = ["acceptance/lock-and-call@vcpus=2", "--out", out.to_str().unwrap(), "--dump", "always"];
    explore(&run).assert_code(0);
    let of_run = out.join(run[0]);
    let verify = ["verify", of_run.join("certificate.json").to_str().unwrap()].map(str::to_owned);
    Command::cargo_bin("stallbench").unwrap().args(verify).assert().success();
    assert!(of_run.join("dump.core").is_file());
    let identity: Value = serde_json::from_slice(&std::fs::read(of_run.join("run.json")).unwrap()).unwrap();
    let repeat = identity["repeat"].as_str().unwrap();
    assert!(repeat.starts_with("stallbench explore ") && repeat.contains(run[0]), "{repeat}");
    assert!(explore(&run).assert_code(2).said.contains("is there already"), "and no other run's");
}

#[test]
fn rendezvous_of_today_passes_where_stores_are_seen_late() {
    let ran = explore(&["mtrr/percpu-lock@vcpus=2", "--model", "tso"]);
    let result = ran.assert_code(0).only();
    assert_eq!((&result["verdict"], &result["explored"]["complete"]), (&"pass".into(), &true.into()), "{result:#}");
    assert_eq!(result["explored"]["model"], "tso icr=buffer buffer=256", "{result:#}");
    assert_eq!(counts(result), [7682, 15283, 0]);
}

#[test]
fn interrupt_that_is_sent_before_anything_else_is_a_step_of_its_schedule() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("early.trace");
    let trace = trace.to_str().unwrap();
    let cell = ["rendezvous/half-fenced@vcpus=2", "--model", "tso", "--icr", "early", "--set", "initiator=1"];
    let ran = explore(&[&cell[..], &["--trace-out", trace]].concat());
    let result = ran.only();
    assert_eq!((&result["verdict"], &result["strength"]), (&"stall".into(), &"proved".into()), "{result:#}");
    Command::cargo_bin("stallbench").unwrap().args(["replay", trace]).assert().success();
}

#[test]
fn search_that_does_not_know_yet_what_is_sent_early_says_nothing_of_preemptions() {
    for states in ["50", "100", "150"] {
        let cell = ["rendezvous/half-fenced@vcpus=2", "--model", "tso", "--icr", "early", "--max-states", states];
        let ran = explore(&cell);
        let result = ran.only();
        assert_eq!(result["verdict"], "budget", "{result:#}");
        assert_eq!(result["explored"]["preemptions"], Value::Null, "{result:#}");
    }
}

#[test]
fn search_in_which_a_vcpu_could_hold_back_more_is_not_complete() {
    let ran = explore(&["mtrr/percpu-lock@vcpus=2", "--model", "tso", "--buffer", "2"]);
    let result = ran.assert_code(100).only();
    assert_eq!((&result["verdict"], &result["explored"]["complete"]), (&"budget".into(), &false.into()), "{result:#}");
    assert!(ran.said.contains("--buffer"), "{}", ran.said);
    assert!(result["explored"]["full"].as_u64() > Some(0), "{result:#}");
    assert!(!ran.said.contains("preemptions") && !ran.said.contains("not gone on from"), "{}", ran.said);
}

#[test]
fn interrupt_that_is_sent_before_its_time_is_said_to_be_and_replays() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("early.trace");
    let trace = trace.to_str().unwrap();
    let name = "rendezvous/half-fenced@vcpus=2";
    let ran = explore(&[name, "--model", "tso", "--icr", "early", "--trace-out", trace]);
    let result = ran.assert_code(0).only();
    let legs = result["explored"]["schedule"]["legs"].as_array().unwrap();
    let sends: Vec<_> = legs.iter().filter_map(|leg| leg["sends"].as_str()).collect();
    assert_eq!(sends, ["vector 0xf0 to vcpu1"], "{result:#}");
    assert_eq!(counts(result), [389, 775, 80], "{result:#}");
    let replay = |file: &str| Command::cargo_bin("stallbench").unwrap().args(["replay", file]).assert();
    replay(trace).success();
    let text = std::fs::read_to_string(trace).unwrap();
    assert!(text.contains(" early 0 0xc40f0 | send early vector 0xf0 to vcpu1 | "), "{text}");
    assert!(text.contains("| write icr 0xc40f0, which was sent before | "), "{text}");
}

#[test]
fn request_that_cannot_be_explored_is_refused_in_one_line() {
    for (arguments, why) in [
        (&[][..], "a scenario is missing"),
        (&["mtrr/percpu-lock", "--order", "step"], "--order"),
        (&["mtrr/percpu-lock", "--max-states", "0"], "--max-states"),
        (&["mtrr/percpu-lock", "--max-memory", "0"], "--max-memory"),
        (&["mtrr/percpu-lock", "--workers", "0"], "--workers"),
        (&["mtrr/percpu-lock", "--workers", "65"], "--workers"),
        (&["mtrr/percpu-lock", "--strategy", "pct", "--workers", "2"], "--workers"),
        (&["mtrr/percpu-lock", "--walks", "5"], "--walks"),
        (&["mtrr/percpu-lock", "--strategy", "pct", "--walks", "0"], "--walks"),
        (&["mtrr/percpu-lock", "--strategy", "random", "--depth", "2"], "--depth"),
        (&["mtrr/percpu-lock", "--strategy", "pct", "--depth", "0"], "--depth"),
        (&["mtrr/percpu-lock", "--strategy", "pct", "--checkpoint", "x"], "--checkpoint"),
        (&["no/such"], "no/such"),
        (&["mtrr/percpu-lock", "--icr", "ordered"], "--icr"),
        (&["mtrr/percpu-lock", "--model", "tso", "--icr", "early", "--strategy", "pct"], "--icr early"),
        (&["mtrr/percpu-lock", "--buffer", "4"], "--buffer"),
        (&["mtrr/percpu-lock", "--model", "tso", "--buffer", "0"], "--buffer"),
        (&["mtrr/percpu-lock", "--model", "pso"], "--model"),
    ] {
        let ran = explore(arguments);
        assert!(ran.assert_code(2).said.contains(why), "{}", ran.said);
    }
}
