//! What takes long: a thousand runs of live guests under load, and guests whose vCPUs the host does not run.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use crate::guest::{Guest, Truth};
use crate::load::Load;
use crate::run::{Bench, Ran};
use crate::{all, kvm_is_missing, live, selected};

/// Runs of the live half.
const RUNS: usize = 1000;
/// Runs of a guest that takes a second or more.
const RUNS_OF_A_LONG_ONE: usize = 4;
/// Every other run is suspected this often: the more attempts at a proof, the more chances to be wrong.
const OFTEN: &str = "--suspect-every=20";
/// Figures are shown after so many runs.
const SHOWN_EVERY: usize = 100;
/// Runs at a time.
const AT_A_TIME: usize = 2;

/// The runs: each guest as often as any other, but for those that take long, at the end.
fn runs(guests: &[Guest]) -> Vec<(usize, &Guest)> {
    let (long, short): (Vec<_>, Vec<_>) = guests.iter().partition(|guest| guest.is_long);
    let long: Vec<_> =
        (0..RUNS_OF_A_LONG_ONE).flat_map(|number| long.iter().map(move |guest| (number, *guest))).collect();
    let short = (0..RUNS).flat_map(|number| short.iter().map(move |guest| (number, *guest)));
    let short: Vec<_> = short.take(RUNS.saturating_sub(long.len())).collect();
    [short, long].concat()
}

/// Does all runs, some at a time, and hands each to `look`.
fn each(runs: &[(usize, &Guest)], look: impl Fn(&Guest, Ran) + Sync) {
    let (bench, next) = (Bench::new(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some((number, guest)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let options: &[&str] = if number % 2 == 1 { &[OFTEN] } else { &[] };
                    look(guest, bench.run(guest, *number, options));
                }
            });
        }
    });
}

/// What runs came to.
#[derive(Default)]
struct Figures {
    verdicts: BTreeMap<String, usize>,
    times: Vec<Duration>,
    lies: Vec<String>,
}

impl Figures {
    fn count(&mut self, guest: &Guest, ran: &Ran) {
        *self.verdicts.entry(ran.verdict().to_owned()).or_default() += 1;
        self.times.push(ran.wall());
        if self.times.len().is_multiple_of(SHOWN_EVERY) {
            println!("{}", self.told());
        }
        self.lies.extend(ran.lie(guest));
    }

    /// Of runs of these guests.
    fn of(runs: &[(usize, &Guest)]) -> Self {
        let figures = Mutex::new(Self::default());
        each(runs, |guest, ran| figures.lock().unwrap().count(guest, &ran));
        figures.into_inner().unwrap()
    }

    fn told(&mut self) -> String {
        self.times.sort();
        let runs = self.times.len();
        let verdicts: Vec<_> = self.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        let (median, most) = (self.times.get(runs / 2).copied(), self.times.last().copied());
        let (median, most) = (median.unwrap_or_default(), most.unwrap_or_default());
        format!("{runs} runs: {}; wall time median {median:.1?}, most {most:.1?}", verdicts.join(", "))
    }
}

#[test]
#[ignore = "takes a quarter of an hour: cargo test --test truth --release -- --ignored --nocapture thousand"]
fn thousand_runs_of_live_guests_under_load_are_no_stall() {
    if kvm_is_missing() {
        return;
    }
    let _load = Load::on_all_cpus();
    let (live, others): (Vec<_>, Vec<_>) = selected(all()).into_iter().partition(|guest| guest.truth == Truth::Live);
    let dead: Vec<_> = others.into_iter().filter(|guest| matches!(guest.truth, Truth::Dead(_))).collect();
    let mut living = Figures::of(&runs(&live));
    let stalls = living.verdicts.get("stall").copied().unwrap_or_default();
    println!("{} live guests under load, {}; {stalls} false stalls", live.len(), living.told());
    let mut died = Figures::of(&dead.iter().map(|guest| (0, guest)).collect::<Vec<_>>());
    println!("{} dead guests under load, {}; {} missed stalls", dead.len(), died.told(), died.lies.len());
    assert!(stalls == 0 && died.lies.is_empty(), "{}\n{}", living.lies.join("\n"), died.lies.join("\n"));
    assert!(living.lies.is_empty(), "{}", living.lies.join("\n"));
}

/// Gives a thread of a process the CPU only where no other thread wants it. False while there is no such thread.
fn make_idle(process: u32, name: &str) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return false };
    let thread = threads
        .flatten()
        .find(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    thread.is_some_and(|thread| {
        let id = thread.file_name().to_string_lossy().into_owned();
        Command::new("chrt").args(["--idle", "--pid", "0", &id]).status().is_ok_and(|status| status.success())
    })
}

#[test]
fn guest_whose_vcpu_the_host_hardly_runs_is_no_stall() {
    if kvm_is_missing() {
        return;
    }
    const BUDGET: Duration = Duration::from_millis(1500);
    let (bench, _load) = (Bench::new(), Load::on_all_cpus());
    let partners = live::guests().into_iter().filter(|guest| guest.vcpus == 2 && !guest.is_long);
    for (number, guest) in selected(partners.collect()).iter().enumerate() {
        let mut running = bench.start(guest, number, BUDGET, &[]);
        let process = running.process();
        // The thread may be over before it is found: the guest has passed then.
        while !make_idle(process, "vcpu-1") && running.is_under_way() {
            thread::yield_now();
        }
        let ran = running.finish(guest);
        assert!(["pass", "starved", "budget"].contains(&ran.verdict()), "{}: {ran:?}", guest.title());
    }
}
