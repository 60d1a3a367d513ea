//! Free machines, with local APICs in the kernel and a thread a vCPU, come to nothing that is not among what was explored.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use stallbench_abi::layout::{ARENA, ARENA_SIZE, GHOST};
use stallbench_abi::shared::GhostPage;
use stallbench_core::HostKvm;
use stallbench_explore::{End, Settings};
use stallbench_image::program;
use stallbench_runner::dump::{AtEnd, Keep};
use stallbench_runner::execute::execute;
use stallbench_runner::outcome::Verdict;
use stallbench_state::memory::{Memory, read_plain};

use crate::cell::{host, plan, plan_with_holds, searched};

/// Cells that pass, that stall always, and that stall in some schedules.
const CELLS: [&str; 5] = [
    "mtrr/percpu-lock@vcpus=2",
    "mtrr/today@vcpus=2,apic=xapic,initiator=1",
    "acceptance/lock-and-call@vcpus=2",
    "acceptance/lock-and-call-fixed@vcpus=2",
    "acceptance/mutual-calls@vcpus=2",
];
/// Free runs of each, half of them held up as the scenario has it.
const RUNS: u64 = 20;

/// Whether it stalls, and the words that the case has named: address, value.
type Outcome = (bool, Vec<(u64, u64)>);

/// What free machines come to.
fn free(host: &HostKvm, name: &str) -> BTreeSet<Outcome> {
    let mut seen = BTreeSet::new();
    for run in 0..RUNS {
        let mut plan = if run % 2 == 0 { plan(name) } else { plan_with_holds(name) };
        plan.seed = run;
        plan.keep = Keep { at_end: AtEnd::Always, ..Keep::default() };
        let outcome = execute(host, program(), &plan, &AtomicBool::new(false)).unwrap();
        let stalls = match outcome.verdict {
            Verdict::Pass => false,
            Verdict::Stall(_) => true,
            other => panic!("{name}: {other:?}"),
        };
        let memory = &outcome.moment.as_ref().expect("what is asked for is kept").memory;
        seen.insert((stalls, named(memory)));
    }
    seen
}

/// Words of the arena that have names, of 4 bytes.
fn named(memory: &dyn Memory) -> Vec<(u64, u64)> {
    let ghost: GhostPage = read_plain(memory, GHOST).unwrap();
    let addresses: BTreeSet<_> = ghost.words.iter().map(|word| word.address).collect();
    let in_arena = addresses.into_iter().filter(|address| (ARENA..ARENA + ARENA_SIZE).contains(address));
    in_arena.map(|address| (address, memory.read_u32(address).map_or(0, u64::from))).collect()
}

/// Whether an explored state has these words.
fn has(end: &End<'_>, words: &[(u64, u64)]) -> bool {
    words.iter().all(|(address, value)| end.read(*address, 4) == Some(*value))
}

/// The outcomes of free machines that were not explored.
fn missing(host: &HostKvm, name: &str, settings: Settings) -> Vec<Outcome> {
    let search = searched(host, name, settings);
    let is_known = |(stalls, words): &Outcome| match stalls {
        true => search.stuck_states().any(|state| has(&state, words)),
        false => search.ends().any(|end| has(&end, words)),
    };
    free(host, name).into_iter().filter(|outcome| !is_known(outcome)).collect()
}

#[test]
fn free_machines_come_to_nothing_that_was_not_explored() {
    let Some(host) = host() else { return };
    for name in CELLS {
        assert_eq!(missing(&host, name, Settings::default()), [], "{name}");
    }
}

#[test]
fn free_machines_come_to_what_is_not_explored_where_interrupts_come_to_halted_vcpus_alone() {
    let Some(host) = host() else { return };
    let settings = Settings { only_halted_take_interrupts: true, ..Settings::default() };
    assert_ne!(missing(&host, "acceptance/mutual-calls@vcpus=2", settings), [], "deliveries are missing");
}
