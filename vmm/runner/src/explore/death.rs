//! The verdict of a schedule in which a vCPU dies.
//!
//! KVM has executed that schedule, once more and in one row, so its verdict needs no other machine. A free one that goes on from the step
//! before, and dies of the same, tells more of itself; it can also come elsewhere, since its vCPUs run at the same time.

use stallbench_explore::{ExploreError, Search, Way};
use stallbench_state::program::Program;

use crate::execute::fault;
use crate::outcome::{GuestFault, RunOutcome, Verdict};

/// How the vCPU died that did at the end of a way.
pub(crate) fn found(search: &mut Search<'_>, program: &Program, way: &Way) -> Result<GuestFault, ExploreError> {
    let moment = search.moment(way, 0)?;
    let dead = search.dead(way).unwrap_or_default();
    Ok(fault::found(program, &moment.machine, &moment.memory, dead))
}

/// The verdict, beside what a free machine came to.
pub(crate) fn outcome(found: GuestFault, free: RunOutcome) -> RunOutcome {
    match &free.verdict {
        Verdict::GuestFault(same) if (same.vcpu, &same.text) == (found.vcpu, &found.text) => free,
        _ => RunOutcome::unwatched(Verdict::GuestFault(found)),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn death_is_that_of_the_schedule_whatever_a_free_machine_comes_to() {
        let fault =
            |vcpu| GuestFault { vcpu, text: "panic: x=0".to_owned(), line: vcpu as u32, ..GuestFault::default() };
        let other = GuestFault { text: "panic: y=0".to_owned(), ..fault(1) };
        let free = [Verdict::Pass, Verdict::GuestFault(other), Verdict::GuestFault(fault(0))];
        for verdict in free {
            assert_eq!(outcome(fault(1), RunOutcome::unwatched(verdict)).verdict, Verdict::GuestFault(fault(1)));
        }
        let same = GuestFault { line: 7, ..fault(1) };
        let told = outcome(fault(1), RunOutcome::unwatched(Verdict::GuestFault(same.clone())));
        assert_eq!(told.verdict, Verdict::GuestFault(same), "with what it tells");
    }
}
