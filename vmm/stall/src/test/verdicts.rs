//! Kinds of stalls and their culprits, from machines made up for each.

use core::time::Duration;

use stallbench_abi::arena::{Life, MARK, Mark, Storage};
use stallbench_abi::event::{EventKind, INJECTED_FAILURE, LIST_OF_ALL, TO_ALL, TO_ALL_BUT_SELF};
use stallbench_abi::fault::FaultKind;
use stallbench_abi::layout::{ARENA, PAUSE, XAPIC, vector};
use stallbench_abi::pause::PausePage;
use stallbench_abi::vcpu::{Need, Until};
use stallbench_state::machine::{MpState, Unread};

use super::world::{IF, RAN, Spin, World};
use crate::conclude::{Ran, conclude};
use crate::report::{Member, Stall, StallKind, Strength};
use crate::set::VcpuSet;

const FLAG_WAIT: u32 = 1;
const CALL_MANY: u64 = 1;

/// The wait of a caller for its callbacks on `awaits`.
fn completion<'s>(awaits: &'s [usize], asynchronous: bool) -> Spin<'s> {
    Spin {
        site: "call_many",
        word: 8,
        holds: FLAG_WAIT,
        mask: FLAG_WAIT,
        value: 0,
        need: Need::ALL,
        awaits,
        asynchronous,
        call: 7,
        rflags: IF,
        ..Spin::default()
    }
}

/// The wait of a callback for the gate that `awaits` opens.
fn gate(awaits: &[usize]) -> Spin<'_> {
    Spin { awaits, ..Spin::default() }
}

/// The wait of an initiator for `left` of the others.
fn count(awaits: &[usize], left: u32) -> Spin<'_> {
    Spin { site: "set_mtrr", word: 4, holds: left, value: 0, need: Need::COUNT, awaits, ..Spin::default() }
}

/// 2.6.28 without memory: all others are in the callback, the caller waits for them, and they for the caller.
fn stack_broadcast() -> World {
    let mut world = World::new(4);
    world.waits(0, completion(&[1, 2, 3], true));
    (1..4).for_each(|vcpu| world.waits_in_handler(vcpu, gate(&[0])));
    world.event(0, EventKind::CALL, 0, 7, 0);
    world.event(0, EventKind::ALLOC, 1, 0, CALL_MANY);
    world.event(0, EventKind::FALLBACK, 1, 7, 0);
    (1..4).for_each(|vcpu| world.event(vcpu, EventKind::CALLBACK, 0, 7, 0));
    world
}

fn kind_and_culprit(world: &World) -> Option<(StallKind, Option<usize>)> {
    world.stall().map(|stall| (stall.kind, stall.culprit.map(|culprit| culprit.vcpu)))
}

fn reason(stall: &Stall) -> &str {
    stall.culprit.as_ref().map_or("", |culprit| culprit.reason.as_str())
}

#[test]
fn stack_broadcast_is_a_deadlock_by_the_caller() {
    let stall = stack_broadcast().stall().expect("a stall");
    assert_eq!((stall.kind, stall.strength), (StallKind::Deadlock, Strength::Observed));
    let culprit = stall.culprit.as_ref().expect("a culprit");
    assert_eq!((culprit.vcpu, culprit.site.as_str()), (0, "call_many"));
    assert_eq!(reason(&stall), "wait=0 became wait=1 (allocation failure #1 in call_many, no record left)");
    let caller = &stall.waits[0];
    assert_eq!(caller.awaits, [1, 2, 3]);
    assert_eq!((caller.until.as_str(), caller.awaited_do.as_str()), ("to clear", "running its callback"));
    let callee = &stall.waits[1];
    assert_eq!(
        (callee.site.as_str(), callee.step.as_str(), callee.until.as_str()),
        ("ipi_handler", "B3", "to become 1")
    );
    assert!(!callee.interrupts_enabled && callee.closed && callee.context == "irq");
}

#[test]
fn serial_fallback_leaves_the_idle_out_of_it() {
    let mut world = World::new(4);
    world.waits(0, completion(&[1], true));
    world.waits_in_handler(1, gate(&[0]));
    let stall = world.stall().expect("a stall");
    assert_eq!(stall.kind, StallKind::Deadlock);
    assert_eq!(stall.waits.iter().map(|wait| wait.vcpu).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn symmetric_cycle_has_no_culprit() {
    let mut world = World::new(2);
    let lock = |word, holder| Spin {
        site: "spin_lock",
        word,
        holds: holder,
        value: 0,
        need: Need::HOLDER,
        rflags: IF,
        ..Spin::default()
    };
    world.waits(0, lock(0, 2));
    world.waits(1, lock(1, 1));
    assert_eq!(kind_and_culprit(&world), Some((StallKind::Deadlock, None)));
}

#[test]
fn one_vcpu_that_can_still_act_makes_it_no_stall() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 7] = [
        ("it runs elsewhere", |world| world.runs(3)),
        ("an interrupt is deliverable to the caller", |world| world.pending(0, 0xfb)),
        ("an NMI is pending", |world| world.state(2).events.as_mut().expect("made up").nmi_pending = 1),
        ("its registers could not be read", |world| world.state(2).registers = Err(unread())),
        ("its local APIC could not be read", |world| world.state(2).apic = Err(unread())),
        ("its timer is not masked", |world| world.state(0).apic.as_mut().expect("made up").lvt_timer = 0xef),
        ("its word has just got its value", |world| world.put(stallbench_abi::layout::ARENA, &1u32)),
    ];
    for (what, change) in changes {
        let mut world = stack_broadcast();
        change(&mut world);
        assert_eq!(world.stall(), None, "{what}");
    }
}

#[test]
fn interrupt_on_its_way_to_one_that_idles_makes_it_no_stall() {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], true));
    world.pending(1, 0xfb);
    assert_eq!(world.stall(), None);
}

fn unread() -> Unread {
    Unread { what: "registers".into(), reason: "EINVAL".into() }
}

#[test]
fn bounded_wait_is_no_stall() {
    let mut world = stack_broadcast();
    world.edit(0, |page| page.contexts[0].wait.bounded = 1);
    assert_eq!(world.stall(), None);
}

#[test]
fn wait_for_the_local_apic_is_no_stall() {
    let mut world = World::new(2);
    world.waits(0, Spin { site: "send", need: Need::ANY, awaits: &[], ..Spin::default() });
    // Its registers are no guest memory.
    world.edit(0, |page| page.contexts[0].wait.address = XAPIC);
    world.state(0).registers.as_mut().expect("made up").rdi = XAPIC;
    assert_eq!(world.stall(), None);
}

#[test]
fn apic_wait_for_a_word_in_memory_is_a_wait_for_the_others() {
    for need in [Need::ALL, Need::ANY, Need::COUNT] {
        let mut world = World::new(2);
        world.waits(0, Spin { site: "send", need, awaits: &[], ..Spin::default() });
        assert_eq!(world.stall().map(|stall| stall.kind), Some(StallKind::AbsentMember), "{need}");
        world.runs(1);
        assert_eq!(world.stall(), None, "{need}");
    }
}

#[test]
fn wait_for_oneself_alone_is_a_deadlock_that_blames_no_bystander() {
    for need in [Need::ALL, Need::ANY, Need::COUNT] {
        let mut world = World::new(2);
        world.waits(0, Spin { need, awaits: &[0], ..Spin::default() });
        let stall = world.stall().expect("a stall");
        assert_eq!((stall.kind, stall.culprit), (StallKind::Deadlock, None), "{need}");
        assert_eq!(stall.waits[0].awaits, [0]);
    }
}

#[test]
fn wait_for_oneself_inside_a_call_with_wait_0_has_its_culprit() {
    let mut world = World::new(2);
    world.waits(0, completion(&[0], true));
    assert_eq!(kind_and_culprit(&world), Some((StallKind::Deadlock, Some(0))));
}

#[test]
fn lock_held_by_its_own_waiter_is_a_deadlock() {
    let mut world = World::new(2);
    world.waits(0, Spin { site: "spin_lock", holds: 1, value: 0, need: Need::HOLDER, ..Spin::default() });
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit), (StallKind::Deadlock, None));
    assert_eq!(stall.waits[0].awaits, [0]);
}

#[test]
fn vcpu_that_did_not_run_between_the_captures_proves_nothing() {
    let world = stack_broadcast();
    let published = world.published();
    let (first, second) = (world.analysis(&published), world.analysis(&published));
    let confirm = Duration::from_micros(200);
    let mut ran = [RAN; 4];
    assert!(conclude(&first, &second, &ran, confirm).is_some());
    ran[2] = Ran { time: Duration::from_micros(199), ..RAN };
    assert_eq!(conclude(&first, &second, &ran, confirm), None);
    ran[2] = Ran { entries: 0, ..RAN };
    assert_eq!(conclude(&first, &second, &ran, confirm), None, "CPU time, none of it in the guest");
    ran[2] = RAN;
    assert_eq!(conclude(&first, &second, &ran[..3], confirm), None, "one of which nothing is known");
}

#[test]
fn captures_that_differ_prove_nothing() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 4] = [
        ("progress", |world| world.edit(1, |page| page.progress += 1)),
        ("an interrupt was taken", |world| world.edit(1, |page| page.interrupts += 1)),
        ("another value of the word", |world| world.put(stallbench_abi::layout::ARENA, &2u32)),
        ("another wait", |world| world.waits_in_handler(3, Spin { word: 1, ..gate(&[0]) })),
    ];
    for (what, change) in changes {
        let (before, mut after) = (stack_broadcast(), stack_broadcast());
        change(&mut after);
        let (first, second) = (before.published(), after.published());
        let ran = [RAN; 4];
        let verdict = conclude(&before.analysis(&first), &after.analysis(&second), &ran, Duration::ZERO);
        assert_eq!(verdict, None, "{what}");
    }
}

#[test]
fn vcpu_that_never_came_up_is_an_absent_member() {
    let mut world = World::new(3);
    world.waits(0, Spin { site: "bring_up", ..count(&[1, 2], 1) });
    world.state(2).mp_state = Ok(MpState::InitReceived);
    world.waits_in_handler(1, gate(&[0]));
    let stall = world.stall().expect("a stall");
    assert_eq!(kind_and_culprit(&world), Some((StallKind::AbsentMember, Some(2))));
    assert_eq!(reason(&stall), "never came up, while vcpu0 waits for it in bring_up");
}

#[test]
fn count_with_all_missing_members_waiting_is_a_deadlock() {
    let mut world = World::new(3);
    world.waits(0, count(&[1, 2], 2));
    (1..3).for_each(|vcpu| world.waits_in_handler(vcpu, gate(&[0])));
    assert_eq!(kind_and_culprit(&world), Some((StallKind::Deadlock, None)));
}

#[test]
fn record_left_without_an_interrupt_is_a_lost_interrupt_by_its_sender() {
    let mut world = World::new(3);
    world.waits(0, count(&[1, 2], 1));
    world.waits_in_handler(1, gate(&[0]));
    world.event(0, EventKind::QUEUE, LIST_OF_ALL, 0x40_0000, 7);
    world.event(1, EventKind::CALLBACK, 0, 7, 0);
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::LostInterrupt, Some(0)));
    assert_eq!(reason(&stall), "it left call #7 for vcpu2 and sent no interrupt");
}

#[test]
fn interrupt_that_was_sent_and_never_came_has_no_culprit() {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], false));
    world.event(0, EventKind::QUEUE, 1, 0x40_0000, 7);
    world.event(0, EventKind::IPI, 0xfb, 1, 0);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::LostInterrupt, None)));
}

#[test]
fn only_an_interrupt_that_calls_and_reaches_the_target_counts_as_sent() {
    let (many, single) = (vector::CALL_FUNCTION, vector::CALL_FUNCTION_SINGLE);
    for (vector, destination, sent) in [
        (many, 1, true),
        (single, 1, true),
        (many, TO_ALL, true),
        (many, TO_ALL_BUT_SELF, true),
        (many, 2, false),
        (vector::RESCHEDULE, 1, false),
        (vector::NMI, TO_ALL_BUT_SELF, false),
    ] {
        let mut world = World::new(3);
        world.waits(0, completion(&[1], false));
        world.event(0, EventKind::QUEUE, 1, 0x40_0000, 7);
        world.event(0, EventKind::IPI, u32::from(vector), destination, 0);
        let culprit = (!sent).then_some(0);
        assert_eq!(kind_and_culprit(&world), Some((StallKind::LostInterrupt, culprit)), "{vector:#x} {destination:#x}");
    }
}

#[test]
fn record_on_the_list_of_all_is_lost_for_its_targets_only() {
    let mut world = World::new(4);
    // 0 calls 1, which is in the callback and waits for 2. Nothing was ever queued for 2.
    world.waits(0, completion(&[1], false));
    world.waits_in_handler(1, gate(&[2]));
    world.event(0, EventKind::QUEUE, LIST_OF_ALL, 0x40_0000, 7);
    world.event(1, EventKind::CALLBACK, 0, 7, 0);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::AbsentMember, Some(2))));
}

#[test]
fn member_that_did_its_part_and_idles_is_absent() {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], false));
    world.event(0, EventKind::QUEUE, 1, 0x40_0000, 7);
    world.event(1, EventKind::CALLBACK, 0, 7, 0);
    world.event(1, EventKind::CALLBACK_END, 0, 7, 0);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::AbsentMember, Some(1))));
}

#[test]
fn acceptance_that_nobody_signals_is_the_fault_of_wait_0() {
    let mut world = World::new(2);
    world.waits(0, Spin { site: "call_single", ..completion(&[1], true) });
    world.event(0, EventKind::ALLOC, 1, INJECTED_FAILURE, 2);
    world.event(0, EventKind::FALLBACK, 4, 7, 0);
    world.event(1, EventKind::CALLBACK_END, 0, 7, 0);
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::AbsentMember, Some(0)));
    assert_eq!(
        reason(&stall),
        "wait=0 waits for its record to be accepted (allocation failure #1 in call_single, injected by the guest)"
    );
}

#[test]
fn own_earlier_record_is_named_with_its_callback() {
    let mut world = World::new(2);
    world.waits(0, Spin { site: "csd_lock", ..completion(&[1], true) });
    world.waits_in_handler(1, gate(&[0]));
    world.event(1, EventKind::CALLBACK, 0, 7, 0);
    let stall = world.stall().expect("a stall");
    assert_eq!(stall.kind, StallKind::Deadlock);
    assert_eq!(
        reason(&stall),
        "wait=0 waits for its own earlier record (call #7), whose callback has begun and not ended"
    );
}

#[test]
fn interrupts_off_towards_a_sender_that_waits_is_not_accepting() {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], false));
    world.waits(1, Spin { site: "spin_lock", holds: 1, value: 0, need: Need::HOLDER, ..Spin::default() });
    world.pending(1, 0xfb);
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::NotAccepting, Some(1)));
    assert_eq!(reason(&stall), "IF=0 with vector 0xfb pending, while vcpu0 waits for it in call_many");
}

#[test]
fn mutual_calls_with_interrupts_off_are_not_accepting_by_nobody_alone() {
    let mut world = World::new(2);
    world.waits(0, Spin { rflags: 0, ..completion(&[1], false) });
    world.waits(1, Spin { rflags: 0, word: 9, ..completion(&[0], false) });
    (0..2).for_each(|vcpu| world.pending(vcpu, 0xfb));
    assert_eq!(kind_and_culprit(&world), Some((StallKind::NotAccepting, None)));
}

#[test]
fn halt_with_interrupts_off_and_work_pending_is_not_accepting() {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], false));
    world.state(1).registers.as_mut().expect("made up").rflags = 0;
    world.pending(1, 0xfb);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::NotAccepting, Some(1))));
}

#[test]
fn task_priority_that_holds_the_interrupt_is_not_accepting() {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], false));
    world.state(1).apic.as_mut().expect("made up").tpr = 0xf0;
    world.pending(1, 0xfb);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::NotAccepting, Some(1))));
}

#[test]
fn pending_call_at_a_handler_that_waits_is_still_a_deadlock() {
    let mut world = stack_broadcast();
    world.pending(1, 0xfb);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::Deadlock, Some(0))));
}

#[test]
fn lock_of_a_holder_that_no_machine_has_does_not_panic() {
    for holder in [1, 3, 255, 256, u32::MAX] {
        let mut world = World::new(2);
        let until = Until::EQUAL;
        world.waits(
            0,
            Spin { site: "spin_lock", holds: holder, until, value: 0, need: Need::HOLDER, ..Spin::default() },
        );
        assert_eq!(kind_and_culprit(&world), Some((StallKind::Deadlock, None)), "{holder}");
    }
}

#[test]
fn narrowed_set_that_is_empty_waits_for_whoever_is_left() {
    let mut world = World::new(2);
    world.waits(0, completion(&[], false));
    assert_eq!(world.stall().map(|stall| stall.kind), Some(StallKind::AbsentMember));
    world.runs(1);
    assert_eq!(world.stall(), None);
}

#[test]
fn idle_machine_is_quiescent_and_no_stall() {
    let world = World::new(3);
    let published = world.published();
    assert!(world.analysis(&published).is_quiescent());
    assert_eq!(world.stall(), None);
}

#[test]
fn machine_is_not_quiescent_before_all_rest() {
    let mut pending = World::new(2);
    pending.pending(1, 0xfc);
    let mut running = World::new(2);
    running.runs(1);
    let mut waiting = World::new(2);
    waiting.waits_in_handler(1, gate(&[0]));
    for world in [pending, running, waiting] {
        let published = world.published();
        assert!(!world.analysis(&published).is_quiescent());
    }
}

/// The word of a record that [`mark`] marks.
const RECORD_WORD: u64 = 16;
const GENERATION: u32 = 0x101;

/// Marks what lies at [`RECORD_WORD`].
fn mark(world: &mut World, life: Life, generation: u32, name: &str) {
    let record = ARENA + 4 * RECORD_WORD;
    let mut mark = Mark { magic: MARK, life, storage: Storage::STACK, generation, size: 48, ..Mark::default() };
    mark.name[..name.len()].copy_from_slice(name.as_bytes());
    world.put(record - 32, &mark);
}

/// The last of the handlers waits for a gate in the record of an initiator that is long gone.
fn last_in_a_dead_record(life: Life, generation: u32, name: &str) -> World {
    let mut world = World::new(3);
    world.waits_in_handler(2, Spin { word: RECORD_WORD, holds: 1, value: 0, generation: GENERATION, ..gate(&[0]) });
    let (record, owner) = (ARENA + 4 * RECORD_WORD, u64::from_le_bytes(*b"set_mtrr"));
    world.event(0, EventKind::LIFE, Life::LIVE.0 | GENERATION << 8, record, owner);
    world.event(0, EventKind::LIFE, Life::DEAD.0 | GENERATION << 8, record, owner);
    mark(&mut world, life, generation, name);
    world
}

#[test]
fn wait_in_a_record_that_is_dead_is_a_lifetime_stall_by_whoever_ended_it() {
    let stall = last_in_a_dead_record(Life::DEAD, GENERATION, "set_mtrr").stall().expect("a stall");
    assert_eq!(stall.kind, StallKind::Lifetime);
    assert_eq!(stall.culprit.as_ref().map(|c| (c.vcpu, c.site.as_str())), Some((0, "set_mtrr")));
    assert_eq!(reason(&stall), "it ended the life of set_mtrr@0x400040, on which vcpu2 waits in ipi_handler B3");
    assert_eq!(stall.waits[0].gone.as_deref(), Some("set_mtrr@0x400040, whose life vcpu0 ended"));
}

#[test]
fn wait_in_a_record_that_another_object_has_taken_is_a_lifetime_stall() {
    let stall = last_in_a_dead_record(Life::LIVE, GENERATION + 0x100, "csd").stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::Lifetime, Some(0)));
    assert!(reason(&stall).ends_with("; csd lives there now"), "{}", reason(&stall));
}

#[test]
fn wait_in_a_record_that_lives_is_no_lifetime_stall() {
    let stall = last_in_a_dead_record(Life::LIVE, GENERATION, "set_mtrr").stall().expect("a stall");
    assert_eq!((stall.kind, &stall.waits[0].gone), (StallKind::AbsentMember, &None));
}

#[test]
fn record_that_is_dead_makes_no_stall_of_a_wait_that_can_end() {
    let mut world = last_in_a_dead_record(Life::DEAD, GENERATION, "set_mtrr");
    world.runs(0);
    assert_eq!(world.stall(), None);
}

#[test]
fn word_of_a_dead_object_is_a_lifetime_stall_without_a_generation_too() {
    let mut world = World::new(2);
    world.waits(0, Spin { word: RECORD_WORD + 2, ..completion(&[1], true) });
    mark(&mut world, Life::DEAD, GENERATION, "csd");
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.map(|c| c.site)), (StallKind::Lifetime, Some("csd".into())));
}

#[test]
fn lifetime_of_two_records_that_two_vcpus_ended_has_no_culprit() {
    let mut world = last_in_a_dead_record(Life::DEAD, GENERATION, "set_mtrr");
    let other = RECORD_WORD + 64;
    world.waits_in_handler(1, Spin { word: other, holds: 1, value: 0, generation: GENERATION, ..gate(&[0]) });
    world.event(1, EventKind::LIFE, Life::DEAD.0 | GENERATION << 8, ARENA + 4 * other, 0);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::Lifetime, None)));
}

/// The low half of the interrupt command register that sends these.
const CALL_COMMAND: u64 = 1 << 14 | 0xfc;
const NMI_COMMAND: u64 = 1 << 14 | 4 << 8;

#[test]
fn interrupt_that_a_fault_drops_is_a_lost_interrupt_by_its_sender() {
    let mut world = World::new(3);
    world.waits(0, count(&[1, 2], 1));
    world.waits_in_handler(1, gate(&[0]));
    world.fault(FaultKind::DROP_IPI, 2);
    world.event(0, EventKind::FAULT, 0, NMI_COMMAND, 2);
    world.event(0, EventKind::IPI, u32::from(vector::NMI), TO_ALL_BUT_SELF, 0);
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::LostInterrupt, Some(0)));
    assert_eq!(reason(&stall), "its NMI to vcpu2 was dropped (guest-injected)");
    assert_eq!(stall.waits[0].awaited_do, "vcpu2 idle, its NMI was dropped (guest-injected)");
}

#[test]
fn dropped_interrupt_that_a_later_one_made_up_for_is_not_lost() {
    for (vector, reaches, lost) in [(vector::NMI, 2, false), (vector::RESCHEDULE, 2, true), (vector::NMI, 1, true)] {
        for sender in [0, 1] {
            let mut world = World::new(3);
            world.waits(0, count(&[1, 2], 1));
            world.waits_in_handler(1, gate(&[0]));
            world.fault(FaultKind::DROP_IPI, 2);
            world.event(0, EventKind::FAULT, 0, NMI_COMMAND, 2);
            world.event(0, EventKind::IPI, u32::from(vector::NMI), 2, 0);
            world.event(sender, EventKind::IPI, u32::from(vector), reaches, 0);
            let kind = if lost { StallKind::LostInterrupt } else { StallKind::AbsentMember };
            assert_eq!(world.stall().map(|stall| stall.kind), Some(kind), "{vector:#x} to {reaches} by {sender}");
        }
    }
}

#[test]
fn fault_that_loses_nothing_is_no_lost_interrupt() {
    for kind in [FaultKind::DUPLICATE_IPI, FaultKind::DELAY_IPI, FaultKind::KEEP_OUT] {
        let mut world = World::new(2);
        world.waits(0, count(&[1], 1));
        world.fault(kind, 1);
        world.event(0, EventKind::FAULT, 0, NMI_COMMAND, 1);
        assert_eq!(world.stall().map(|stall| stall.kind), Some(StallKind::AbsentMember), "{kind}");
    }
}

#[test]
fn delayed_interrupt_is_lost_until_it_is_sent() {
    let mut world = World::new(2);
    world.waits(0, count(&[1], 1));
    world.fault(FaultKind::DELAY_IPI, 1);
    world.event(0, EventKind::FAULT, 0, NMI_COMMAND, 1);
    let mut page = PausePage::default();
    page.faults[0].deferred = 1 << 32 | NMI_COMMAND;
    world.put(PAUSE, &page);
    assert_eq!(kind_and_culprit(&world), Some((StallKind::LostInterrupt, Some(0))));
}

#[test]
fn record_whose_interrupt_a_fault_drops_says_so() {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], false));
    world.fault(FaultKind::DROP_IPI, 1);
    world.event(0, EventKind::QUEUE, 1, 0x40_0000, 7);
    world.event(0, EventKind::FAULT, 0, CALL_COMMAND, 1);
    world.event(0, EventKind::IPI, 0xfc, 1, 0);
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::LostInterrupt, Some(0)));
    assert_eq!(reason(&stall), "it left call #7 for vcpu1 and its interrupt was dropped (guest-injected)");
}

#[test]
fn vcpu_that_is_never_started_is_absent_by_injection() {
    let mut world = World::new(2);
    world.waits(0, count(&[1], 1));
    world.state(1).mp_state = Ok(MpState::Uninitialized);
    world.fault(FaultKind::NO_START, 1);
    let stall = world.stall().expect("a stall");
    assert_eq!(stall.kind, StallKind::AbsentMember);
    assert_eq!(reason(&stall), "was never started (guest-injected), while vcpu0 waits for it in set_mtrr A3");
}

/// vCPU 1 halts with a vector that it would take.
fn halted_with_a_vector() -> World {
    let mut world = World::new(2);
    world.waits(0, completion(&[1], false));
    world.pending(1, 0xfb);
    world
}

#[test]
fn vcpu_that_the_host_does_not_wake_is_a_lost_interrupt_of_its_own() {
    let mut world = halted_with_a_vector();
    assert_eq!(world.stall(), None, "it is about to take it");
    world.declared.kept_out = VcpuSet::all(2).without(0);
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::LostInterrupt, Some(1)));
    assert_eq!(
        reason(&stall),
        "vector 0xfb is there, and it is not woken (host-injected: kept out of the guest), while vcpu0 waits for it in \
         call_many"
    );
    assert_eq!(stall.waits[0].awaited_do, "halted with vector 0xfb deliverable, not woken (host-injected)");
}

#[test]
fn vcpu_that_the_host_keeps_out_is_reached_by_nobody() {
    let mut world = World::new(3);
    world.waits(0, completion(&[1], false));
    world.runs(2);
    assert_eq!(world.stall(), None, "vcpu2 may interrupt it");
    world.declared.kept_out = [1].into_iter().collect();
    world.state(2).events.as_mut().expect("made up").nmi_masked = true;
    // Whoever takes an interrupt may get one from vcpu2; vcpu0 takes none, and vcpu1 is not let in.
    world.state(0).events.as_mut().expect("made up").nmi_masked = true;
    world.state(0).registers.as_mut().expect("made up").rflags = 0;
    let stall = world.stall().expect("a stall");
    assert_eq!(stall.kind, StallKind::AbsentMember);
    assert_eq!(reason(&stall), "is kept out of the guest (host-injected), while vcpu0 waits for it in call_many");
}

#[test]
fn vcpu_that_halts_on_because_its_init_was_lost_is_absent() {
    let mut world = World::new(2);
    world.waits(0, Spin { site: "bring_up", ..count(&[1], 1) });
    // What it left undone before does not matter: it was to begin anew.
    world.event(0, EventKind::QUEUE, 1, 0x40_0000, 7);
    world.declared.kept_out = [1].into_iter().collect();
    world.declared.init_lost = [1].into_iter().collect();
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)), (StallKind::AbsentMember, Some(1)));
    assert_eq!(reason(&stall), "its INIT was lost (host-injected), while vcpu0 waits for it in bring_up");
    assert_eq!(stall.waits[0].awaited_do, "idle, its INIT was lost (host-injected)");
}

#[test]
fn stall_that_hangs_on_a_hold_blames_nobody() {
    let mut world = World::new(3);
    world.waits(0, count(&[1, 2], 1));
    world.held(1, "ipi_handler/B2");
    let stall = world.stall().expect("a stall");
    assert_eq!((stall.kind, &stall.culprit), (StallKind::AbsentMember, &None));
    assert_eq!(stall.waits[0].awaited_do, "vcpu1 is held at ipi_handler/B2");
    assert_eq!(stall.root, [Member { vcpu: 1, doing: "is held at ipi_handler/B2".into() }]);
}

#[test]
fn hold_until_a_victim_moves_is_no_deadlock_of_the_protocol() {
    let mut world = World::new(2);
    world.held(1, "ipi_handler/B2");
    world.edit(1, |page| page.contexts[0].wait.awaits[0] = 1);
    world.waits(0, completion(&[1], true));
    let stall = world.stall().expect("a stall");
    assert_eq!(
        (stall.kind, stall.culprit.as_ref().map(|c| c.vcpu)),
        (StallKind::AbsentMember, Some(0)),
        "wait=0 waits"
    );
    world.pending(1, 0xfb);
    assert_eq!(world.stall().map(|stall| stall.kind), Some(StallKind::AbsentMember), "it refuses nothing by itself");
}

#[test]
fn vcpu_that_is_held_with_nobody_waiting_for_it_is_a_stall_all_the_same() {
    let mut world = World::new(2);
    world.held(1, "ipi_handler/B2");
    assert_eq!(kind_and_culprit(&world), Some((StallKind::AbsentMember, None)));
}

#[test]
fn holds_and_faults_that_no_scenario_has_are_data() {
    let mut world = World::new(2);
    world.held(1, "");
    for word in [0, PAUSE, PAUSE + 0x1000, u64::MAX] {
        world.edit(1, |page| page.contexts[0].wait.address = word);
        world.state(1).registers.as_mut().expect("made up").rdi = word;
        world.event(0, EventKind::FAULT, u32::MAX, u64::MAX, u64::MAX);
        let _ = world.stall();
    }
}
