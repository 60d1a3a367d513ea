//! What a vCPU does from one stop to the next is the same, whether it runs there or executes one instruction at a time.

use stallbench_explore::{Passages, Settings};

use crate::cell::searched;
use crate::real_kvm::host;

/// Cells with the interrupts, NMIs, halts, locked instructions and devices that the payload has.
const CELLS: [&str; 5] = [
    "mtrr/percpu-lock@vcpus=2",
    "mtrr/today@vcpus=2,apic=xapic,initiator=1",
    "acceptance/lock-and-call@vcpus=2",
    "acceptance/nmi-rendezvous@vcpus=2",
    "acceptance/offline-subject@vcpus=2",
];

#[test]
fn passages_by_single_steps_make_the_same_graph() {
    let Some(host) = host() else { return };
    for name in CELLS {
        let with = |passages| {
            let search = searched(&host, name, Settings { passages, ..Settings::default() });
            let findings = search.findings();
            let ends: Vec<_> = search.ends().map(|end| (end.number(), end.words())).collect();
            (search.counts(), findings.stuck, ends)
        };
        let free = with(Passages::Free);
        assert_eq!(free, with(Passages::Stepped), "{name}");
        assert_eq!(free, with(Passages::Compared), "{name}");
    }
}
