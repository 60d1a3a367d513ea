//! Runs a selection on worker threads and hands the results over in order, as they come.
//!
//! The workers take runs off a shared counter, and a turnstile keeps guests of many vCPUs from running side by side; results that come
//! early wait in a reorder buffer. The caller's thread reports. What a run does is a closure: nothing here knows KVM.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::outcome::{RunOutcome, Verdict};
use crate::result::{RunResult, Summary};
use crate::scenario::{Run, Selection};
use crate::turnstile::Turnstile;

/// How often the reporting thread looks up while nothing is finished.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Why a session ended before all was run, if not by an interrupt.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError<E> {
    /// A run came to no outcome.
    #[error(transparent)]
    Execute(E),
    /// The host gives no thread to work on.
    #[error("start a worker thread")]
    NoWorker(#[source] io::Error),
}

/// How a session ended.
#[derive(Debug)]
pub struct Ended<E> {
    /// What the results that were handed over came to.
    pub summary: Summary,
    /// What ended it early, if not the interrupt.
    pub failure: Option<SessionError<E>>,
}

/// Runs `selection` on `jobs` threads, or as many as can be had, so many small guests at a time. `execute` does one run; its
/// first error ends the session, and so does `interrupt`. `report` gets the results in the order of the selection, on this thread.
pub fn run<E: Send>(
    selection: &Selection,
    jobs: usize,
    interrupt: &AtomicBool,
    execute: &(dyn Fn(&Run) -> Result<RunOutcome, E> + Sync),
    report: &mut dyn FnMut(RunResult),
) -> Ended<E> {
    let started = Instant::now();
    let mut summary = Summary { asked: selection.len(), ..Summary::default() };
    let failure = drive(selection, jobs, interrupt, execute, &mut |result| {
        summary.count(&result);
        report(result);
    });
    summary.wall = started.elapsed();
    // Whatever ended it: what counts for the reader is that not all was run.
    summary.interrupted = summary.done < summary.asked;
    Ended { summary, failure }
}

type Finished<E> = (usize, Option<Result<RunOutcome, E>>);

fn drive<E: Send>(
    selection: &Selection,
    jobs: usize,
    interrupt: &AtomicBool,
    execute: &(dyn Fn(&Run) -> Result<RunOutcome, E> + Sync),
    hand_over: &mut dyn FnMut(RunResult),
) -> Option<SessionError<E>> {
    let next = AtomicUsize::new(0);
    let turnstile = Turnstile::new(jobs);
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel::<Finished<E>>();
    let mut failure = None;
    thread::scope(|scope| {
        let workers = as_many_as_possible(jobs.clamp(1, selection.len().max(1)), &mut || {
            let (sender, next, stop, turnstile) = (sender.clone(), &next, &stop, &turnstile);
            let worker = move || work(selection, next, turnstile, &[interrupt, stop], execute, &sender);
            thread::Builder::new().spawn_scoped(scope, worker).map(drop)
        });
        drop(sender);
        failure = workers.err().map(SessionError::NoWorker);
        let mut order = Order::default();
        let mut finished = |index: usize, outcome| {
            if let Some(run) = selection.get(index) {
                hand_over(RunResult::new(run, outcome));
            }
        };
        loop {
            match receiver.recv_timeout(LOOK_UP) {
                Ok((_, Some(Err(error)))) => {
                    stop.store(true, Ordering::Relaxed);
                    failure.get_or_insert(SessionError::Execute(error));
                }
                Ok((index, outcome)) => {
                    order.take(index, outcome.and_then(Result::ok), &mut finished);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        order.drain(&mut finished);
    });
    failure
}

/// Spawns up to `wanted` threads. The host may give fewer, which only takes longer; none is an error.
fn as_many_as_possible(wanted: usize, spawn: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
    for spawned in 0..wanted {
        match spawn() {
            Ok(()) => {}
            Err(error) if spawned == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(())
}

fn work<E>(
    selection: &Selection,
    next: &AtomicUsize,
    turnstile: &Turnstile,
    stop: &[&AtomicBool],
    execute: &(dyn Fn(&Run) -> Result<RunOutcome, E> + Sync),
    sender: &mpsc::Sender<Finished<E>>,
) {
    let stopped = || stop.iter().any(|flag| flag.load(Ordering::Relaxed));
    while !stopped() {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(run) = selection.get(index) else { return };
        let Some(pass) = turnstile.pass(index, run.vcpus, &stopped) else { return };
        let outcome = execute(&run);
        drop(pass);
        let cut_short = stopped() && outcome.as_ref().is_ok_and(is_undecided);
        if sender.send((index, if cut_short { None } else { Some(outcome) })).is_err() {
            return;
        }
    }
}

/// A run that was cut short by an interrupt has nothing to say.
fn is_undecided(outcome: &RunOutcome) -> bool {
    matches!(outcome.verdict, Verdict::Budget { .. } | Verdict::Starved { .. })
}

/// Results that wait for those before them.
#[derive(Default)]
struct Order {
    next: usize,
    waiting: BTreeMap<usize, Option<RunOutcome>>,
}

impl Order {
    fn take(&mut self, index: usize, outcome: Option<RunOutcome>, hand_over: &mut dyn FnMut(usize, RunOutcome)) {
        self.waiting.insert(index, outcome);
        while let Some(outcome) = self.waiting.remove(&self.next) {
            if let Some(outcome) = outcome {
                hand_over(self.next, outcome);
            }
            self.next += 1;
        }
    }

    /// Hands over what is left behind a gap: after an interrupt a run in the middle may have come to nothing.
    fn drain(&mut self, hand_over: &mut dyn FnMut(usize, RunOutcome)) {
        for (index, outcome) in std::mem::take(&mut self.waiting) {
            if let Some(outcome) = outcome {
                hand_over(index, outcome);
            }
        }
    }
}

#[cfg(test)]
mod test {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use super::*;
    use crate::sample;

    fn run_all<E: Send>(
        count: usize,
        interrupt: &AtomicBool,
        execute: &(dyn Fn(&Run) -> Result<RunOutcome, E> + Sync),
    ) -> (Vec<String>, Ended<E>) {
        let selection = sample::selection(count);
        let mut names = Vec::new();
        let ended = run(&selection, 4, interrupt, execute, &mut |result| names.push(result.run.name.to_string()));
        (names, ended)
    }

    #[test]
    fn results_come_in_order_whatever_order_the_runs_end_in() {
        let ended = Mutex::new(0);
        let (names, ended) = run_all::<Infallible>(40, &AtomicBool::new(false), &|_| {
            *ended.lock().unwrap() += 1;
            thread::yield_now();
            Ok(sample::outcome(Verdict::Pass))
        });
        let wanted: Vec<_> = sample::selection(40).cells.iter().map(|run| run.name.to_string()).collect();
        assert_eq!(names, wanted);
        let summary = ended.summary;
        assert_eq!((summary.done, summary.unexpected, summary.interrupted), (40, 0, false));
    }

    #[test]
    fn interrupt_keeps_what_is_finished_and_drops_the_run_that_was_cut_short() {
        let interrupt = AtomicBool::new(false);
        let (names, ended) = run_all::<Infallible>(40, &interrupt, &|run| {
            let cut = run.vcpus == sample::CUT;
            interrupt.fetch_or(cut, Ordering::Relaxed);
            let verdict = if cut { Verdict::Budget { reason: String::new() } } else { Verdict::Pass };
            Ok(sample::outcome(verdict))
        });
        let summary = ended.summary;
        assert!(summary.interrupted && summary.done == names.len() && !names.is_empty());
        assert!(!names.contains(&sample::selection(40).cells[sample::CUT].name.to_string()));
    }

    #[test]
    fn first_error_ends_the_session_and_the_summary_says_so() {
        let (names, ended) = run_all(40, &AtomicBool::new(false), &|run| {
            if run.vcpus == sample::CUT { Err("no memory") } else { Ok(sample::outcome(Verdict::Pass)) }
        });
        assert!(matches!(ended.failure, Some(SessionError::Execute("no memory"))));
        assert!(names.len() < 40 && ended.summary.done == names.len());
        assert!(ended.summary.interrupted && ended.summary.wall > Duration::ZERO);
    }

    #[test]
    fn thread_that_cannot_be_had_leaves_the_work_to_the_others() {
        let mut left = 2;
        let mut spawn = || {
            left = usize::checked_sub(left, 1).ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))?;
            Ok(())
        };
        assert!(as_many_as_possible(4, &mut spawn).is_ok());
        assert_eq!(as_many_as_possible(4, &mut spawn).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
