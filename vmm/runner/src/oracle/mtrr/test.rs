//! For each rule a state that breaks it and no other, and what the oracle says about it.

use std::sync::Arc;
use std::time::Duration;

use stallbench_state::mtrr::MemoryType;

use super::*;
use crate::dump::Keep;
use crate::layout;
use crate::oracle::order::Mode;

fn case(takes: &[&Knob]) -> CaseInfo {
    let knobs = takes.iter().fold(0, |mask, knob| mask | 1 << knob.number);
    CaseInfo { name: "case".into(), summary: String::new(), entry: 0, knobs }
}

fn set_mtrr() -> CaseInfo {
    case(&[&knob::MTRR])
}

fn plan(set: &[(&Knob, u64)]) -> RunPlan {
    let mut knobs = [0; KNOB_SLOTS];
    knob::ALL.iter().for_each(|knob| knobs[knob.number as usize] = knob.default_value());
    set.iter().for_each(|(knob, value)| knobs[knob.number as usize] = *value);
    let budget = Duration::from_secs(1);
    let (injected, order) = (Arc::default(), Mode::Off);
    RunPlan {
        case: 0,
        vcpus: 2,
        knobs,
        seed: 1,
        injected,
        layout: None,
        order,
        budget,
        keep: Keep::default(),
        control: None,
    }
}

fn machine(states: &[MtrrState]) -> MachineState {
    let unread = stallbench_state::machine::Unread { what: "registers".into(), reason: "not needed".into() };
    let vcpu = |(index, mtrr): (usize, &MtrrState)| VcpuState {
        index,
        registers: Err(unread.clone()),
        system: Err(unread.clone()),
        apic: Err(unread.clone()),
        events: Err(unread.clone()),
        mp_state: Ok(MpState::Halted),
        mtrr: Some(Ok(*mtrr)),
        msrs: None,
        ran: core::time::Duration::ZERO,
    };
    MachineState { vcpus: states.iter().enumerate().map(vcpu).collect() }
}

/// What is wrong where both vCPUs are in this state and should be.
fn wrong_with(state: MtrrState) -> Vec<String> {
    let expected = Expected { state, map: None, is_whole: false, programs: false };
    judge(&machine(&[state; 2]), Some(&expected)).problems
}

/// The same line of both vCPUs.
fn of_both(line: &str) -> Vec<String> {
    vec![format!("vcpu0: {line}"), format!("vcpu1: {line}")]
}

#[test]
fn range_that_all_programmed_is_consistent_and_changed() {
    let expected = Expected::of(&set_mtrr(), &plan(&[]));
    let outcome = judge(&machine(&[expected.state; 2]), Some(&expected));
    assert_eq!((outcome.consistent, outcome.changed), (Some(true), Some(true)), "{outcome:?}");
}

#[test]
fn programme_that_changes_nothing_is_inconsistent() {
    let nothing = plan(&[(&knob::MTRR_REG, 7), (&knob::MTRR_SIZE, 0)]);
    let expected = Expected::of(&set_mtrr(), &nothing);
    assert_eq!(expected.state, MtrrState::at_start());
    assert_eq!(judge(&machine(&[expected.state; 2]), Some(&expected)).consistent, Some(false));
    let unchanged = Expected::of(&case(&[]), &nothing);
    assert_eq!(judge(&machine(&[unchanged.state; 2]), Some(&unchanged)).consistent, Some(true));
}

#[test]
fn replicated_state_is_valid_and_differs_in_every_class() {
    let expected = Expected::of(&set_mtrr(), &plan(&[(&knob::MTRR, knob::mtrr::ALL.into())]));
    let start = MtrrState::at_start();
    assert_eq!(judge(&machine(&[expected.state]), Some(&expected)).problems, Vec::<String>::new());
    assert!(expected.state.default_type != start.default_type && expected.state.pat != start.pat);
    assert!(expected.state.fixed != start.fixed && expected.state.ranges != start.ranges);
}

#[test]
fn each_register_rule_is_named_with_its_vcpu_and_register() {
    let start = MtrrState::at_start();
    let pair = |base, mask| {
        let mut state = start;
        state.ranges[2] = (base, mask);
        state
    };
    assert_eq!(wrong_with(start), Vec::<String>::new());
    assert_eq!(wrong_with(pair(0x1000_0002, 0x7f_f000_0800)), of_both("base2 0x10000002: a reserved memory type"));
    assert_eq!(wrong_with(pair(0x1000_0106, 0x7f_f000_0800)), of_both("base2 0x10000106: reserved bits are set"));
    assert_eq!(
        wrong_with(pair(6, 0xff_f000_0800)),
        of_both("mask2 0xfff0000800: address bits above MAXPHYADDR are set")
    );
    assert_eq!(
        wrong_with(pair(6, 0x7f_d000_0800)),
        of_both("mask2 0x7fd0000800: the mask has holes, its size is no power of two")
    );
    assert_eq!(
        wrong_with(pair(0x800_0006, 0x7f_f000_0800)),
        of_both("base2 0x8000006: the base is no multiple of the size")
    );
    assert_eq!(
        wrong_with(MtrrState { default_type: 0x1c06, ..start }),
        of_both("default-type 0x1c06: reserved bits are set")
    );
    assert_eq!(wrong_with(MtrrState { pat: 2, ..start }), of_both("pat 0x2: a reserved memory type"));
}

#[test]
fn undefined_overlap_names_the_ranges_and_where_it_is() {
    let wc = MemoryType::WriteCombining.code();
    let state = MtrrState::at_start().with_range(1, 0, 0x4000_0000, 6).with_range(4, 0x1000_0000, 0x1000_0000, wc);
    assert_eq!(
        wrong_with(state),
        of_both("base1 and base4 overlap: 0x10000000 to 0x1fffffff undefined (write-combining and write-back overlap)")
    );
    // With an uncacheable range over it nothing is undefined.
    assert_eq!(wrong_with(state.with_range(5, 0x1000_0000, 0x1000_0000, 0)), Vec::<String>::new());
}

#[test]
fn vcpu_left_out_is_named_with_its_register() {
    let expected = Expected::of(&set_mtrr(), &plan(&[]));
    let outcome = judge(&machine(&[expected.state, MtrrState::at_start()]), Some(&expected));
    assert_eq!(outcome.consistent, Some(false));
    assert!(outcome.problems.iter().all(|line| line.starts_with("vcpu1: ")), "{outcome:?}");
    assert!(outcome.problems[0].starts_with("vcpu1: base1 is 0x0, expected 0xd0000001"), "{outcome:?}");
}

#[test]
fn types_of_memory_are_those_of_the_layout_and_not_of_the_registers_alone() {
    let layout = layout::of_word(4).unwrap();
    let plan = RunPlan { layout: Some(Arc::clone(&layout)), ..plan(&[(&knob::LAYOUT, 4)]) };
    let expected = Expected::of(&case(&[&knob::LAYOUT]), &plan);
    let outcome = judge(&machine(&[expected.state; 3]), Some(&expected));
    assert_eq!(outcome.problems, Vec::<String>::new());
    assert_eq!(outcome.map.last().map(String::as_str), Some("0xe8000000 to 0x7fffffffff uncachable"));
    // A register that is what it should be by a model that is wrong.
    let other = expected.state.with_range(2, 0xe000_0000, 0x400_0000, 1);
    let wrong_model = Expected { state: other, ..expected };
    assert_eq!(
        judge(&machine(&[other; 2]), Some(&wrong_model)).problems,
        of_both("0xe4000000 to 0xe7ffffff uncachable, write-combining by the layout")
    );
}

#[test]
fn what_is_programmed_against_the_manual_breaks_one_rule_each() {
    let layout = layout::of_word(2).unwrap();
    let problems = |invalid: u8| {
        let knobs = [(&knob::LAYOUT, 2), (&knob::INVALID, invalid.into())];
        let plan = RunPlan { layout: Some(Arc::clone(&layout)), ..plan(&knobs) };
        let expected = Expected::of(&case(&[&knob::LAYOUT, &knob::INVALID]), &plan);
        judge(&machine(&[expected.state]), Some(&expected)).problems
    };
    assert_eq!(problems(knob::invalid::NONE), Vec::<String>::new());
    assert_eq!(problems(knob::invalid::MISALIGNED), ["vcpu0: base7 0x7e00100000: the base is no multiple of the size"]);
    assert_eq!(
        problems(knob::invalid::SIZE),
        ["vcpu0: mask7 0x7fffd00800: the mask has holes, its size is no power of two"]
    );
    assert_eq!(
        problems(knob::invalid::OVERLAP),
        [
            "vcpu0: base6 and base7 overlap: 0x7e00200000 to 0x7e003fffff undefined (write-combining and write-protect overlap)"
        ]
    );
}

#[test]
fn end_of_a_programme_is_one_and_valid_whatever_the_seed() {
    let rounds = case(&[&knob::ROUNDS]);
    let mut ends = Vec::new();
    for seed in 0..200 {
        for initiators in [1, 2, 3, 8] {
            let knobs = [(&knob::ROUNDS, 40), (&knob::INITIATORS, initiators)];
            let plan = RunPlan { seed, vcpus: 8, ..plan(&knobs) };
            let expected = Expected::of(&rounds, &plan);
            let outcome = judge(&machine(&[expected.state]), Some(&expected));
            assert_eq!(outcome.problems, Vec::<String>::new(), "seed {seed}, {initiators} initiators");
            assert_eq!(Expected::of(&rounds, &plan), expected);
            ends.push(expected.state);
        }
    }
    let first = ends[0];
    assert!(ends.iter().skip(1).all(|end| *end != first));
}

#[test]
fn initiators_that_there_are_no_vcpus_for_have_no_rounds() {
    let end = |initiators| {
        let plan = plan(&[(&knob::ROUNDS, 10), (&knob::INITIATORS, initiators)]);
        Expected::of(&case(&[&knob::ROUNDS]), &plan)
    };
    assert_eq!(end(2), end(8), "two vCPUs");
}

#[test]
fn nobody_changed_what_the_case_programs_is_a_problem() {
    let expected = Expected::of(&set_mtrr(), &plan(&[]));
    let outcome = judge(&machine(&[MtrrState::at_start(); 2]), Some(&expected));
    assert_eq!((outcome.consistent, outcome.changed), (Some(false), Some(false)));
}

#[test]
fn case_that_programs_nothing_must_leave_everything() {
    let expected = Expected::of(&case(&[]), &plan(&[]));
    assert_eq!(judge(&machine(&[MtrrState::at_start(); 2]), Some(&expected)).consistent, Some(true));
    let changed = MtrrState { pat: 0, ..MtrrState::at_start() };
    assert_eq!(judge(&machine(&[changed; 2]), Some(&expected)).consistent, Some(false));
}

#[test]
fn unfinished_run_needs_agreement_and_validity_only() {
    let changed = MtrrState::at_start().with_range(1, 0xd000_0000, 0x100_0000, 1);
    assert_eq!(judge(&machine(&[changed; 2]), None).consistent, Some(true));
    assert_eq!(judge(&machine(&[changed, MtrrState::at_start()]), None).consistent, Some(false));
}

#[test]
fn state_that_could_not_be_read_is_neither() {
    let mut machine = machine(&[MtrrState::at_start(); 2]);
    machine.vcpus[1].mtrr = None;
    assert_eq!(judge(&machine, None).consistent, None);
}

#[test]
fn problems_beyond_the_list_still_count() {
    let expected = Expected::of(&set_mtrr(), &plan(&[]));
    let outcome = judge(&machine(&[MtrrState::at_start(); 64]), Some(&expected));
    assert_eq!((outcome.consistent, outcome.problems.len()), (Some(false), LISTED));
}
