//! When to suspect a stall: progress weighed against the CPU time that the vCPU threads got.
//!
//! Suspecting decides nothing. It costs a short stop of the machine, and what the stopped machine says decides. Wall time
//! alone lies: on two busy CPUs a live rendezvous of four vCPUs shows gaps of tens of milliseconds. So a vCPU that had the CPU
//! counts by how long it had it; one that had none for a while is halted or starved, which only its state can tell.

use core::time::Duration;

/// How much CPU time it takes to suspect, and to be sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// CPU time that each busy vCPU must have had since the last progress.
    pub suspicion: Duration,
    /// Wall time without any CPU time after which a vCPU does not count as busy.
    pub quiet: Duration,
    /// CPU time that each waiting vCPU must have had between two captures.
    pub confirm: Duration,
    /// The most that dismissed suspicions raise [`Self::suspicion`] to.
    pub most: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            suspicion: Duration::from_micros(300),
            quiet: Duration::from_micros(1_000),
            confirm: Duration::from_micros(100),
            most: Duration::from_millis(20),
        }
    }
}

/// What to do after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Poll again later.
    Wait,
    /// Stop the machine and look at it.
    Suspect,
}

/// Watches the progress of one machine.
#[derive(Clone, Debug)]
pub struct Watch {
    policy: Policy,
    threshold: Duration,
    /// When a poll last saw a progress word change, or when the watch began.
    last_progress: Duration,
    vcpus: Vec<Track>,
}

/// What is known of one vCPU.
#[derive(Clone, Copy, Debug, Default)]
struct Track {
    progress: u64,
    /// CPU time at the last progress of any vCPU, or at a later suspicion that was wrong.
    ran_at_progress: Duration,
    /// CPU time at the last progress of any vCPU.
    ran_before: Duration,
    ran: Duration,
    /// When its CPU time was last seen to grow.
    grew: Duration,
}

impl Watch {
    /// A watch over `vcpus` vCPUs that begins at `now`.
    pub fn new(policy: Policy, vcpus: usize, now: Duration) -> Self {
        let track = Track { grew: now, ..Track::default() };
        Self { policy, threshold: policy.suspicion, last_progress: now, vcpus: vec![track; vcpus] }
    }

    /// Takes in one poll: the clock, the progress words, and the CPU time that each vCPU thread has had.
    pub fn observe(&mut self, now: Duration, progress: &[u64], ran: &[Duration]) -> Advice {
        if self.record(now, progress, ran) {
            self.restart(now);
            return Advice::Wait;
        }
        let is_over = now.saturating_sub(self.last_progress) >= self.threshold;
        if is_over && self.vcpus.iter().all(|track| self.has_had_enough(track, now)) {
            return Advice::Suspect;
        }
        Advice::Wait
    }

    /// A suspicion was wrong: the next one takes twice as much, until there is progress.
    pub fn dismiss(&mut self, now: Duration) {
        self.threshold = (self.threshold * 2).min(self.policy.most);
        for track in &mut self.vcpus {
            track.ran_at_progress = track.ran;
            track.grew = now;
        }
    }

    /// When a poll last saw a progress word change.
    pub fn last_progress(&self) -> Duration {
        self.last_progress
    }

    /// CPU time that a vCPU has had since then, whatever was suspected meanwhile.
    pub fn ran_since_progress(&self, vcpu: usize) -> Duration {
        self.vcpus.get(vcpu).map_or(Duration::ZERO, |track| track.ran.saturating_sub(track.ran_before))
    }

    /// Notes what the poll saw; true when there is progress.
    fn record(&mut self, now: Duration, progress: &[u64], ran: &[Duration]) -> bool {
        let mut has_progress = false;
        for (track, (&progress, &ran)) in self.vcpus.iter_mut().zip(progress.iter().zip(ran)) {
            has_progress |= track.progress != progress;
            track.progress = progress;
            if track.ran != ran {
                track.grew = now;
            }
            track.ran = ran;
        }
        has_progress
    }

    fn restart(&mut self, now: Duration) {
        self.last_progress = now;
        self.threshold = self.policy.suspicion;
        for track in &mut self.vcpus {
            (track.ran_at_progress, track.ran_before) = (track.ran, track.ran);
        }
    }

    fn has_had_enough(&self, track: &Track, now: Duration) -> bool {
        let had = track.ran.saturating_sub(track.ran_at_progress);
        had >= self.threshold || now.saturating_sub(track.grew) >= self.policy.quiet.max(self.threshold)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn watch() -> Watch {
        Watch::new(Policy::default(), 2, us(0))
    }

    #[test]
    fn busy_vcpus_that_had_enough_cpu_time_are_suspected() {
        let mut watch = watch();
        assert_eq!(watch.observe(us(250), &[1, 1], &[us(200), us(200)]), Advice::Wait);
        assert_eq!(watch.observe(us(500), &[1, 1], &[us(450), us(400)]), Advice::Wait);
        assert_eq!(watch.observe(us(750), &[1, 1], &[us(700), us(600)]), Advice::Suspect);
        assert_eq!(watch.last_progress(), us(250));
    }

    #[test]
    fn progress_of_any_vcpu_starts_anew() {
        let mut watch = watch();
        for step in 1..100 {
            let ran = us(step * 1_000);
            assert_eq!(watch.observe(ran, &[0, step], &[ran, ran]), Advice::Wait);
        }
    }

    #[test]
    fn vcpu_that_gets_little_cpu_time_is_waited_for() {
        let mut watch = watch();
        watch.observe(us(100), &[1, 1], &[us(0), us(0)]);
        for step in 1..50 {
            let advice = watch.observe(us(100 + step * 500), &[1, 1], &[us(step * 500), us(step * 5)]);
            assert_eq!(advice, Advice::Wait, "after {step} polls");
        }
    }

    #[test]
    fn vcpu_without_any_cpu_time_is_left_to_its_state() {
        let mut watch = watch();
        watch.observe(us(100), &[1, 1], &[us(50), us(50)]);
        assert_eq!(watch.observe(us(600), &[1, 1], &[us(550), us(50)]), Advice::Wait);
        assert_eq!(watch.observe(us(1_200), &[1, 1], &[us(900), us(50)]), Advice::Suspect);
    }

    #[test]
    fn machine_in_which_nobody_runs_is_suspected() {
        let mut watch = watch();
        watch.observe(us(100), &[1, 1], &[us(50), us(50)]);
        assert_eq!(watch.observe(us(1_300), &[1, 1], &[us(50), us(50)]), Advice::Suspect);
    }

    #[test]
    fn dismissed_suspicion_doubles_until_progress() {
        let mut watch = watch();
        watch.observe(us(0), &[1, 1], &[us(0), us(0)]);
        assert_eq!(watch.observe(us(400), &[1, 1], &[us(400), us(400)]), Advice::Suspect);
        watch.dismiss(us(400));
        assert_eq!(watch.observe(us(900), &[1, 1], &[us(900), us(900)]), Advice::Wait);
        assert_eq!(watch.observe(us(1_000), &[1, 1], &[us(1_000), us(1_000)]), Advice::Suspect);
        assert_eq!(watch.observe(us(1_100), &[1, 2], &[us(1_100), us(1_100)]), Advice::Wait);
        assert_eq!(watch.observe(us(1_400), &[1, 2], &[us(1_400), us(1_400)]), Advice::Suspect);
    }

    #[test]
    fn cpu_time_since_the_last_progress_outlives_suspicions() {
        let mut watch = watch();
        watch.observe(us(100), &[1, 1], &[us(50), us(10)]);
        watch.observe(us(500), &[1, 1], &[us(450), us(400)]);
        watch.dismiss(us(500));
        watch.observe(us(900), &[1, 1], &[us(850), us(400)]);
        assert_eq!((watch.ran_since_progress(0), watch.ran_since_progress(1)), (us(800), us(390)));
        watch.observe(us(950), &[2, 1], &[us(900), us(400)]);
        assert_eq!((watch.ran_since_progress(0), watch.ran_since_progress(2)), (us(0), us(0)));
    }

    #[test]
    fn dismissals_do_not_raise_the_threshold_without_bound() {
        let mut watch = watch();
        watch.observe(us(0), &[1, 1], &[us(0), us(0)]);
        (0..64).for_each(|_| watch.dismiss(us(0)));
        let most = Policy::default().most;
        assert_eq!(watch.observe(most, &[1, 1], &[most, most]), Advice::Suspect);
    }
}
