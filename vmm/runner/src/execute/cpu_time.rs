//! The CPU time that vCPUs had, and how much of it they had to get on in.
//!
//! A vCPU whose every instruction is stepped has its CPU time for the steps: that it had much of it and did not get on says nothing. So
//! it counts as time does meanwhile ([`Patience`](super::patience::Patience)), one of so many parts.

use std::time::Duration;

use stallbench_core::Machine;

/// The CPU time of each vCPU.
#[derive(Clone, Debug)]
pub(super) struct CpuTime {
    had: Vec<Duration>,
    counts: Vec<Duration>,
    now: Vec<Duration>,
}

impl CpuTime {
    /// Of so many vCPUs that have had none.
    pub(super) fn of(vcpus: usize) -> Self {
        let none = vec![Duration::ZERO; vcpus];
        Self { had: none.clone(), counts: none.clone(), now: none }
    }

    /// Takes in what they have had by now; one of `share` parts of what is new counts.
    pub(super) fn note(&mut self, machine: &Machine, share: u32) {
        machine.ran_into(&mut self.now);
        self.take(share);
    }

    /// The same, where none of it counts: they stood still, or were stepped by somebody.
    pub(super) fn forgo(&mut self, machine: &Machine) {
        machine.ran_into(&mut self.now);
        self.had.copy_from_slice(&self.now);
    }

    fn take(&mut self, share: u32) {
        for ((had, counts), now) in self.had.iter_mut().zip(&mut self.counts).zip(&self.now) {
            *counts += now.saturating_sub(*had) / share;
            *had = *now;
        }
    }

    /// All that each has had.
    pub(super) fn had(&self) -> &[Duration] {
        &self.had
    }

    /// What counts of it.
    pub(super) fn counts(&self) -> &[Duration] {
        &self.counts
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn time_of_steps_counts_in_parts() {
        let at = |ms: [u64; 2]| ms.map(Duration::from_millis).to_vec();
        let mut time = CpuTime::of(2);
        for (now, share) in [([10, 0], 1), ([210, 100], 100), ([211, 103], 1)] {
            time.now = at(now);
            time.take(share);
        }
        assert_eq!((time.had(), time.counts()), (&at([211, 103])[..], &at([13, 4])[..]));
    }
}
