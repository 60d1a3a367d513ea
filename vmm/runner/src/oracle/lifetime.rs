//! Uses of objects of the arena after their life, as protocols record them at their own steps ([`EventKind::LIFE_BREACH`]).
//!
//! A use that changes nothing is found too: nothing need stall, and memory that is dead keeps its bytes for a while.

use stallbench_abi::event::{Event, EventKind, text_of};
use stallbench_abi::text;
use stallbench_stall::lifetime::Object;
use stallbench_state::memory::Memory;
use stallbench_state::published::Ring;

use crate::outcome::{Breach, BreachKind};

/// Bytes of a step that are read.
const STEP: usize = 64;
/// Breaches that are told apart; what more there is says the same.
const LISTED: usize = 8;

/// The breaches of all vCPUs, in the order in which they happened, one for each step of a vCPU.
pub fn breaches(memory: &dyn Memory, rings: &[Ring]) -> Vec<Breach> {
    let all = || rings.iter().enumerate().flat_map(|(vcpu, ring)| ring.events.iter().map(move |event| (vcpu, event)));
    let mut found: Vec<(usize, &Event)> = all().filter(|(_, event)| event.kind == EventKind::LIFE_BREACH).collect();
    found.sort_by_key(|(_, event)| event.clock);
    let mut breaches: Vec<Breach> = Vec::new();
    for (vcpu, event) in found {
        let site = step(memory, event.b);
        let is_known = breaches.iter().any(|breach| breach.vcpu == vcpu && breach.site == site);
        if is_known || breaches.len() == LISTED {
            continue;
        }
        let gone = Object { address: event.a, generation: event.arg }.fate(memory, all());
        let reason = format!("it uses {}, {}", gone.name, gone.ending());
        breaches.push(Breach { kind: BreachKind::Lifetime, vcpu, site, reason });
    }
    breaches
}

/// A text of the image that a guest points at.
pub(super) fn step(memory: &dyn Memory, argument: u64) -> String {
    let (address, length) = text_of(argument);
    let mut bytes = [0; STEP];
    let field = &mut bytes[..length.min(STEP)];
    match memory.read(address, field).then(|| text::of(field)) {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => format!("a step at {address:#x}"),
    }
}

#[cfg(test)]
mod test {
    use stallbench_abi::arena::Life;
    use stallbench_abi::event::text_at;
    use stallbench_state::memory::Snippet;

    use super::*;

    const STEPS: u64 = 0x10_0000;
    const RECORD: u64 = 0x40_0100;

    fn memory() -> Snippet {
        Snippet { base: STEPS, bytes: b"ipi_handler B6, and so on".to_vec() }
    }

    fn event(clock: u64, kind: EventKind, arg: u32, b: u64) -> Event {
        Event { clock, kind, arg, a: RECORD, b, ..Event::default() }
    }

    fn ring(events: &[Event]) -> Ring {
        Ring { events: events.to_vec(), lost: 0 }
    }

    #[test]
    fn use_after_the_end_is_a_breach_that_names_the_step_and_who_ended_it() {
        let name = u64::from_le_bytes(*b"set_mtrr");
        let end = event(1, EventKind::LIFE, Life::DEAD.0 | 5 << 8, name);
        let touch = |clock| event(clock, EventKind::LIFE_BREACH, 5, text_at(STEPS, 14));
        let found = breaches(&memory(), &[ring(&[end]), ring(&[touch(2), touch(3)])]);
        let reason = "it uses set_mtrr@0x400100, whose life vcpu0 ended".to_owned();
        assert_eq!(found, [Breach { kind: BreachKind::Lifetime, vcpu: 1, site: "ipi_handler B6".into(), reason }]);
    }

    #[test]
    fn breaches_come_in_the_order_in_which_they_happened() {
        let touch = |clock| event(clock, EventKind::LIFE_BREACH, 5, text_at(STEPS, 14));
        let found = breaches(&memory(), &[ring(&[touch(9)]), ring(&[touch(4)])]);
        assert_eq!(found.iter().map(|breach| breach.vcpu).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn lives_that_end_in_good_time_are_no_breach() {
        let end = event(1, EventKind::LIFE, Life::DEAD.0 | 5 << 8, 0);
        assert_eq!(breaches(&memory(), &[ring(&[end])]), []);
    }

    #[test]
    fn step_of_any_address_and_length_has_a_text() {
        assert_eq!(step(&memory(), text_at(0x10, 8)), "a step at 0x10");
        assert_eq!(step(&memory(), text_at(STEPS, 0xffff)), format!("a step at {STEPS:#x}"));
        assert_eq!(step(&memory(), text_at(STEPS, 0)), format!("a step at {STEPS:#x}"));
    }
}
