//! Every schedule of a rendezvous, beside a bare loop of the same calls of KVM.
//!
//! The loop makes the calls that the search made, in the same order and with the same values, so that the guest goes through the same code
//! by the same choices; nothing is looked up, compared, hashed or kept. What a search is slower by is its own.

use std::time::{Duration, Instant};

use stallbench_core::HostKvm;
use stallbench_core::controlled::Controlled;
use stallbench_explore::{Limits, Search, Settings, alongside};
use stallbench_runner::execute::{RunPlan, boot_block};

use super::figure::Figure;
use super::machine::{DEADLINE, the_run};
use crate::exit::Failure;
use crate::guest::Guest;

/// The rendezvous that programs MTRRs.
pub(super) const EXPLORED: &str = "mtrr/percpu-lock";
/// Far more than it has.
const LIMITS: Limits = Limits { states: 4_000_000, bytes: 4 << 30 };

/// What a search takes beside its bare calls, at most: they are four fifths of it.
const AIM: &str = "1.25 of bare";

/// Threads that ask for passages.
const WORKERS: usize = 2;

/// Times of something, and of its calls of KVM alone.
#[derive(Default)]
struct Beside {
    whole: Vec<Duration>,
    bare: Vec<Duration>,
    /// How often a vCPU stopped.
    stops: usize,
}

/// A search of two vCPUs, each passage from a state that is restored; and its way to the nearest end, forward.
pub(super) fn beside_bare(host: &HostKvm, guest: &Guest, runs: usize) -> Result<Vec<Figure>, Failure> {
    let (mut all, mut way) = (Beside::default(), Beside::default());
    for _ in 0..runs {
        all.whole.push(timed(&mut at_start(host, guest, 2)?, through)?);
        // Once more, on a machine of which nothing is known yet.
        let mut search = at_start(host, guest, 2)?;
        all.play(&mut search, through)?;
        let ways = search.kinds_of_ends(&[], 1).ways;
        let nearest = ways.last().ok_or_else(|| Failure::unexpected(format!("{EXPLORED} has no end")))?;
        let goes = |search: &mut Search<'_>| search.follow_way(nearest).map_err(|error| Failure::host(&error));
        way.whole.push(timed(&mut search, goes)?);
        way.play(&mut search, goes)?;
    }
    let searched = all.figures("explore-2", &format!("every schedule of {EXPLORED}@vcpus=2"));
    let went = way.figures("explore-way", "one of its schedules, forward");
    Ok(searched.into_iter().chain(went).collect())
}

/// The same search by so many threads.
pub(super) fn by_workers(host: &HostKvm, guest: &Guest, runs: usize) -> Result<Figure, Failure> {
    let start = || at_start(host, guest, 2).ok();
    let one = |_| {
        alongside(WORKERS, &start, |ahead| {
            let mut search = at_start(host, guest, 2)?;
            search.share(ahead);
            timed(&mut search, through)
        })
    };
    let times = (0..runs).map(one).collect::<Result<_, _>>()?;
    let what = format!("every schedule of {EXPLORED}@vcpus=2, with {WORKERS} workers");
    Ok(Figure::times("explore-2-workers", what, None, times))
}

/// Searches of three vCPUs, and the memory that a state takes.
pub(super) fn of_three(host: &HostKvm, guest: &Guest, runs: usize) -> Result<Vec<Figure>, Failure> {
    let (mut times, mut bytes) = (Vec::new(), 0);
    for _ in 0..runs {
        let mut search = at_start(host, guest, 3)?;
        times.push(timed(&mut search, |search| through(search).map(|()| drop(search.findings())))?);
        bytes = search.bytes() / search.counts().states.max(1);
    }
    let what = format!("every schedule of {EXPLORED}@vcpus=3, and what they say");
    Ok(vec![
        Figure::times("explore-3", what, Some("30 s"), times),
        Figure::bytes("explore-state-3", "a state of it, with all that is kept of it", Some("4 KiB"), bytes as u64),
    ])
}

impl Beside {
    /// Does it, and then its calls of KVM alone.
    fn play(
        &mut self,
        search: &mut Search<'_>,
        does: impl FnOnce(&mut Search<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        search.record();
        does(search)?;
        let tape = search.recorded();
        self.stops = tape.stops();
        self.bare.push(timed(search, |search| match search.play(&tape) {
            true => Ok(()),
            false => Err(Failure::unexpected("kvm did something else when it was asked again".to_owned())),
        })?);
        Ok(())
    }

    fn figures(self, name: &str, what: &str) -> [Figure; 2] {
        let bare = format!("the calls of kvm that it makes, {} stops, and nothing else", self.stops);
        [Figure::times(name, what, Some(AIM), self.whole), Figure::times(format!("{name}-bare"), bare, None, self.bare)]
    }
}

fn timed(
    search: &mut Search<'_>,
    does: impl FnOnce(&mut Search<'_>) -> Result<(), Failure>,
) -> Result<Duration, Failure> {
    let began = Instant::now();
    does(search)?;
    Ok(began.elapsed())
}

/// At the start line.
fn at_start<'g>(host: &HostKvm, guest: &'g Guest, vcpus: usize) -> Result<Search<'g>, Failure> {
    let plan = RunPlan::of(&the_run(guest, EXPLORED, Some(vcpus))?, DEADLINE);
    let machine = Controlled::new(host, vcpus, guest.program().bytes(), &boot_block(&plan));
    let machine = machine.map_err(|error| Failure::host(&error))?;
    Search::new(machine, guest.program(), Settings::default()).map_err(|error| Failure::host(&error))
}

fn through(search: &mut Search<'_>) -> Result<(), Failure> {
    match search.run(LIMITS).map_err(|error| Failure::host(&error))? {
        true => Ok(()),
        false => Err(Failure::unexpected(format!("{EXPLORED} has too many states"))),
    }
}
