//! A search comes to the same with any number of workers, whatever they bring and when.

use std::collections::BTreeSet;

use stallbench_explore::{Counts, Irq, Limits, Model, Search, Settings, alongside};
use stallbench_image::program;

use crate::cell::machine;
use crate::real_kvm::host;

/// No cell that is asked for here has so many states.
const LIMITS: Limits = Limits { states: 200_000, bytes: 1 << 30 };
/// Kinds of ends.
const MOST_ENDS: usize = 64;

/// All that a search says: what it counts, its checkpoint, what was found, where interrupts come between stops, and the way to each kind of
/// end with the state behind each step.
#[derive(PartialEq)]
struct Said {
    counts: Counts,
    saved: Vec<u8>,
    findings: String,
    places: String,
    ways: Vec<String>,
}

fn said(search: &mut Search<'_>) -> Said {
    let mut saved = Vec::new();
    search.save(&mut saved).unwrap();
    let findings = search.findings();
    let ends = search.kinds_of_ends(&[], MOST_ENDS).ways;
    let stall = findings.stall.as_ref().map(|stuck| stuck.way.clone());
    let ways = ends.into_iter().chain(stall).chain(findings.livelock.as_ref().map(|livelock| livelock.way.clone()));
    let ways: Vec<_> = ways.collect();
    let ways = ways.iter().map(|way| format!("{:?}", search.events(way).unwrap())).collect();
    Said {
        counts: search.counts(),
        saved,
        ways,
        findings: format!("{findings:?}"),
        places: format!("{:?}", search.places_between()),
    }
}

/// What a search of a cell comes to with so many workers, up to so many states first, and how much of it others have brought.
fn with(name: &str, settings: &Settings, workers: usize, first: Option<usize>) -> (Said, u64) {
    let host = host().unwrap();
    let start = || Search::new(machine(&host, name), program(), settings.clone()).ok();
    alongside(workers, &start, |ahead| {
        let begun = || {
            let mut search = start().unwrap();
            assert!(workers == 1 || search.share(ahead), "{name}: they begin in the same way");
            search
        };
        let mut search = begun();
        if let Some(states) = first {
            assert!(!search.run(Limits { states, ..LIMITS }).unwrap(), "{name}");
            let mut saved = Vec::new();
            search.save(&mut saved).unwrap();
            search = begun();
            search.restore(&saved).unwrap();
        }
        assert!(search.run(LIMITS).unwrap(), "{name}");
        let brought = search.brought();
        search.end_sharing();
        (said(&mut search), brought)
    })
}

#[test]
fn any_number_of_workers_comes_to_the_same() {
    if host().is_none() {
        return;
    }
    let every = Settings { irq: Irq::EveryInsn, ..Settings::default() };
    let tso = Settings::under(Model::tso());
    // A stall, a pass, places between two stops, a livelock, an INIT; the latter of tso has interrupts that pass stores.
    for (name, settings) in [
        ("acceptance/lock-and-call@vcpus=2", Settings::default()),
        ("acceptance/lock-and-call@vcpus=2", every),
        ("mtrr/percpu-lock@vcpus=2", Settings::default()),
        ("acceptance/nmi-rendezvous@vcpus=2", Settings::default()),
        ("rendezvous/two-panics@vcpus=2", Settings::default()),
        ("rounds/give-way@vcpus=2", Settings::default()),
        ("acceptance/lost-init-fixed@vcpus=3", Settings::default()),
        ("acceptance/lock-and-call@vcpus=2", tso.clone()),
        ("rendezvous/unfenced@vcpus=2", tso),
    ] {
        let (alone, _) = with(name, &settings, 1, None);
        for workers in [2, 4] {
            let (with_workers, brought) = with(name, &settings, workers, None);
            assert_eq!(with_workers.counts, alone.counts, "{name} {settings}, {workers} workers");
            assert_eq!(with_workers.findings, alone.findings, "{name} {settings}, {workers} workers");
            assert!(with_workers == alone, "{name} {settings}, {workers} workers");
            eprintln!("{name} {settings}, {workers} workers: {brought} of {}", alone.counts.passages);
        }
    }
}

#[test]
fn search_that_goes_on_from_a_checkpoint_comes_to_the_same_with_workers() {
    if host().is_none() {
        return;
    }
    let name = "acceptance/lock-and-call@vcpus=2";
    let settings = Settings::default();
    let whole = with(name, &settings, 1, None).0;
    for (workers, states) in [(1, 100), (2, 100), (2, 400), (4, 1)] {
        assert!(with(name, &settings, workers, Some(states)).0 == whole, "{workers} workers, from {states} states");
    }
}

/// One search after the other, so that workers come and go at other moments each time.
#[test]
fn workers_come_and_go_at_any_moment() {
    if host().is_none() {
        return;
    }
    let name = "rendezvous/unfenced@vcpus=2";
    let (alone, _) = with(name, &Settings::default(), 1, None);
    let brought: BTreeSet<_> = (0..20)
        .map(|_| {
            let (said, brought) = with(name, &Settings::default(), 3, None);
            assert!(said == alone);
            brought
        })
        .collect();
    eprintln!("brought: {brought:?} of {}", alone.counts.passages);
}
