//! The verdict of a fair schedule that goes round for ever.
//!
//! No free machine can confirm it: another schedule leads out, and most likely that is what a free machine does. What is claimed is
//! what was seen: KVM has gone to the round and once round, and stood in the same state as before. That is a stall in that schedule, and
//! no proof of one in all, so its strength is `observed`.

use stallbench_explore::{ExploreError, Livelock, Search};

use crate::outcome::{Member, RunOutcome, ScheduleOutcome, Stall, StallKind, Strength, Verdict};

/// Functions of a round that are named for each vCPU.
const MOST_NAMED: usize = 3;

/// The verdict, once KVM has gone that way again.
pub(super) fn outcome(search: &mut Search<'_>, livelock: &Livelock) -> Result<RunOutcome, ExploreError> {
    search.confirm(&livelock.way)?;
    let stall = Stall {
        kind: StallKind::Livelock,
        strength: Strength::Observed,
        culprit: None,
        root: members(search, livelock)?,
        waits: Vec::new(),
    };
    Ok(RunOutcome::unwatched(Verdict::Stall(stall)))
}

/// The schedule, with where it goes round.
pub(super) fn schedule(schedule: ScheduleOutcome, livelock: &Livelock) -> ScheduleOutcome {
    ScheduleOutcome { round_from: Some(livelock.begins), ..schedule }
}

/// What each vCPU does in the round.
fn members(search: &mut Search<'_>, livelock: &Livelock) -> Result<Vec<Member>, ExploreError> {
    let places = search.places(&livelock.way)?;
    let round = places.get(livelock.begins..).unwrap_or_default();
    let mut members: Vec<(usize, Vec<&str>)> = Vec::new();
    for (vcpu, place) in round {
        let function = place.rsplit_once('+').map_or(place.as_str(), |(function, _)| function);
        match members.iter_mut().find(|(of, _)| of == vcpu) {
            Some((_, functions)) if functions.contains(&function) => {}
            Some((_, functions)) => functions.push(function),
            None => members.push((*vcpu, vec![function])),
        }
    }
    members.sort_by_key(|(vcpu, _)| *vcpu);
    let member = |(vcpu, functions): (usize, Vec<&str>)| {
        let more = if functions.len() > MOST_NAMED { " and others" } else { "" };
        let named = functions.into_iter().take(MOST_NAMED).collect::<Vec<_>>().join(", ");
        Member { vcpu, doing: format!("goes round in {named}{more}") }
    };
    Ok(members.into_iter().map(member).collect())
}
