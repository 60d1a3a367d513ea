//! Guests that try to make the bench lie: whether each is dead or alive is known by how it is built, and the verdict has to be
//! that. What each of them does, and why that is the truth about it, is listed in docs/truth.md.
//!
//! `STALLBENCH_TRUTH=part` runs those guests alone whose names have that part.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../binary.rs"]
mod binary;
mod code;
mod counting;
mod elf;
mod endless;
mod guest;
mod halts;
mod hidden;
mod interrupts;
mod live;
mod load;
mod locks;
#[path = "../missing.rs"]
mod missing;
mod run;
mod spins;
mod thousand;
mod writers;

use std::collections::HashSet;
use std::fs;

use guest::{Guest, Truth};
use missing::kvm_is_missing;
use run::{Bench, Ran};

/// How many guests there are to be at least.
const AT_LEAST: usize = 60;
/// How often a guest is run that the host starves.
const TRIES: usize = 4;

fn all() -> Vec<Guest> {
    let groups = [
        spins::guests(),
        counting::guests(),
        locks::guests(),
        halts::guests(),
        live::guests(),
        hidden::guests(),
        interrupts::guests(),
        endless::guests(),
    ];
    groups.into_iter().flatten().collect()
}

/// Those that are asked for.
fn selected(guests: Vec<Guest>) -> Vec<Guest> {
    let part = std::env::var("STALLBENCH_TRUTH").unwrap_or_default();
    guests.into_iter().filter(|guest| guest.title().contains(&part)).collect()
}

/// One run of a guest. That the host starved it says nothing about it: then another.
fn served(bench: &Bench, guest: &Guest) -> Ran {
    let mut runs = (0..TRIES).map(|number| bench.run(guest, number, &[]));
    let served = runs.find(|ran| ran.verdict() != "starved");
    served.unwrap_or_else(|| panic!("{}: starved {TRIES} times", guest.title()))
}

/// Runs each guest once; fails with all verdicts that are not the truth.
fn assert_truth(guests: Vec<Guest>) {
    if kvm_is_missing() {
        return;
    }
    let bench = Bench::new();
    let guests = selected(guests);
    let lies: Vec<String> = guests.iter().filter_map(|guest| served(&bench, guest).lie(guest)).collect();
    assert!(lies.is_empty(), "{} of {} verdicts are not the truth:\n{}", lies.len(), guests.len(), lies.join("\n"));
}

#[test]
fn guests_that_spin_are_stalls() {
    assert_truth(spins::guests());
}

#[test]
fn guests_that_count_while_they_spin_are_stalls() {
    assert_truth(counting::guests());
}

#[test]
fn guests_that_wait_for_each_other_are_stalls() {
    assert_truth(locks::guests());
}

#[test]
fn guests_that_halt_or_take_no_interrupt_are_stalls() {
    assert_truth(halts::guests());
}

#[test]
fn guests_that_end_by_themselves_pass() {
    assert_truth(live::guests());
}

#[test]
fn guests_that_hide_what_they_count_pass() {
    assert_truth(hidden::guests());
}

#[test]
fn guests_that_something_wakes_pass() {
    assert_truth(interrupts::guests());
}

#[test]
fn guests_without_an_end_in_sight_say_what_goes_on() {
    assert_truth(endless::guests());
}

#[test]
fn guests_are_as_many_as_they_should_be_and_each_has_a_name_of_its_own() {
    let guests = all();
    let titles: HashSet<String> = guests.iter().map(Guest::title).collect();
    assert_eq!(titles.len(), guests.len());
    let names: HashSet<&str> = guests.iter().map(|guest| guest.name).collect();
    assert!(names.len() >= AT_LEAST, "{} guests", names.len());
    for guest in &guests {
        assert!(guest.file().is_ok(), "{} cannot be assembled: {:?}", guest.name, guest.file());
    }
}

#[test]
fn generator_of_the_search_comes_to_its_end_soon() {
    let turns = live::xorshift_turns(13);
    assert!((100..100_000).contains(&turns), "{turns} turns");
}

/// The list of docs/truth.md: a line a guest.
fn list() -> String {
    let mut lines: Vec<String> = Vec::new();
    let guests = all();
    let mut told = HashSet::new();
    for guest in guests.iter().filter(|guest| told.insert(guest.name)) {
        let vcpus: Vec<_> =
            guests.iter().filter(|other| other.name == guest.name).map(|g| g.vcpus.to_string()).collect();
        let flags: Vec<_> = guest.flags.iter().map(|flag| format!(" `{flag}`")).collect();
        let (name, vcpus) = (guest.name, vcpus.join(", "));
        lines.push(format!("| `{name}`{} | {vcpus} | {} | {} |", flags.concat(), guest.truth.told(), guest.why));
    }
    lines.join("\n")
}

#[test]
fn guests_are_listed_in_the_documentation() {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/truth.md")).unwrap();
    let list = list();
    assert!(document.contains(&list), "docs/truth.md should end with this list:\n{list}");
}

#[test]
fn truth_that_is_a_stall_is_half_of_them() {
    let guests = all();
    let dead = guests.iter().filter(|guest| matches!(guest.truth, Truth::Dead(_))).count();
    let live = guests.iter().filter(|guest| guest.truth == Truth::Live).count();
    assert!(dead >= AT_LEAST / 2 && live >= AT_LEAST / 2, "{dead} dead, {live} live");
}
