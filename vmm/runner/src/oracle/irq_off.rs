//! Sections with interrupts off that are longer than the scenario's budget, in visible steps: events of all vCPUs.

use stallbench_abi::event::EventKind;
use stallbench_state::memory::Memory;
use stallbench_state::published::Ring;

use super::lifetime::step;
use crate::outcome::{Breach, BreachKind};

/// The first section of each vCPU that is over budget. `clock` is the place of the next event, where a section has no end yet; a
/// budget of 0 is none.
pub fn breaches(memory: &dyn Memory, rings: &[Ring], clock: u64, budget: u64) -> Vec<Breach> {
    if budget == 0 {
        return Vec::new();
    }
    let of_vcpu = |(vcpu, ring): (usize, &Ring)| {
        let (site, steps) = sections(memory, ring, clock).into_iter().find(|(_, steps)| *steps > budget)?;
        let reason = format!("interrupts are off for {steps} visible steps, {budget} are allowed");
        Some(Breach { kind: BreachKind::IrqOff, vcpu, site, reason })
    };
    rings.iter().enumerate().filter_map(of_vcpu).collect()
}

/// Name and steps of each section of a vCPU, those that have ended first. The end says when it began, so that a section
/// whose beginning is lost is measured too.
fn sections(memory: &dyn Memory, ring: &Ring, clock: u64) -> Vec<(String, u64)> {
    let (mut ended, mut open) = (Vec::new(), Vec::new());
    for event in ring.events.iter().filter(|event| event.kind == EventKind::IRQ_OFF) {
        if event.arg != 0 {
            open.push((event.clock, event.b));
            continue;
        }
        open.retain(|(began, _)| *began != event.a);
        ended.push((step(memory, event.b), between(event.a, event.clock)));
    }
    let open = open.into_iter().map(|(began, name)| (step(memory, name), between(began, clock)));
    ended.into_iter().chain(open).collect()
}

fn between(began: u64, ended: u64) -> u64 {
    ended.saturating_sub(began).saturating_sub(1)
}

#[cfg(test)]
mod test {
    use stallbench_abi::event::{Event, text_at};
    use stallbench_state::memory::Snippet;

    use super::*;

    const NAMES: u64 = 0x10_0000;

    fn event(clock: u64, arg: u32, began: u64) -> Event {
        Event { clock, kind: EventKind::IRQ_OFF, arg, a: began, b: text_at(NAMES, 8), ..Event::default() }
    }

    fn found(events: &[Event], clock: u64, budget: u64) -> Vec<Breach> {
        let memory = Snippet { base: NAMES, bytes: b"set_mtrr".to_vec() };
        breaches(&memory, &[Ring::default(), Ring { events: events.to_vec(), lost: 0 }], clock, budget)
    }

    #[test]
    fn section_over_budget_is_a_breach_with_its_steps() {
        let section = [event(10, 1, 0), event(16, 0, 10)];
        let reason = "interrupts are off for 5 visible steps, 4 are allowed".to_owned();
        let breach = Breach { kind: BreachKind::IrqOff, vcpu: 1, site: "set_mtrr".into(), reason };
        assert_eq!(found(&section, 17, 4), [breach]);
        assert_eq!(found(&section, 17, 5), []);
        assert_eq!(found(&section, 17, 0), [], "no budget");
    }

    #[test]
    fn each_section_is_measured_by_itself() {
        let sections = [event(1, 1, 0), event(4, 0, 1), event(5, 1, 0), event(8, 0, 5)];
        assert_eq!(found(&sections, 9, 2), []);
        assert_eq!(found(&sections, 9, 1).len(), 1, "one of each vCPU");
    }

    #[test]
    fn section_whose_beginning_is_lost_is_measured() {
        assert_eq!(found(&[event(16, 0, 10)], 17, 4).len(), 1);
    }

    #[test]
    fn section_without_an_end_lasts_until_now() {
        assert_eq!(found(&[event(10, 1, 0)], 15, 4), []);
        assert_eq!(found(&[event(10, 1, 0)], 16, 4).len(), 1);
    }

    #[test]
    fn nested_sections_are_measured_each() {
        let nested = [event(10, 1, 0), event(11, 1, 0), event(12, 0, 11), event(20, 0, 10)];
        assert_eq!(found(&nested, 21, 4).len(), 1);
        assert_eq!(found(&nested[1..3], 21, 4), []);
    }
}
