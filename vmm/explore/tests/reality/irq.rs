//! Interrupts at stops against interrupts at every instruction: the same ends, and the same ways to be stuck.

use std::collections::BTreeSet;

use stallbench_explore::{Irq, Settings, Varied};

use crate::cell::searched;
use crate::real_kvm::host;

/// Cells in which an interrupt or NMI comes where it matters; from `two-panics` on also at private memory and registers that its handler and
/// what it interrupts have in common.
const CELLS: [&str; 12] = [
    "acceptance/lock-and-call@vcpus=2",
    "acceptance/early-done@vcpus=2",
    "acceptance/nmi-rendezvous@vcpus=2",
    "mtrr/percpu-lock@vcpus=2",
    "rendezvous/two-panics@vcpus=2",
    "acceptance/dying-cpu@vcpus=2",
    "litmus/interrupted@vcpus=2,flag=left-up",
    "litmus/interrupted@vcpus=2,flag=held",
    "litmus/interrupted@vcpus=2,flag=first",
    "litmus/interrupted@vcpus=2,flag=answered",
    "litmus/interrupted@vcpus=2,flag=stored",
    "litmus/interrupted@vcpus=2,flag=again",
];

#[test]
fn interrupts_at_every_instruction_lead_nowhere_else() {
    let Some(host) = host() else { return };
    let mut between = 0;
    for name in CELLS {
        let with = |irq| {
            let search = searched(&host, name, Settings { irq, varied: Varied::FusesNothing, ..Settings::default() });
            let ends: BTreeSet<_> = search.ends().map(|end| end.words()).collect();
            let stuck: BTreeSet<_> = search.stuck_states().map(|state| state.words()).collect();
            (search.counts().states, ends, stuck)
        };
        let ((visible, ends, stuck), (every, all_ends, all_stuck)) = (with(Irq::Visible), with(Irq::EveryInsn));
        assert_eq!(ends, all_ends, "{name}");
        assert_eq!(stuck, all_stuck, "{name}");
        eprintln!("{name}: {visible} states, {every} at every instruction");
        between += every - visible;
    }
    assert!(between > 0, "there are instructions between two stops");
}
