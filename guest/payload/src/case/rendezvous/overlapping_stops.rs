//! C07: three CPUs, three pairs of them that stop each other.

use stallbench_rt::mask::Mask;
use stallbench_rt::{bring_up, pause_point, this, words};

use super::stopper::{self, MultiStop};
use super::{is_fixed, words};
use crate::case::case;

/// vCPUs that take part; each begins a stop of itself and the next.
const PAIRS: usize = 3;

case!(
    OVERLAPPING_STOPS,
    "overlapping-stops",
    "stop_two_cpus() of vCPU 0 and 1, of 1 and 2, of 2 and 0, all at once",
    [FIX, SPIN],
    overlapping_stops
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    pairs: [MultiStop; PAIRS],
}

fn overlapping_stops() {
    let me = this::vcpu();
    let pairs = &words().overlapping_stops.pairs;
    if me == 0 {
        words::name("pair0_missing", &pairs[0].missing);
        words::name("pair1_missing", &pairs[1].missing);
        words::name("pair2_missing", &pairs[2].missing);
    }
    if me >= PAIRS {
        return;
    }
    bring_up::take_part();
    stop_two_cpus(me, (me + 1) % PAIRS, &pairs[me]);
    let mut all = Mask::default();
    (0..PAIRS).for_each(|vcpu| all.insert(vcpu));
    stopper::serve(2, all);
}

/// stop_two_cpus(): the work goes to both stoppers. The fix locks both of them over that, the lower first.
fn stop_two_cpus(first: usize, second: usize, work: &'static MultiStop) {
    let mut both = Mask::one(first);
    both.insert(second);
    work.prepare(both);
    let locked = if is_fixed() { both } else { Mask::default() };
    locked.iter().for_each(|vcpu| words().stoppers.of(vcpu).lock());
    for vcpu in [first, second] {
        let stopper = words().stoppers.of(vcpu);
        if is_fixed() {
            stopper.queue_locked(work)
        } else {
            stopper.queue(work)
        }
        pause_point!("stop_two_cpus/queued");
    }
    locked.iter().for_each(|vcpu| words().stoppers.of(vcpu).unlock());
}
