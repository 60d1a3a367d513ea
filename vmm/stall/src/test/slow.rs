//! Machines that are slow and not stuck: never a stall, and the root of their waits is the vCPU that is busy.

use stallbench_abi::vcpu::Need;
use stallbench_state::machine::Unread;

use super::world::{ELSEWHERE, Spin, World};
use crate::slow::{Slow, slow};

/// The wait of a barrier's member for the gate that `awaits` opens.
fn gate(awaits: &[usize]) -> Spin<'_> {
    Spin { awaits, ..Spin::default() }
}

/// The wait for `left` of the others to come.
fn count(awaits: &[usize], left: u32) -> Spin<'_> {
    Spin { site: "set_mtrr", word: 4, holds: left, value: 0, need: Need::COUNT, awaits, ..Spin::default() }
}

/// Three are in the barrier, the last is still at work.
fn barrier_with_one_at_work() -> World {
    let mut world = World::new(4);
    world.waits(0, count(&[1, 2, 3], 1));
    world.waits_in_handler(1, gate(&[0]));
    world.waits_in_handler(2, gate(&[0]));
    world.runs(3);
    world
}

fn root(world: &World) -> Option<(usize, Vec<usize>)> {
    let published = world.published();
    slow(&world.analysis(&published)).map(|Slow { vcpu, waiting, .. }| (vcpu, waiting.iter().collect()))
}

#[test]
fn vcpu_at_work_is_the_root_and_its_waiters_are_no_stall() {
    let world = barrier_with_one_at_work();
    assert_eq!(world.stall(), None);
    assert_eq!(root(&world), Some((3, vec![0, 1, 2])));
    let published = world.published();
    let text = slow(&world.analysis(&published)).map(|slow| slow.to_string());
    assert_eq!(text, Some(format!("vcpu0, vcpu1, vcpu2 wait for vcpu3, which runs at {ELSEWHERE:#x}")));
}

#[test]
fn root_is_the_end_of_the_chain_however_long_it_is() {
    let mut world = World::new(5);
    (0..4).for_each(|vcpu| world.waits(vcpu, gate(&[vcpu + 1])));
    world.runs(4);
    assert_eq!((world.stall(), root(&world)), (None, Some((4, vec![0, 1, 2, 3]))));
}

#[test]
fn bounded_wait_is_work() {
    let mut world = barrier_with_one_at_work();
    world.waits(3, gate(&[1]));
    world.edit(3, |page| page.contexts[0].wait.bounded = 1);
    assert_eq!((world.stall(), root(&world)), (None, Some((3, vec![0, 1, 2]))));
}

#[test]
fn vcpu_of_which_nothing_is_known_may_be_at_work() {
    let mut world = barrier_with_one_at_work();
    world.state(3).registers = Err(Unread { what: "registers".into(), reason: "EINVAL".into() });
    assert_eq!((world.stall(), root(&world)), (None, Some((3, vec![0, 1, 2]))));
}

#[test]
fn of_several_at_work_the_one_that_most_wait_for_is_the_root() {
    let mut world = World::new(5);
    world.runs(0);
    world.runs(1);
    world.waits(2, gate(&[0]));
    world.waits(3, gate(&[1]));
    assert_eq!(root(&world), Some((0, vec![2])), "the lowest of equals");
    world.waits(4, gate(&[1]));
    assert_eq!(root(&world), Some((1, vec![3, 4])));
}

#[test]
fn vcpu_at_work_for_which_nobody_waits_is_no_root() {
    let mut world = World::new(2);
    world.runs(1);
    assert_eq!(root(&world), None);
}

#[test]
fn waits_that_can_never_end_have_no_busy_root() {
    let mut world = World::new(3);
    world.waits(0, Spin { need: Need::ALL, ..gate(&[1, 2]) });
    world.waits(1, gate(&[0]));
    world.runs(2);
    // The two take no interrupt of any kind, so that nothing that vcpu2 does can reach them.
    (0..2).for_each(|vcpu| world.state(vcpu).events.as_mut().expect("made up").nmi_masked = true);
    assert!(world.stall().is_some());
    assert_eq!(root(&world), None);
}
