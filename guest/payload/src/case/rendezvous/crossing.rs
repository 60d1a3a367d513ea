//! C06: two rendezvous of all CPUs, queued at once in no common order.

use stallbench_rt::lock::SpinLock;
use stallbench_rt::mask::Mask;
use stallbench_rt::{boot, bring_up, pause_point, this, words};

use super::stopper::{self, MultiStop};
use super::{is_fixed, words};
use crate::case::case;

case!(
    CROSSING,
    "crossing-stops",
    "the MTRR rendezvous of one vCPU and the stop_machine() of another, each queued to all stoppers",
    [FIX, SPIN],
    crossing_stops
);

/// What the case shares.
#[repr(C)]
pub(super) struct Words {
    /// `stop_cpus_mutex`.
    mutex: SpinLock,
    reserved: core::sync::atomic::AtomicU32,
    mtrr: MultiStop,
    stop: MultiStop,
}

fn crossing_stops() {
    bring_up::take_part();
    let (me, last) = (this::vcpu(), boot::vcpus() - 1);
    let shared = &words().crossing;
    if me == 0 {
        words::name("mtrr_missing", &shared.mtrr.missing);
        words::name("stop_missing", &shared.stop.missing);
        stop_cpus(&shared.mtrr);
    } else if me == last {
        stop_cpus(&shared.stop);
    }
    let mut stoppers = Mask::one(0);
    stoppers.insert(last);
    stopper::serve(2, stoppers);
}

/// stop_cpus(): the work goes to all stoppers, one after the other. The fix holds a mutex over that; first come, first served
/// does the rest.
fn stop_cpus(work: &'static MultiStop) {
    pause_point!("stop_cpus/begin");
    let all: Mask = stallbench_rt::arena::root().online.get();
    work.prepare(all);
    if is_fixed() {
        words().crossing.mutex.lock();
    }
    for vcpu in all.iter() {
        words().stoppers.of(vcpu).queue(work);
        pause_point!("stop_cpus/queued");
    }
    if is_fixed() {
        words().crossing.mutex.unlock();
    }
}
