//! Free machines, with local APICs in the kernel and a thread a vCPU, come to nothing that is not among what was explored.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use stallbench_abi::event::EventKind;
use stallbench_abi::layout::{ARENA, ARENA_SIZE, GHOST};
use stallbench_abi::shared::GhostPage;
use stallbench_core::HostKvm;
use stallbench_explore::{End, Settings, Varied};
use stallbench_image::program;
use stallbench_runner::dump::{AtEnd, Keep};
use stallbench_runner::execute::execute;
use stallbench_runner::outcome::Verdict;
use stallbench_state::memory::{Memory, read_plain};
use stallbench_state::published::{events, merged_events};

use crate::cell::{plan, plan_with_holds, searched};
use crate::real_kvm::host;

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

/// More states with orders of returns no cell here has.
const MOST_ORDERS: usize = 2_000_000;

/// What a machine comes to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Outcome {
    stalls: bool,
    /// The words that the case has named: address, value.
    words: Vec<(u64, u64)>,
    /// MTRRs and IA32_PAT of each vCPU.
    mtrrs: Vec<Vec<(u32, u64)>>,
    /// Whose calls have returned, in that order.
    returned: Vec<u8>,
}

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
        let moment = outcome.moment.as_ref().expect("what is asked for is kept");
        let mtrrs = moment.machine.vcpus.iter().map(|vcpu| vcpu.mtrr.as_ref().unwrap().as_ref().unwrap());
        seen.insert(Outcome {
            stalls,
            words: named(&moment.memory),
            mtrrs: mtrrs.map(|mtrrs| mtrrs.msrs().collect()).collect(),
            returned: returned(&moment.memory, plan.vcpus),
        });
    }
    seen
}

/// Whose calls have returned, as the events say.
fn returned(memory: &dyn Memory, vcpus: usize) -> Vec<u8> {
    let rings = (0..vcpus).map(|vcpu| events(memory, vcpu));
    assert_eq!(rings.map(|ring| ring.lost).sum::<u64>(), 0, "no event is missing");
    let returns = merged_events(memory, vcpus).into_iter().filter(|(_, event)| event.kind == EventKind::CALL_RETURN);
    returns.map(|(vcpu, _)| vcpu as u8).collect()
}

/// Words of the arena that have names, of 4 bytes.
fn named(memory: &dyn Memory) -> Vec<(u64, u64)> {
    let ghost: GhostPage = read_plain(memory, GHOST).unwrap();
    let addresses: BTreeSet<_> = ghost.words.iter().map(|word| word.address).collect();
    let in_arena = addresses.into_iter().filter(|address| (ARENA..ARENA + ARENA_SIZE).contains(address));
    in_arena.map(|address| (address, memory.read_u32(address).map_or(0, u64::from))).collect()
}

/// The outcomes of free machines that were not explored.
fn missing(host: &HostKvm, name: &str, settings: Settings) -> Vec<Outcome> {
    let search = searched(host, name, settings);
    let orders = search.orders_of_returns(MOST_ORDERS).expect("few calls");
    let [ends, stuck]: [Vec<_>; 2] = [search.ends().collect(), search.stuck_states().collect()];
    let is_it = |outcome: &Outcome, end: &End<'_>| {
        let mtrrs = |vcpu: usize| end.mtrrs(vcpu).msrs().eq(outcome.mtrrs[vcpu].iter().copied());
        outcome.words.iter().all(|(address, value)| end.read(*address, 4) == Some(*value))
            && (0..outcome.mtrrs.len()).all(mtrrs)
            && orders.contains(&(end.number(), outcome.returned.clone()))
    };
    let is_known = |outcome: &Outcome| {
        let states = if outcome.stalls { &stuck } else { &ends };
        states.iter().any(|end| is_it(outcome, end))
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

/// A vCPU that is up may be as slow as any: one that is about to turn its interrupts off can be called before, or call first.
#[test]
fn call_comes_to_a_vcpu_on_its_way_from_the_start_line() {
    let Some(host) = host() else { return };
    let search = searched(&host, "acceptance/mutual-calls@vcpus=2", Settings::default());
    let ends: BTreeSet<_> = search.ends().map(|end| end.number()).collect();
    let orders = search.orders_of_returns(MOST_ORDERS).expect("few calls");
    let at_ends = orders.into_iter().filter(|(number, _)| ends.contains(number)).map(|(_, order)| order);
    assert_eq!(at_ends.collect::<BTreeSet<_>>(), [vec![0, 1], vec![1, 0]].into());
}

#[test]
fn free_machines_come_to_what_is_not_explored_where_interrupts_come_to_halted_vcpus_alone() {
    let Some(host) = host() else { return };
    let settings = Settings { varied: Varied::OnlyHaltedTakeInterrupts, ..Settings::default() };
    // Two that call each other with interrupts on: neither halts before the other has taken its call.
    assert_ne!(missing(&host, "acceptance/mutual-calls-fixed@vcpus=2", settings), [], "deliveries are missing");
}
