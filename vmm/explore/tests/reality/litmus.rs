//! Litmus tests: what is explored is what x86-TSO allows, no more and no less.
//!
//! The sets are those of Owens, Sarkar and Sewell (A Better x86 Memory Model: x86-TSO, TPHOLs 2009), which herd7 gives for the tests of these
//! names in herdtools7 under x86tso.cat: of SB, MP, LB, S, R, 2+2W, IRIW plain, with `+mfences`, with a locked instruction in the place of
//! each fence, and with XCHG for each store; `sb-forward` is iwp2.4 of the Intel white paper, SB+rfi-pos. They are written down here, not computed.

use std::collections::BTreeSet;

use stallbench_explore::{Icr, Model, Search, Settings, Varied};
use stallbench_state::published::Published;

use crate::cell::searched;
use crate::real_kvm::host;

/// The values of the words that a test is about, in their order.
type Outcome = &'static [u64];

/// A test: its name, the words whose values are told, what x86-TSO allows, and which of that what stands between the accesses forbids.
struct Litmus {
    test: &'static str,
    words: &'static [&'static str],
    allowed: &'static [Outcome],
    forbidden_by_fences: &'static [Outcome],
}

const TESTS: [Litmus; 7] = [
    Litmus {
        test: "sb",
        words: &["r0", "r1"],
        allowed: &[&[0, 0], &[0, 1], &[1, 0], &[1, 1]],
        forbidden_by_fences: &[&[0, 0]],
    },
    Litmus { test: "mp", words: &["r0", "r1"], allowed: &[&[0, 0], &[0, 1], &[1, 1]], forbidden_by_fences: &[] },
    Litmus { test: "lb", words: &["r0", "r1"], allowed: &[&[0, 0], &[0, 1], &[1, 0]], forbidden_by_fences: &[] },
    Litmus { test: "s", words: &["r0", "x"], allowed: &[&[0, 1], &[0, 2], &[1, 1]], forbidden_by_fences: &[] },
    Litmus {
        test: "r",
        words: &["y", "r0"],
        allowed: &[&[1, 0], &[1, 1], &[2, 0], &[2, 1]],
        forbidden_by_fences: &[&[2, 0]],
    },
    Litmus { test: "2+2w", words: &["x", "y"], allowed: &[&[1, 2], &[2, 1], &[2, 2]], forbidden_by_fences: &[] },
    // Each reads its own store before others do, and the other's later.
    Litmus {
        test: "sb-forward",
        words: &["r0", "r1", "r2", "r3"],
        allowed: &[&[1, 0, 1, 0], &[1, 0, 1, 1], &[1, 1, 1, 0], &[1, 1, 1, 1]],
        forbidden_by_fences: &[&[1, 0, 1, 0]],
    },
];

fn outcomes(search: &mut Search<'_>, words: &[&str]) -> BTreeSet<Vec<u64>> {
    let first = search.kinds_of_ends(&[], 1).ways.remove(0);
    let named = Published::read(&search.moment(&first, 0).unwrap().memory, 1).ghost.words;
    let address = |name: &&str| {
        let of = |word: &&stallbench_abi::shared::NamedWord| stallbench_abi::text::of(&word.name) == *name;
        named.iter().find(of).unwrap_or_else(|| panic!("no word {name}")).address
    };
    let addresses: Vec<_> = words.iter().map(address).collect();
    search.ends().map(|end| addresses.iter().map(|address| end.read(*address, 4).unwrap()).collect()).collect()
}

fn set<'o>(outcomes: impl IntoIterator<Item = &'o Outcome>) -> BTreeSet<Vec<u64>> {
    outcomes.into_iter().map(|outcome| outcome.to_vec()).collect()
}

fn explored(cell: &str, words: &[&str], model: Model) -> Option<BTreeSet<Vec<u64>>> {
    let host = host()?;
    Some(outcomes(&mut searched(&host, cell, Settings::under(model)), words))
}

#[test]
fn two_threads_come_to_what_x86_tso_allows() {
    for Litmus { test, words, allowed, forbidden_by_fences } in TESTS {
        for fences in ["none", "mfence", "lock", "lock-shared", "xchg"] {
            let cell = format!("litmus/two-threads@vcpus=2,test={test},fences={fences}");
            let mut expected = set(allowed);
            expected.retain(|outcome| fences == "none" || !forbidden_by_fences.contains(&&outcome[..]));
            let Some(found) = explored(&cell, words, Model::tso()) else { return };
            assert_eq!(found, expected, "{cell}");
        }
    }
}

#[test]
fn two_threads_come_to_what_orders_them_under_sc() {
    for Litmus { test, words, allowed, forbidden_by_fences } in TESTS {
        let cell = format!("litmus/two-threads@vcpus=2,test={test},fences=none");
        let mut expected = set(allowed);
        expected.retain(|outcome| !forbidden_by_fences.contains(&&outcome[..]));
        let Some(found) = explored(&cell, words, Model::Sc) else { return };
        assert_eq!(found, expected, "{cell}");
    }
}

#[test]
fn two_threads_come_to_what_orders_them_where_no_store_is_held_back() {
    let Some(host) = host() else { return };
    for Litmus { test, words, allowed, forbidden_by_fences } in TESTS {
        let cell = format!("litmus/two-threads@vcpus=2,test={test},fences=none");
        let settings = Settings { varied: Varied::NoFlush, ..Settings::under(Model::tso()) };
        let found = outcomes(&mut searched(&host, &cell, settings), words);
        // What x86-TSO allows and fences forbid is what stores make that are seen late: it is missing, and nothing else is.
        let missing: BTreeSet<_> = set(allowed).difference(&found).cloned().collect();
        assert_eq!(missing, set(forbidden_by_fences), "{cell}");
    }
}

#[test]
fn independent_reads_see_independent_writes_in_one_order() {
    let all = (0..16_u64).map(|bits| (0..4).map(|bit| bits >> bit & 1).collect::<Vec<_>>());
    let expected: BTreeSet<_> = all.filter(|outcome| outcome[..] != [1, 0, 1, 0]).collect();
    for fences in ["none", "mfence", "lock", "lock-shared", "xchg"] {
        let cell = format!("litmus/four-threads@vcpus=4,fences={fences}");
        let Some(found) = explored(&cell, &["r0", "r1", "r2", "r3"], Model::tso()) else { return };
        assert_eq!(found, expected, "{cell}");
    }
}

#[test]
fn search_is_not_complete_where_one_more_store_could_be_held_back() {
    let Some(host) = host() else { return };
    let model = Model::Tso { icr: Icr::Buffer, buffer: 1 };
    // What a thread has read is a second store of it.
    for (fences, is_complete) in [("none", false), ("mfence", true)] {
        let cell = format!("litmus/two-threads@vcpus=2,test=sb,fences={fences}");
        let findings = searched(&host, &cell, Settings { model, ..Settings::default() }).findings();
        assert_eq!((findings.is_complete, findings.full > 0), (is_complete, !is_complete), "{cell}");
    }
}

/// 1: down, 2: up. Between two stops the flag is written where interrupts are off at the next one, or off at each write; or in front of the
/// first stop, where an NMI may come before it has its handler as well (0); or behind an access that the interrupt answers. Or an NMI is looked
/// for in front of STI and behind it, and comes in between (3). Or it is the second of its vector, behind the delivery of the first.
#[test]
fn interrupt_finds_a_private_flag_up_and_down_wherever_it_can_come() {
    let tests: [(_, &[u64]); 6] = [
        ("left-up", &[1, 2]),
        ("held", &[1, 2]),
        ("first", &[0, 1, 2]),
        ("answered", &[1, 2]),
        ("stored", &[1, 3, 4]),
        ("again", &[0, 2]),
    ];
    for (model, (flag, expected)) in
        [Model::Sc, Model::tso()].into_iter().flat_map(|model| tests.map(|test| (model, test)))
    {
        let cell = format!("litmus/interrupted@vcpus=2,flag={flag}");
        let Some(found) = explored(&cell, &["found"], model) else { return };
        assert_eq!(found, expected.iter().map(|found| vec![*found]).collect(), "{cell} {model}");
    }
}
