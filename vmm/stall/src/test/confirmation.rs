//! Which published waits the machine confirms, and which it denies.

use stallbench_abi::layout::ARENA;
use stallbench_abi::vcpu::{Need, Until};
use stallbench_state::machine::MpState;

use super::world::{ELSEWHERE, Spin, World};
use crate::activity::Activity;
use crate::conclude::{lasting_contradictions, waits};

/// Two vCPUs that wait for each other, in a task and in a handler.
fn cycle() -> World {
    let mut world = World::new(2);
    world.waits(0, Spin { awaits: &[1], ..Spin::default() });
    world.waits_in_handler(1, Spin { awaits: &[0], word: 1, ..Spin::default() });
    world
}

#[test]
fn claim_that_the_machine_denies_counts_for_nothing_and_is_reported() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 9] = [
        ("it is at 0x118000", |world| registers(world, |r| r.rip = ELSEWHERE)),
        ("registers compare 0x400004", |world| registers(world, |r| r.rdi += 4)),
        ("registers compare 0x400000 & 0xff", |world| registers(world, |r| r.rsi = 0xff)),
        ("with 0x2", |world| registers(world, |r| r.r8 = 2)),
        ("there is no wait site at 0x10", |world| claim(world, |w| w.site = 0x10)),
        ("the word lies outside guest memory", |world| {
            claim(world, |w| w.address = u64::MAX - 1);
            registers(world, |r| r.rdi = u64::MAX - 1);
        }),
        ("an end unknown(7) means nothing", |world| claim(world, |w| w.until = Until(7))),
        ("a need unknown(9) means nothing", |world| claim(world, |w| w.need = Need(9))),
        ("awaited vCPUs lies outside guest memory", |world| claim(world, |w| w.awaits_at = u64::MAX - 8)),
    ];
    for (denied_by, change) in changes {
        let mut world = cycle();
        change(&mut world);
        assert_eq!(world.stall(), None, "{denied_by}");
        let published = world.published();
        let analysis = world.analysis(&published);
        let found: Vec<_> = analysis.contradictions().cloned().collect();
        assert_eq!(found.len(), 1, "{denied_by}: {found:?}");
        assert!(found[0].vcpu == 0 && found[0].denied_by.contains(denied_by), "{denied_by}: {found:?}");
        assert_eq!(lasting_contradictions(&found, &analysis), found);
    }
}

fn registers(world: &mut World, change: impl FnOnce(&mut stallbench_state::machine::Registers)) {
    change(world.state(0).registers.as_mut().expect("a state that was made up"));
}

fn claim(world: &mut World, change: impl FnOnce(&mut stallbench_abi::vcpu::Wait)) {
    world.edit(0, |page| change(&mut page.contexts[0].wait));
}

#[test]
fn contradiction_of_one_capture_alone_does_not_last() {
    let (honest, mut lying) = (cycle(), cycle());
    registers(&mut lying, |r| r.rip = ELSEWHERE);
    let (first, second) = (honest.published(), lying.published());
    let before: Vec<_> = honest.analysis(&first).contradictions().cloned().collect();
    assert_eq!(lasting_contradictions(&before, &lying.analysis(&second)), []);
}

#[test]
fn depth_beyond_the_contexts_is_a_contradiction() {
    let mut world = cycle();
    for depth in [8, u32::MAX] {
        world.edit(0, |page| page.depth = depth);
        let published = world.published();
        let analysis = world.analysis(&published);
        assert!(matches!(analysis.vcpus[0].activity, Activity::Running { .. }));
        assert_eq!(analysis.contradictions().count(), 1);
        assert_eq!(world.stall(), None);
    }
}

#[test]
fn wait_published_by_one_that_halts_is_a_contradiction() {
    let mut world = World::new(1);
    world.waits(0, Spin::default());
    world.state(0).mp_state = Ok(MpState::Halted);
    registers(&mut world, |r| r.rip = ELSEWHERE);
    let published = world.published();
    assert_eq!(world.analysis(&published).contradictions().count(), 1);
}

#[test]
fn wait_of_an_interrupted_context_is_confirmed_by_its_frame() {
    let mut world = World::new(2);
    world.waits(0, Spin { awaits: &[1], ..Spin::default() });
    world.interrupted(0);
    world.waits_in_handler(
        0,
        Spin { site: "spin_lock", holds: 2, value: 0, need: Need::HOLDER, word: 2, ..Spin::default() },
    );
    world.waits_in_handler(1, Spin { awaits: &[0], word: 1, ..Spin::default() });
    let published = world.published();
    let analysis = world.analysis(&published);
    assert_eq!(analysis.contradictions().count(), 0);
    let waits = waits(&analysis);
    let seen: Vec<_> = waits.iter().map(|wait| (wait.vcpu, wait.depth, wait.closed)).collect();
    assert_eq!(seen, [(0, 1, true), (0, 0, false), (1, 1, true)]);
}

#[test]
fn wait_ends_by_a_masked_comparison() {
    for (holds, mask, until, value, waits) in [
        (0b11, 0b01, Until::EQUAL, 0, true),
        (0b10, 0b01, Until::EQUAL, 0, false),
        (0b10, 0b01, Until::DIFFERENT, 0, true),
        (0b11, 0b01, Until::DIFFERENT, 0, false),
    ] {
        let mut world = cycle();
        world.waits(0, Spin { awaits: &[1], holds, mask, until, value, ..Spin::default() });
        let published = world.published();
        let analysis = world.analysis(&published);
        assert_eq!(analysis.wait(0).is_some(), waits, "{holds:#b} & {mask:#b}");
        assert_eq!(analysis.contradictions().count(), 0, "a wait that is about to end is no lie");
    }
}

#[test]
fn awaited_set_that_is_narrowed_replaces_the_published_one() {
    let mut world = World::new(3);
    world.waits(0, Spin { awaits: &[1, 2], need: Need::ALL, ..Spin::default() });
    world.put(ARENA + 64, &[0b100u64, 0, 0, 0]);
    claim(&mut world, |w| w.awaits_at = ARENA + 64);
    let published = world.published();
    let analysis = world.analysis(&published);
    assert_eq!(analysis.wait(0).map(|wait| wait.need.awaits.iter().collect()), Some(vec![2]));
}
