//! What of a way matters: the steps that happen before its end, and of those the ones by which vCPUs meet.

use crate::event::{Access, Deed, Event};
use crate::graph::Choice;

/// A line of an account of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// A step that others have to do with: its number, from 1 on.
    Step(usize),
    /// Steps in a row of one vCPU that concern itself alone.
    Own {
        /// The vCPU.
        vcpu: usize,
        /// The first of them.
        first: usize,
        /// The last.
        last: usize,
    },
}

/// An account of a way to a state in which these vCPUs wait: what does not happen before the last step of any of them is left out. `kept`
/// is a step that is shown whatever it does.
pub fn account(events: &[Event], members: &[usize], kept: Option<usize>) -> Vec<Row> {
    let needed = slice(events, members);
    let mut rows: Vec<Row> = Vec::new();
    for (at, event) in events.iter().enumerate().filter(|(at, _)| needed[*at]) {
        let (step, vcpu) = (at + 1, event.choice.vcpu());
        let is_last = events[step..].iter().all(|later| later.choice.vcpu() != vcpu);
        if is_last || kept == Some(step) || concerns_others(events, at) {
            rows.push(Row::Step(step));
            continue;
        }
        match rows.last_mut() {
            Some(Row::Own { vcpu: of, last, .. }) if *of == vcpu => *last = step,
            _ => rows.push(Row::Own { vcpu, first: step, last: step }),
        }
    }
    rows
}

/// Which steps happen before the last step of one of these vCPUs, by the order of each vCPU, by memory that two access, one of them
/// writing, and by interrupts that are sent and taken.
fn slice(events: &[Event], members: &[usize]) -> Vec<bool> {
    let mut needed = vec![false; events.len()];
    for &member in members {
        if let Some(last) = events.iter().rposition(|event| event.choice.vcpu() == member) {
            needed[last] = true;
        }
    }
    for at in (0..events.len()).rev() {
        needed[at] |= (at + 1..events.len()).any(|later| needed[later] && is_before(&events[at], &events[later]));
    }
    needed
}

/// Whether a step cannot change places with a later one.
fn is_before(one: &Event, later: &Event) -> bool {
    let (from, to) = (one.choice.vcpu(), later.choice.vcpu());
    let takes = matches!(later.choice, Choice::Interrupt(_) | Choice::Nmi(_) | Choice::Init(_) | Choice::StartUp(_));
    let gets = |deed: &Deed| matches!(deed, Deed::Send { to: receivers, .. } | Deed::Early { to: receivers, .. } if receivers.contains(&to));
    let sends = one.does.iter().any(gets);
    from == to || takes && sends || meet(one, later)
}

/// Whether two steps access the same memory, one of them writing what others see.
fn meet(one: &Event, other: &Event) -> bool {
    one.does.iter().filter_map(shown).any(|(access, writes)| {
        let mut others = other.does.iter().filter_map(shown);
        others.any(|(its, too)| (writes || too) && overlap(access, its))
    })
}

/// The memory of an access in which others have a part, and whether it is written.
fn shown(deed: &Deed) -> Option<(&Access, bool)> {
    match deed {
        Deed::Read(access) => Some((access, false)),
        Deed::Write(access) | Deed::Land(access) | Deed::Hold(access) => Some((access, true)),
        Deed::Send { .. } | Deed::Early { .. } | Deed::Wrote { .. } | Deed::EndOfInterrupt => None,
    }
}

fn overlap(one: &Access, other: &Access) -> bool {
    let end = |access: &Access| access.address.saturating_add(access.size.into());
    one.address < end(other) && other.address < end(one)
}

/// Whether a step sends or takes an interrupt, or shares memory with a step of another vCPU that comes later or before.
fn concerns_others(events: &[Event], at: usize) -> bool {
    let event = &events[at];
    let sends =
        event.does.iter().any(|deed| matches!(deed, Deed::Send { .. } | Deed::Early { .. } | Deed::Wrote { .. }));
    let is_own = |other: &&Event| other.choice.vcpu() == event.choice.vcpu();
    sends || event.takes.is_some() || events.iter().filter(|other| !is_own(other)).any(|other| meet(event, other))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::event::Place;
    use crate::hash::StateHash;
    use stallbench_core::controlled::Inject;

    fn event(choice: Choice, does: Vec<Deed>) -> Event {
        let takes = matches!(choice, Choice::Interrupt(_)).then_some(Inject::Vector(0xfb));
        let place = Place::default();
        Event { choice, takes, does, from: place.clone(), to: place, hash: StateHash::default() }
    }

    fn access(address: u64) -> Access {
        Access { address, size: 4, value: 1, name: String::new() }
    }

    fn run(vcpu: u8, does: Vec<Deed>) -> Event {
        event(Choice::Run(vcpu), does)
    }

    #[test]
    fn steps_of_one_vcpu_alone_are_one_row() {
        let events = [
            run(0, vec![Deed::Read(access(0x10))]),
            run(0, vec![Deed::Write(access(0x20))]),
            run(0, vec![Deed::Write(access(0x30))]),
            run(1, vec![Deed::Read(access(0x32))]),
        ];
        let own = Row::Own { vcpu: 0, first: 1, last: 2 };
        assert_eq!(account(&events, &[0, 1], None), [own, Row::Step(3), Row::Step(4)]);
        let own = Row::Own { vcpu: 0, first: 2, last: 2 };
        assert_eq!(account(&events, &[0, 1], Some(1)), [Row::Step(1), own, Row::Step(3), Row::Step(4)]);
    }

    #[test]
    fn what_does_not_happen_before_the_wait_is_left_out() {
        let sent = Deed::Send { what: "vector 0xfb".to_owned(), to: vec![1] };
        let events = [
            run(2, vec![Deed::Write(access(0x10))]),
            run(2, vec![Deed::Write(access(0x50))]),
            run(0, vec![sent]),
            event(Choice::Interrupt(1), vec![Deed::Read(access(0x10))]),
            run(0, vec![Deed::Write(access(0x60))]),
            run(2, vec![Deed::Read(access(0x60))]),
        ];
        assert_eq!(slice(&events, &[1]), [true, false, true, true, false, false]);
        assert_eq!(slice(&events, &[2]), [true, true, true, false, true, true]);
    }

    #[test]
    fn two_reads_change_places() {
        let events = [run(0, vec![Deed::Read(access(0x10))]), run(1, vec![Deed::Read(access(0x10))])];
        assert_eq!(slice(&events, &[1]), [false, true]);
    }
}
