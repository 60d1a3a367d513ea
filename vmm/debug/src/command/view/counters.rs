//! What is counted of each vCPU, and what that is a second. The guest's numbers may be any.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use stallbench_abi::event::EventKind;
use stallbench_abi::vcpu::VcpuPage;
use stallbench_state::published::{Ring, events};

use crate::session::Session;

/// The counter of all exits, as the kernel calls it.
const EXITS: &str = "exits";
/// Shortest time that anything is counted against.
const SHORTEST: Duration = Duration::from_micros(1);

/// The counters of one look at a machine.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(super) at: Instant,
    pub(super) vcpus: Vec<Counters>,
    /// Why there are no counters of the kernel.
    pub(super) no_statistics: Option<String>,
}

/// What is counted of a vCPU.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub(super) progress: u64,
    pub(super) interrupts: u64,
    events: u64,
    /// Of the newest events, the oldest first, which are IPIs.
    newest: Vec<bool>,
    ran: Duration,
    statistics: Option<Vec<(String, u64)>>,
}

/// What happened to a vCPU a second.
#[derive(Clone, Debug)]
pub(super) struct Rates {
    pub(super) progress: f64,
    interrupts: f64,
    pub(super) ipis: f64,
    /// The share of a processor.
    pub(super) cpu: f64,
    statistics: Option<Vec<(String, f64)>>,
}

impl Frame {
    /// The counters now: of what was seen last, and of the kernel.
    pub(super) fn take(session: &mut Session) -> Self {
        let statistics = match session.live() {
            Some(live) => live.statistics().map_err(|error| error.to_string()),
            None => Err("this is a dump".into()),
        };
        let at = Instant::now();
        let published = session.published();
        let of = |(vcpu, page): (usize, &VcpuPage)| {
            let ring =
                if session.guest().contract().is_some() { events(session.memory(), vcpu) } else { Ring::default() };
            Counters {
                progress: page.progress,
                interrupts: page.interrupts,
                events: page.events,
                newest: ring.events.iter().map(|event| event.kind == EventKind::IPI).collect(),
                ran: session.vcpus()[vcpu].ran,
                statistics: statistics.as_ref().ok().and_then(|all| all.get(vcpu)).cloned(),
            }
        };
        let vcpus = published.vcpus.iter().enumerate().map(of).collect();
        Self { at, vcpus, no_statistics: statistics.err() }
    }

    /// What happened to a vCPU a second since another frame of as many vCPUs.
    pub(super) fn rates(&self, before: &Self, vcpu: usize, elapsed: Duration) -> Rates {
        let (now, before) = (&self.vcpus[vcpu], &before.vcpus[vcpu]);
        let seconds = elapsed.max(SHORTEST).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let statistics = now.statistics.as_ref().map(|all| {
            let of = |(name, value): &(String, u64)| Some((name.clone(), rate(*value, before.statistic(name)?)));
            all.iter().filter_map(of).collect()
        });
        Rates {
            progress: rate(now.progress, before.progress),
            interrupts: rate(now.interrupts, before.interrupts),
            ipis: now.ipis_since(before.events) / seconds,
            cpu: now.ran.saturating_sub(before.ran).as_secs_f64() / seconds,
            statistics,
        }
    }
}

impl Counters {
    fn statistic(&self, name: &str) -> Option<u64> {
        let (_, value) = self.statistics.as_ref()?.iter().find(|(other, _)| other == name)?;
        Some(*value)
    }

    /// All exits.
    pub(super) fn exits(&self) -> Option<u64> {
        self.statistic(EXITS)
    }

    pub(super) fn statistics_in_data(&self) -> Option<Map<String, Value>> {
        let all = self.statistics.as_ref()?;
        Some(all.iter().map(|(name, value)| (name.clone(), json!(value))).collect())
    }

    /// The IPIs among the events since there were so many; of those that the ring lost, as many as of those that it holds.
    fn ipis_since(&self, events: u64) -> f64 {
        let new = self.events.saturating_sub(events);
        let held = usize::try_from(new).unwrap_or(usize::MAX).min(self.newest.len());
        let ipis = self.newest[self.newest.len() - held..].iter().filter(|is_ipi| **is_ipi).count();
        if held == 0 { 0.0 } else { ipis as f64 * (new as f64 / held as f64) }
    }
}

impl Rates {
    pub(super) fn exits(&self) -> Option<f64> {
        let (_, rate) = self.statistics.as_ref()?.iter().find(|(name, _)| name == EXITS)?;
        Some(*rate)
    }

    pub(super) fn in_data(&self, published: bool) -> Value {
        let ours = |rate: f64| published.then_some(rate);
        json!({
            "progress": ours(self.progress),
            "interrupts": ours(self.interrupts),
            "ipis": ours(self.ipis),
            "exits": self.exits(),
            "cpu": self.cpu,
        })
    }

    pub(super) fn statistics_in_data(&self) -> Option<Map<String, Value>> {
        let all = self.statistics.as_ref()?;
        Some(all.iter().map(|(name, rate)| (name.clone(), json!(rate))).collect())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ipis_that_the_ring_lost_are_as_many_as_among_those_that_it_holds() {
        let of = |events, newest: &[bool], before| {
            Counters { events, newest: newest.to_vec(), ..Counters::default() }.ipis_since(before)
        };
        assert_eq!(of(4, &[true, false, true, true], 2), 2.0);
        assert_eq!(of(4, &[true, false, true, true], 4), 0.0);
        assert_eq!(of(108, &[true, false, true, true], 100), 6.0);
        assert_eq!(of(3, &[true], 9), 0.0, "the guest may count as it likes");
        assert!(of(u64::MAX, &[true], 0).is_finite());
    }
}
