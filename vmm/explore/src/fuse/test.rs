//! All states of a cell beside those that are left where steps are one, on this machine's /dev/kvm.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use stallbench_core::controlled::Controlled;
use stallbench_image::program;
use stallbench_runner::execute::{RunPlan, boot_block};
use stallbench_runner::scenario::{Case, Catalogue, Injected, Request, Selection};

use super::*;
use crate::event::Hashes;
use crate::hash::StateHash;
use crate::real_kvm::host;
use crate::search::{Findings, Limits};

/// Cells of each sort of verdict, with handlers, NMIs, halts, livelocks, breaches and faults in them. In the last one interrupts come between stops.
const CELLS: [&str; 26] = [
    "acceptance/lock-and-call@vcpus=2",
    "acceptance/lock-and-call-fixed@vcpus=2",
    "acceptance/mutual-calls@vcpus=2",
    "acceptance/dying-cpu@vcpus=2",
    "acceptance/dying-cpu-fixed@vcpus=2",
    "acceptance/early-done@vcpus=2",
    "acceptance/early-done-fixed@vcpus=2",
    "acceptance/nmi-rendezvous@vcpus=2",
    "acceptance/nmi-watchdog@vcpus=2",
    "mtrr/percpu-lock@vcpus=2",
    "mtrr/today@vcpus=2,apic=xapic,initiator=1",
    "records/second-call@vcpus=2",
    "records/two-kicks@vcpus=2",
    "records/two-kicks-fixed@vcpus=2",
    "records/handler-before-data@vcpus=2",
    "records/no-memory-for-a-mask@vcpus=3",
    "rendezvous/crossing-stops@vcpus=2",
    "rendezvous/both-barriers@vcpus=2",
    "rendezvous/caches-off-alone@vcpus=2",
    "rendezvous/unfenced@vcpus=3",
    "rounds/give-way@vcpus=2",
    "rounds/give-way-fixed@vcpus=2",
    "rounds/look-again@vcpus=3",
    "rounds/give-up@vcpus=3",
    "crash/panic@vcpus=2,initiator=0",
    "rendezvous/two-panics@vcpus=2",
];

fn begun(name: &str, varied: Varied) -> Option<Search<'static>> {
    let host = host()?;
    let case = |name: &str| {
        let (index, info) = program().case(name).unwrap_or_else(|| panic!("the image has no case {name}"));
        Ok(Case { name: info.name.clone(), index, knobs: info.knobs, points: program().points().into() })
    };
    let request = Request { names: vec![name.to_owned()], ..Request::default() };
    let selection = Selection::new(&Catalogue::default(), &request, &case).expect("a cell");
    let run = selection.get(0).expect("one");
    let plan = RunPlan { injected: Arc::new(Injected::default()), ..RunPlan::of(&run, Duration::from_secs(60)) };
    let machine = Controlled::new(&host, plan.vcpus, program().bytes(), &boot_block(&plan)).expect("a machine");
    let settings = Settings { varied, ..Settings::default() };
    Some(Search::new(machine, program(), settings).expect("the start line"))
}

fn searched(name: &str, varied: Varied) -> Option<Search<'static>> {
    let mut search = begun(name, varied)?;
    let is_complete = search.run(Limits { states: 200_000, bytes: 1 << 30 }).expect("a search");
    assert!(is_complete, "{name}: {:?}", search.counts());
    Some(search)
}

fn hashes(search: &Search<'_>) -> FxHashSet<StateHash> {
    let mut kept = Hashes::default();
    (0..search.graph.len() as u32).map(|number| search.hash(&search.graph.state(number), &mut kept)).collect()
}

/// The words that agents share.
fn shared(fusion: &Fusion) -> BTreeSet<u64> {
    fusion.words.iter().filter(|(_, of)| of.is_shared()).map(|(word, _)| *word).collect()
}

/// Whether the states in which a vCPU stands between steps that are one lead to one that is known, each vCPU going on by itself.
fn leads_to_known(search: &mut Search<'_>, number: u32, known: &FxHashSet<StateHash>, kept: &mut Hashes) -> bool {
    let mut states = vec![search.graph.state(number)];
    for vcpu in 0..search.graph.vcpus() {
        for state in std::mem::take(&mut states) {
            // Where it goes round any state of the round may be the one.
            let (mut at, mut stood) = (state, Vec::new());
            while !stood.contains(&at) {
                stood.push(at.clone());
                if !search.is_next_invisible(&at, vcpu).expect("known") {
                    stood = vec![at];
                    break;
                }
                at = search.follow(&at, Choice::Run(vcpu as u8)).expect("known");
            }
            states.extend(stood);
        }
    }
    states.iter().any(|state| known.contains(&search.hash(state, kept)))
}

/// What is found: of a stall, a livelock and a fault the fewest preemptions, what is broken, and of ends what is in memory.
type Found = ([Option<usize>; 3], BTreeSet<String>, BTreeSet<Vec<(u64, u64)>>);

fn found(search: &Search<'_>) -> Found {
    let Findings { stall, livelock, fault, .. } = search.findings();
    let ways = [stall.map(|stall| stall.way), livelock.map(|round| round.way), fault];
    let broken = search.broken().expect("few calls").into_iter();
    let broken = broken.map(|broken| format!("{:?} {}", broken.what, broken.way.preemptions()));
    (ways.map(|way| way.map(|way| way.preemptions())), broken.collect(), search.ends().map(|end| end.words()).collect())
}

/// In which orders calls return on the ways to ends.
fn returns(search: &Search<'_>) -> Option<BTreeSet<Vec<u8>>> {
    let ends: BTreeSet<u32> = search.ends.iter().copied().collect();
    let orders = search.orders_of_returns(300_000)?;
    Some(orders.into_iter().filter(|(number, _)| ends.contains(number)).map(|(_, order)| order).collect())
}

#[test]
fn states_that_are_left_out_lead_to_those_that_are_left_and_nothing_else_is_found() {
    let mut spared = 0;
    for name in CELLS {
        let Some(mut all) = searched(name, Varied::FusesNothing) else { return };
        let Some(fused) = searched(name, Varied::Nothing) else { return };
        let known = hashes(&fused);
        assert!(known.is_subset(&hashes(&all)), "{name}: a state that there is not");
        assert_eq!(found(&all), found(&fused), "{name}");
        assert_eq!(returns(&all), returns(&fused), "{name}");
        all.fusion = Fusion::new(&Settings::default());
        all.fusion.look(&all.stage);
        assert_eq!(shared(&all.fusion), shared(&fused.fusion), "{name}");
        let mut kept = Hashes::default();
        for number in 0..all.graph.len() as u32 {
            let is_in_handler = |vcpu| !all.stage.handlers(vcpu, all.graph.local(number, vcpu)).is_empty();
            // One that has interrupted its vCPU in between is left out as well.
            let can_be_left_out = (0..all.graph.vcpus()).any(is_in_handler);
            let leads = leads_to_known(&mut all, number, &known, &mut kept);
            assert!(leads || can_be_left_out, "{name}: state {number} of {}", all.graph.len());
        }
        eprintln!("{name}: {} states, {} of them left", all.graph.len(), fused.graph.len());
        spared += all.graph.len() - fused.graph.len();
    }
    assert!(spared > 5_000, "that is what it is for: {spared}");
}

/// Where a vCPU comes to that goes on alone until none of its handlers runs; none where it does not come there.
fn behind_handlers(search: &mut Search<'_>, vcpu: usize, mut state: State) -> Option<State> {
    for _ in 0..500 {
        if search.stage.handlers(vcpu, state.locals[vcpu]).is_empty() {
            return Some(state);
        }
        let goes_on = Choice::Run(vcpu as u8);
        if !search.choices(&state).contains(&goes_on) {
            return None;
        }
        state = search.follow(&state, goes_on).expect("it goes on");
    }
    None
}

/// Whether all that can come to a vCPU in front of a step of its own can come behind it, if it is requested.
fn comes_behind(search: &mut Search<'_>, state: &State, step: Choice) -> bool {
    let vcpu = step.vcpu();
    let behind = search.follow(state, step).expect("known");
    let can_come = |mut state: State| {
        search.change(&mut state, vcpu, |apic| {
            apic.request(0xfb);
            apic.nmi = true;
        });
        let choices = search.choices(&state).into_iter();
        choices.filter(|choice| choice.vcpu() == vcpu && *choice != step).collect::<Vec<_>>()
    };
    let [before, behind] = [state.clone(), behind].map(can_come);
    before.iter().all(|choice| behind.contains(choice))
}

/// Whether an invisible step changes places with another choice: both can be chosen behind the other, and come to the same.
fn changes_places(search: &mut Search<'_>, state: &State, step: Choice, other: Choice) -> bool {
    let behind = search.follow(state, step).expect("known");
    if !search.choices(&behind).contains(&other) {
        return false;
    }
    let first = search.follow(state, other).expect("known");
    let last = search.follow(&behind, other).expect("it can be chosen");
    if other.vcpu() != step.vcpu() {
        return search.follow(&first, step).expect("it goes on") == last;
    }
    // What it interrupts is behind it.
    let first = behind_handlers(search, step.vcpu(), first);
    let last = behind_handlers(search, step.vcpu(), last);
    match (first, last) {
        (Some(first), Some(last)) => search.follow(&first, step).expect("it goes on") == last,
        (first, last) => first.is_none() && last.is_none(),
    }
}

#[test]
fn invisible_step_changes_places_with_whatever_else_can_be_chosen() {
    let mut changed = [0, 0];
    for name in CELLS.into_iter().filter(|name| !name.contains("give-way@")) {
        let Some(mut all) = searched(name, Varied::FusesNothing) else { return };
        all.fusion.look(&all.stage);
        for number in 0..all.graph.len() as u32 {
            let state = all.graph.state(number);
            for vcpu in 0..all.graph.vcpus() {
                // A handler comes in front of a task.
                let is_task = all.stage.handlers(vcpu, state.locals[vcpu]).is_empty();
                if all.graph.edges(number).is_empty()
                    || !is_task
                    || !all.is_next_invisible(&state, vcpu).expect("known")
                {
                    continue;
                }
                let step = Choice::Run(vcpu as u8);
                assert!(comes_behind(&mut all, &state, step), "{name}: {step} in state {number}");
                for other in all.choices(&state).into_iter().filter(|other| *other != step) {
                    assert!(changes_places(&mut all, &state, step, other), "{name}: {step}, {other} in state {number}");
                    changed[usize::from(other.vcpu() == vcpu)] += 1;
                }
            }
        }
    }
    assert!(changed[0] > 5_000 && changed[1] > 100, "others' steps, and interrupts of its own: {changed:?}");
}

fn stores(agents: &[(u32, bool)]) -> Fusion {
    let mut fusion = Fusion::new(&Settings::default());
    agents.iter().for_each(|(agent, writes)| fusion.take(7, *agent, *writes));
    fusion
}

#[test]
fn word_is_shared_once_two_agents_access_it_and_one_of_them_writes() {
    let is_shared = |agents: &[(u32, bool)]| stores(agents).words[&7].is_shared();
    assert!(!is_shared(&[(0, true), (0, false)]) && !is_shared(&[(0, false), (1, false)]));
    assert!(is_shared(&[(0, false), (1, true)]) && is_shared(&[(0, true), (1, false)]));
    assert!(is_shared(&[(0, false), (1, false), (0, true)]), "whoever writes");
}

#[test]
fn graph_is_stale_where_a_step_was_invisible_for_a_word_that_is_shared() {
    let mut fusion = stores(&[(0, true)]);
    fusion.take(7, 1, false);
    assert!(!fusion.is_stale(), "nothing was built on it");
    let mut fusion = stores(&[(0, true)]);
    fusion.relied_on.insert(7);
    fusion.take(7, 1, false);
    assert!(fusion.is_stale());
    fusion.begin_anew();
    fusion.take(7, 2, true);
    assert!(!fusion.is_stale(), "that is known");
}

#[test]
fn handler_is_an_agent_of_its_own_wherever_it_comes() {
    let mut fusion = Fusion::default();
    let (fb, fc) = (Inject::Vector(0xfb), Inject::Vector(0xfc));
    let contexts = [vec![], vec![fb], vec![fb, fb], vec![fc, fb], vec![Inject::Nmi]];
    let agents: BTreeSet<_> = [0, 1]
        .into_iter()
        .flat_map(|vcpu| contexts.clone().map(|handlers| (vcpu, handlers)))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|(vcpu, handlers)| fusion.agent(vcpu, handlers))
        .collect();
    assert_eq!(agents.len(), 10);
    assert_eq!(fusion.agent(0, Vec::new()), 0);
}

#[test]
fn path_is_told_in_single_steps() {
    let mut graph = crate::graph::sample(3, &[(0, 1, 1)]);
    graph.forget();
    let edge = |choice, steps, to| crate::graph::Edge { choice, steps, to };
    graph.expand(0, &[edge(Choice::Interrupt(1), 3, 1)]);
    graph.expand(1, &[edge(Choice::Run(0), 1, 2), edge(Choice::Run(1), 2, 2)]);
    graph.expand(2, &[]);
    let path = crate::reach::nearest(&graph, |state| state == 2).expect("a way");
    assert_eq!(path.cost(&graph), (0, 5), "leaving vCPU 1 at 1 is a preemption");
    let way = Way::of(&graph, &path);
    let on = Choice::Run(1);
    assert_eq!(way.choices, [Choice::Interrupt(1), on, on, on, on]);
    assert_eq!(way.states, [Some(0), None, None, Some(1), None, Some(2)]);
}

/// Edges of a graph whose vCPU stands at a word of its own in front of them and behind them, the state being the same.
fn own_rounds(search: &Search<'_>) -> Vec<u8> {
    let is_own = |number: u32, vcpu: usize| {
        search.fusion.own(&search.stage.local(vcpu, search.graph.local(number, vcpu)).parked).is_some()
    };
    let numbers = 0..search.graph.len() as u32;
    let edges = numbers.flat_map(|number| search.graph.edges(number).iter().map(move |edge| (number, edge)));
    edges
        .filter(|(from, edge)| edge.to == *from && is_own(*from, edge.choice.vcpu()))
        .map(|(_, edge)| edge.steps)
        .collect()
}

#[test]
fn wait_for_a_word_of_its_own_goes_round_in_the_graph() {
    let Some(search) = searched("acceptance/nmi-watchdog@vcpus=2", Varied::Nothing) else { return };
    let rounds = own_rounds(&search);
    assert!(!rounds.is_empty() && rounds.iter().all(|steps| *steps < MOST_STEPS / 2), "{rounds:?}");
    assert!(search.findings().stuck > 0, "it waits for ever");
}

#[test]
fn vcpu_with_places_of_delivery_makes_each_step_by_itself() {
    let Some(search) = searched("rendezvous/two-panics@vcpus=2", Varied::Nothing) else { return };
    let edges = (0..search.graph.len() as u32).flat_map(|number| search.graph.edges(number));
    let longest = |vcpu: usize| edges.clone().filter(|edge| edge.choice.vcpu() == vcpu).map(|edge| edge.steps).max();
    let with_places: Vec<_> = (0..2).filter(|vcpu| search.stage.has_places(*vcpu)).collect();
    assert!(!with_places.is_empty() && with_places.into_iter().all(|vcpu| longest(vcpu) == Some(1)));
}

#[test]
fn search_from_a_file_fuses_nothing_where_that_was_given_up() {
    let Some(mut search) = searched("rounds/give-up@vcpus=3", Varied::Nothing) else { return };
    for (times, fuses) in [(MOST_BEGUN - 1, true), (MOST_BEGUN, false)] {
        search.fusion.begun = times;
        let mut saved = Vec::new();
        search.save(&mut saved).expect("memory takes all");
        let mut other = begun("rounds/give-up@vcpus=3", Varied::Nothing).expect("it began once");
        other.restore(&saved).expect("it was written so");
        assert_eq!((other.fusion.begun, other.fusion.is_on), (times, fuses));
    }
}
