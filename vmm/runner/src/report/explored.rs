//! What a search of all schedules found, for people.

use std::fmt::Write;

use stallbench_explore::WAITS;

use super::human::{plain, time};
use crate::outcome::{
    ExploredOutcome, GoOn, LegOutcome, MinimisedOutcome, RunOutcome, ScheduleOutcome, TurningOutcome,
};
use crate::story::Story;

/// Legs of a schedule that are shown: the first and the last.
const MOST_LEGS: (usize, usize) = (4, 12);

/// Tells what was explored, and the schedule to what was found.
pub(super) fn tell(text: &mut String, outcome: &RunOutcome) {
    let Some(explored) = &outcome.explored else { return };
    let ExploredOutcome { complete, model, states, frontier, transitions, passages, took, .. } = explored;
    if let Some(walks) = &explored.walks {
        let _ = writeln!(text, "  explored: {walks}");
    }
    let how = if *complete { "all" } else { "not all" };
    let _ = write!(text, "  explored: {how} schedules ({model}): {states} states, {transitions} transitions");
    if *frontier > 0 {
        let _ = write!(text, ", {frontier} states not gone on from");
    }
    let _ = writeln!(text, "; {passages} passages asked of kvm; {}", time(*took));
    if !complete && explored.walks.is_none() {
        let _ = writeln!(text, "  {}", explored.bound());
    }
    if explored.stuck > 0 {
        let _ = writeln!(text, "  from {} of them no schedule leads to the end", explored.stuck);
    }
    if explored.words.len() > 1 {
        let ends = explored.words.iter().map(|words| {
            words.0.iter().map(|(name, value)| format!("{}={value}", plain(name))).collect::<Vec<_>>().join(" ")
        });
        let _ = writeln!(text, "  its ends differ: {}", ends.collect::<Vec<_>>().join(" · "));
    }
    if let Some(schedule) = &explored.schedule {
        self::schedule(text, schedule);
    }
    if let Some(walk) = explored.walks.as_ref().and_then(|walks| walks.minimised) {
        let MinimisedOutcome { steps, preemptions, tried } = walk;
        let _ =
            writeln!(text, "  minimised: the walk had {steps} steps, {}; {tried} changes tried", times(preemptions));
    }
    if let Some(recorded) = explored.recorded.as_ref().filter(|_| explored.explain) {
        let story = Story::of(String::new(), recorded.vcpus, &recorded.events, outcome);
        story.text().lines().for_each(|line| _ = writeln!(text, "  {}", plain(line)));
    }
    if let Some(GoOn { command, .. }) = &explored.go_on {
        let _ = writeln!(text, "  go on: {}", plain(command));
    }
    for hold in &explored.left_out {
        let _ = writeln!(text, "  left out: hold {}", plain(hold));
    }
}

fn schedule(text: &mut String, schedule: &ScheduleOutcome) {
    let ScheduleOutcome { preemptions, steps, no_return, turning, round_from, legs } = schedule;
    let _ = write!(text, "  schedule: {steps} steps, {}", times(*preemptions));
    match no_return {
        Some(0) => text.push_str("; every schedule stalls"),
        Some(step) => _ = write!(text, "; every schedule stalls behind step {step}"),
        None => {}
    }
    if let Some(round) = round_from {
        let _ = write!(text, "; steps {}–{steps} lead back to where they began, and leave no choice out", round + 1);
    }
    text.push('\n');
    if let (Some(step), Some(of_step)) = (no_return, turning) {
        let _ = writeln!(text, "    {}", self::turning(*step, of_step));
    }
    let (first, last) = MOST_LEGS;
    let hidden = first..legs.len().saturating_sub(last).max(first);
    for (number, leg) in legs.iter().enumerate().filter(|(number, _)| !hidden.contains(number) || *number == first) {
        if number == first && !hidden.is_empty() {
            let _ = writeln!(text, "    … {} more legs", hidden.len());
        } else {
            let _ = writeln!(text, "    {}", self::leg(leg));
        }
    }
}

fn times(preemptions: usize) -> String {
    format!("{preemptions} {}", if preemptions == 1 { "preemption" } else { "preemptions" })
}

/// `step 45: vcpu1 goes on; the run could still have come to its end if vcpu1 took vector 0xfb then`.
pub(crate) fn turning(step: usize, TurningOutcome { took, instead }: &TurningOutcome) -> String {
    let instead = instead.join(", or ");
    format!("step {step}: {took}; the run could still have come to its end if {instead} then")
}

fn leg(leg: &LegOutcome) -> String {
    let LegOutcome { vcpu, first, last, takes, lands, sends, to } = leg;
    let steps = if first == last { first.to_string() } else { format!("{first}–{last}") };
    if let Some(lands) = lands {
        return format!("{steps:<9} vcpu{vcpu:<3} its store is seen: {}", plain(lands));
    }
    if let Some(sends) = sends {
        return format!("{steps:<9} vcpu{vcpu:<3} sends before its time: {}", plain(sends));
    }
    let takes = takes.as_ref().map_or_else(String::new, |takes| format!("takes {takes}, "));
    let goes_on = if to == WAITS { "" } else { "goes on to " };
    format!("{steps:<9} vcpu{vcpu:<3} {takes}{goes_on}{}", plain(to))
}
