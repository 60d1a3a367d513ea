//! The wait=0 contract: a call whose wait argument is 0 does not wait for the end of its own callback.
//!
//! Checked by events, not by stalls: a call that broke its promise and came back all the same is found too. A wait for a
//! record of an earlier call of one's own is no breach, and counted.

use stallbench_abi::event::{Event, EventKind};
use stallbench_abi::image::SiteKind;
use stallbench_stall::code::Code;
use stallbench_state::published::Ring;

use crate::outcome::{Breach, BreachKind, Wait0Outcome};

/// What the events say of a run's calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// The first call, in the order of vCPUs, that broke the contract.
    pub breach: Option<Breach>,
    /// Waits for a record of an earlier call of one's own that did not end at the first look.
    pub residual_waits: usize,
    /// Whether events were lost, so that a breach may be among them.
    pub lost: bool,
}

impl Calls {
    /// Reads the event rings of a machine that stands still.
    pub fn of(code: &dyn Code, rings: &[Ring]) -> Self {
        let mut calls = Self::default();
        for (vcpu, ring) in rings.iter().enumerate() {
            calls.add(code, vcpu, ring);
        }
        calls
    }

    /// The word of the report.
    pub fn wait0(&self) -> Wait0Outcome {
        match (&self.breach, self.lost) {
            (Some(_), _) => Wait0Outcome::Broken,
            (None, true) => Wait0Outcome::NotObserved,
            (None, false) => Wait0Outcome::Kept,
        }
    }

    fn add(&mut self, code: &dyn Code, vcpu: usize, ring: &Ring) {
        let mut open = Open::default();
        for event in &ring.events {
            self.event(code, vcpu, event, &mut open);
        }
        // Those that never ended.
        self.residual_waits += open.record_waits.len();
        self.lost |= ring.lost > 0;
    }

    fn event(&mut self, code: &dyn Code, vcpu: usize, event: &Event, open: &mut Open) {
        match event.kind {
            EventKind::CALL if event.arg & 1 == 0 => open.calls.push(event.a),
            EventKind::CALL_RETURN => open.calls.retain(|call| *call != event.a),
            EventKind::WAIT => self.wait(code, vcpu, event, open),
            EventKind::WAIT_END => {
                let ended = open.record_waits.iter().rposition(|wait| *wait == (event.a, event.depth));
                if ended.map(|at| open.record_waits.remove(at)).is_some() {
                    self.residual_waits += usize::from(event.arg != 0);
                }
            }
            _ => {}
        }
    }

    fn wait(&mut self, code: &dyn Code, vcpu: usize, event: &Event, open: &mut Open) {
        let Some(site) = code.site_at(event.a) else { return };
        match site.kind {
            SiteKind::RECORD => open.record_waits.push((event.a, event.depth)),
            SiteKind::COMPLETION if open.calls.contains(&event.b) => {
                self.breach.get_or_insert_with(|| Breach {
                    kind: BreachKind::Wait0Waited,
                    vcpu,
                    site: site.function.clone(),
                    reason: format!("call #{} has wait=0 and waits for its own callback", event.b),
                });
            }
            _ => {}
        }
    }
}

/// What one vCPU has begun and not ended.
#[derive(Default)]
struct Open {
    /// Numbers of calls with wait=0.
    calls: Vec<u64>,
    /// Site and depth of waits for a record.
    record_waits: Vec<(u64, u16)>,
}

#[cfg(test)]
mod test {
    use stallbench_state::program::SiteInfo;

    use super::*;

    struct Sites([SiteInfo; 2]);

    impl Code for Sites {
        fn site_at(&self, descriptor: u64) -> Option<&SiteInfo> {
            self.0.iter().find(|site| site.address == descriptor)
        }

        fn site_of_rip(&self, _: u64) -> Option<&SiteInfo> {
            None
        }

        fn symbol(&self, _: u64) -> Option<(String, u64)> {
            None
        }
    }

    const COMPLETION: u64 = 1;
    const RECORD: u64 = 2;

    fn sites() -> Sites {
        let site = |address, kind, function: &str| SiteInfo {
            address,
            function: function.into(),
            step: String::new(),
            word: "flag".into(),
            kind,
        };
        Sites([site(COMPLETION, SiteKind::COMPLETION, "call_many"), site(RECORD, SiteKind::RECORD, "csd_lock")])
    }

    fn event(kind: EventKind, arg: u32, a: u64, b: u64) -> Event {
        Event { kind, arg, a, b, ..Event::default() }
    }

    fn calls(events: &[Event], lost: u64) -> Calls {
        let mut calls = Calls::default();
        calls.add(&sites(), 3, &Ring { events: events.to_vec(), lost });
        calls
    }

    #[test]
    fn call_with_wait_0_that_waits_for_itself_is_a_breach() {
        let found = calls(&[event(EventKind::CALL, 0, 7, 0), event(EventKind::WAIT, 0, COMPLETION, 7)], 0);
        let breach = found.breach.as_ref().expect("a breach");
        assert_eq!((breach.vcpu, breach.site.as_str()), (3, "call_many"));
        assert_eq!(found.wait0(), Wait0Outcome::Broken);
    }

    #[test]
    fn wait_of_another_call_or_after_the_return_is_none() {
        let call = |wait| event(EventKind::CALL, wait, 7, 0);
        let wait = |call| event(EventKind::WAIT, 0, COMPLETION, call);
        let cases = [
            vec![call(1), wait(7)],
            vec![call(0), wait(6)],
            vec![call(0), event(EventKind::CALL_RETURN, 0, 7, 0), wait(7)],
            vec![wait(7)],
        ];
        for events in cases {
            assert_eq!(calls(&events, 0).wait0(), Wait0Outcome::Kept, "{events:?}");
        }
    }

    #[test]
    fn lost_events_leave_the_contract_unobserved_unless_a_breach_is_seen() {
        assert_eq!(calls(&[], 1).wait0(), Wait0Outcome::NotObserved);
        let breach = [event(EventKind::CALL, 0, 7, 0), event(EventKind::WAIT, 0, COMPLETION, 7)];
        assert_eq!(calls(&breach, 1).wait0(), Wait0Outcome::Broken);
    }

    #[test]
    fn waits_for_a_record_count_when_they_waited_or_never_ended() {
        let wait = event(EventKind::WAIT, 0, RECORD, 6);
        let end = |waited| event(EventKind::WAIT_END, waited, RECORD, 6);
        assert_eq!(calls(&[wait, end(0)], 0).residual_waits, 0);
        assert_eq!(calls(&[wait, end(1)], 0).residual_waits, 1);
        assert_eq!(calls(&[wait, end(1), wait], 0).residual_waits, 2);
        assert_eq!(calls(&[end(1)], 0).residual_waits, 0, "its beginning was lost");
    }
}
