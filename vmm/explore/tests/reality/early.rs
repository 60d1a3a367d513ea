//! Interrupts that come before their time: what passes a fence, and what does not.

use stallbench_explore::{Icr, Limits, Model, Search, Settings};

use crate::cell::{machine, searched};
use crate::real_kvm::host;

fn under(icr: Icr) -> Settings {
    let Model::Tso { buffer, .. } = Model::tso() else { unreachable!("it is no other") };
    Settings::under(Model::Tso { icr, buffer })
}

/// What is lost where an interrupt comes before a store: with nothing between, with MFENCE, with MFENCE and LFENCE.
#[test]
fn interrupt_passes_what_it_may_pass_and_no_more() {
    let Some(host) = host() else { return };
    let stalls = |scenario: &str, icr| {
        searched(&host, &format!("rendezvous/{scenario}@vcpus=2"), under(icr)).findings().stuck > 0
    };
    let fences = ["unfenced", "half-fenced", "unfenced-fixed"];
    let of = |icr| fences.map(|scenario| stalls(scenario, icr));
    assert_eq!(of(Icr::Ordered), [false, false, false]);
    assert_eq!(of(Icr::Buffer), [true, false, false]);
    assert_eq!(of(Icr::Early), [true, true, false]);
}

/// Behind MFENCE and LFENCE nothing is sent early: there is nothing more to explore than without.
#[test]
fn fences_of_the_manual_leave_nothing_to_send_early() {
    let Some(host) = host() else { return };
    for name in ["rendezvous/unfenced-fixed@vcpus=2", "acceptance/lock-and-call@vcpus=2"] {
        let counts = |icr| {
            let counts = searched(&host, name, under(icr)).counts();
            (counts.states, counts.transitions)
        };
        assert_eq!(counts(Icr::Early), counts(Icr::Buffer), "{name}");
    }
}

#[test]
fn search_that_ended_early_in_any_round_goes_on_to_the_same() {
    let Some(host) = host() else { return };
    let name = "rendezvous/half-fenced@vcpus=2";
    let whole = searched(&host, name, under(Icr::Early));
    // The first round, in which nothing can be sent early, has 189 states.
    for states in [100, 250] {
        let mut first = Search::new(machine(&host, name), stallbench_image::program(), under(Icr::Early)).unwrap();
        assert!(!first.run(Limits { states, bytes: 1 << 30 }).unwrap(), "{states}");
        let mut saved = Vec::new();
        first.save(&mut saved).unwrap();
        let mut other = Search::new(machine(&host, name), stallbench_image::program(), under(Icr::Early)).unwrap();
        other.restore(&saved).unwrap();
        assert_eq!(other.counts().states, first.counts().states);
        assert!(other.run(Limits { states: usize::MAX, bytes: 1 << 30 }).unwrap());
        let of = |search: &Search<'_>| (search.counts().states, search.counts().transitions, search.findings().stuck);
        assert_eq!(of(&other), of(&whole), "{states}");
    }
}
