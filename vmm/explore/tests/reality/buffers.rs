//! Stores that come to memory as late as they can lead to what stores lead to that come to it at any time.

use std::collections::BTreeSet;

use stallbench_explore::{Findings, Icr, Model, Search, Settings, Varied, Way};

use crate::cell::searched;
use crate::real_kvm::host;

/// Cells, and how many stores a vCPU holds back: with interrupts off and on in the callers, with NMIs, with a fault; where a vCPU could hold
/// back more. One with a livelock has too many states for that.
const CELLS: [(&str, usize); 9] = [
    ("acceptance/lock-and-call@vcpus=2", 256),
    ("acceptance/early-done-fixed@vcpus=2", 256),
    ("mtrr/percpu-lock@vcpus=2", 256),
    ("mtrr/percpu-lock@vcpus=2", 1),
    ("acceptance/nmi-rendezvous@vcpus=2", 256),
    ("rendezvous/unfenced@vcpus=2", 256),
    ("call/without-fences@vcpus=2", 256),
    ("records/handler-before-data@vcpus=2", 256),
    ("crash/panic@vcpus=2,initiator=0", 256),
];

/// What lies in the arena at each end of the run.
fn ends(search: &Search<'_>) -> BTreeSet<Vec<(u64, u64)>> {
    search.ends().map(|end| end.words()).collect()
}

/// What is found: whether there is a stall, a livelock, a fault, and a buffer that is full, with the preemptions that the nearest takes.
fn kinds(findings: &Findings) -> ([Option<usize>; 3], bool) {
    let Findings { stall, livelock, fault, full, .. } = findings;
    let ways = [stall.as_ref().map(|stall| &stall.way), livelock.as_ref().map(|round| &round.way), fault.as_ref()];
    (ways.map(|way| way.map(Way::preemptions)), *full > 0)
}

#[test]
fn store_is_seen_no_later_than_it_matters() {
    let Some(host) = host() else { return };
    let mut spared = 0;
    for (name, buffer) in CELLS {
        let model = Model::Tso { icr: Icr::Buffer, buffer };
        let with = |varied| searched(&host, name, Settings { varied, ..Settings::under(model) });
        let (late, any_time) = (with(Varied::Nothing), with(Varied::FlushesAnyTime));
        assert_eq!(ends(&late), ends(&any_time), "{name}");
        assert_eq!(kinds(&late.findings()), kinds(&any_time.findings()), "{name}");
        spared += any_time.counts().states - late.counts().states;
    }
    assert!(spared > 5_000, "that is what it is for: {spared}");
}
