//! Machines inside this process: what making, starting, stopping and reading them costs.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use stallbench_abi::port::Doorbell;
use stallbench_core::{Capture, HostKvm, Machine, MachineConfig, MachineEvent};
use stallbench_runner::execute::{RunPlan, boot_block, execute};
use stallbench_runner::oracle::order::Mode;
use stallbench_runner::outcome::OrderOutcome;
use stallbench_runner::scenario::{Catalogue, Request, Run, Selection};

use super::figure::Figure;
use crate::exit::Failure;
use crate::guest::Guest;

/// What any one step may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// Until a guest has surely come to its stall.
const SETTLE: Duration = Duration::from_millis(100);

/// A stalled run, and the memory that it takes.
pub(super) fn stalled(host: &HostKvm, guest: &Guest, name: &str, runs: usize) -> Result<Vec<Figure>, Failure> {
    let run = the_run(guest, name, None)?;
    let mut walls = Vec::with_capacity(runs);
    let mut verdicts = Vec::with_capacity(runs);
    let mut proofs = Vec::with_capacity(runs);
    for _ in 0..runs {
        let outcome = outcome_of(host, guest, &run)?;
        walls.push(outcome.wall);
        verdicts.push(outcome.verdict_latency);
        proofs.push(outcome.proof.took);
    }
    let mut figures = vec![
        Figure::times("run-stalled-4", "a stalled 4-vCPU run, without the process around it", None, walls),
        Figure::times(
            "proof-stalled-4",
            "the proof of it, from the suspicion on, while it stands still",
            Some("5 ms"),
            proofs,
        ),
        Figure::times("verdict-stalled-4", "from the last progress seen to the verdict", Some("5 ms"), verdicts),
    ];
    if let Some(bytes) = peak_resident() {
        figures.push(Figure::bytes("resident-4", "most memory resident after these runs", Some("32 MB"), bytes));
    }
    Ok(figures)
}

/// Making, pausing and reading a machine whose vCPUs spin.
pub(super) fn primitives(host: &HostKvm, guest: &Guest, name: &str, runs: usize) -> Result<Vec<Figure>, Failure> {
    let run = the_run(guest, name, None)?;
    let mut created = Vec::with_capacity(runs);
    for _ in 0..runs {
        let began = Instant::now();
        drop(machine(host, guest, &run)?);
        created.push(began.elapsed());
    }
    let mut stalled = machine(host, guest, &run)?;
    start(&mut stalled)?;
    settle(&stalled);
    let what = |text: &str| format!("{text}, 4 spinning vCPUs");
    Ok(vec![
        Figure::times("create-4", "make a 4-vCPU machine and unmake it", None, created),
        Figure::times("pause-4", what("stop all, go on"), None, paused(&stalled, runs, None)?),
        Figure::times(
            "capture-control-4",
            what("stop all, read control state"),
            None,
            paused(&stalled, runs, Some(Capture::Control))?,
        ),
        Figure::times(
            "capture-full-4",
            what("stop all, read everything"),
            None,
            paused(&stalled, runs, Some(Capture::Full))?,
        ),
    ])
}

/// From the start of the threads to the start line.
pub(super) fn all_up(host: &HostKvm, guest: &Guest, name: &str, vcpus: usize, runs: usize) -> Result<Figure, Failure> {
    let run = the_run(guest, name, Some(vcpus))?;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let mut machine = machine(host, guest, &run)?;
        let began = Instant::now();
        start(&mut machine)?;
        wait_for_start_line(&machine)?;
        times.push(began.elapsed());
    }
    Ok(Figure::times(
        format!("all-up-{vcpus}"),
        format!("{vcpus} vCPUs from the first entry to the start line"),
        None,
        times,
    ))
}

/// One scenario, with each way to look at the order of its MTRR programming.
pub(super) fn orders(host: &HostKvm, guest: &Guest, name: &str, runs: usize) -> Result<Vec<Figure>, Failure> {
    let declared = the_run(guest, name, None)?;
    let mut figures = Vec::new();
    for order in Mode::ALL {
        let run = Run { order, ..declared.clone() };
        let mut times = Vec::with_capacity(runs);
        let mut seen = OrderOutcome::default();
        for _ in 0..runs {
            let outcome = outcome_of(host, guest, &run)?;
            times.push(outcome.wall);
            seen = outcome.order;
        }
        let what = match order {
            Mode::Off => format!("{name}, --order off"),
            Mode::Filter => format!("the same, {} accesses stop their vCPU", seen.accesses),
            Mode::Step => format!("the same, and {} instructions do, in the last run", seen.instructions),
        };
        figures.push(Figure::times(format!("order-{order}-4"), what, None, times));
    }
    Ok(figures)
}

/// Each cell of a subject, if there is one of that name.
pub(super) fn cells(host: &HostKvm, guest: &Guest, subject: &str, runs: usize) -> Result<Vec<Figure>, Failure> {
    let mut times: BTreeMap<(usize, String), Vec<Duration>> = BTreeMap::new();
    for run in selection(guest, subject, None)?.cells {
        for _ in 0..runs {
            let outcome = outcome_of(host, guest, &run)?;
            times.entry((run.vcpus, run.name.to_string())).or_default().push(outcome.wall);
        }
    }
    let figure = |((vcpus, name), times): ((usize, String), Vec<Duration>)| {
        let aim = if vcpus == 255 { Some("0.5 s") } else { None };
        Figure::times(name, "the whole run, without the process around it", aim, times)
    };
    Ok(times.into_iter().map(figure).collect())
}

fn selection(guest: &Guest, name: &str, vcpus: Option<usize>) -> Result<Selection, Failure> {
    let request = Request { names: vec![name.to_owned()], ..Request::default() };
    let mut selection = Selection::new(&Catalogue::default(), &request, &|name| guest.case(name))?;
    if let Some(vcpus) = vcpus {
        // No expectation is compared here, so the cell need not be declared at this number.
        selection.cells.truncate(1);
        selection.cells.iter_mut().for_each(|run| run.vcpus = vcpus);
    }
    Ok(selection)
}

pub(super) fn the_run(guest: &Guest, name: &str, vcpus: Option<usize>) -> Result<Run, Failure> {
    let run = selection(guest, name, vcpus)?.cells.into_iter().next();
    run.ok_or_else(|| Failure::usage(format!("{name} selects nothing")))
}

fn outcome_of(host: &HostKvm, guest: &Guest, run: &Run) -> Result<stallbench_runner::outcome::RunOutcome, Failure> {
    execute(host, guest.program(), &RunPlan::of(run, DEADLINE), &AtomicBool::new(false))
        .map_err(|error| Failure::host(&error))
}

pub(super) fn machine(host: &HostKvm, guest: &Guest, run: &Run) -> Result<Machine, Failure> {
    let boot = boot_block(&RunPlan::of(run, DEADLINE));
    Machine::new(host, &MachineConfig::new(run.vcpus), guest.program().bytes(), &boot)
        .map_err(|error| Failure::host(&error))
}

pub(super) fn start(machine: &mut Machine) -> Result<(), Failure> {
    machine.start().map_err(|error| Failure::host(&error))
}

fn wait_for_start_line(machine: &Machine) -> Result<(), Failure> {
    let began = Instant::now();
    while began.elapsed() < DEADLINE {
        match machine.next_event(Duration::from_micros(300)) {
            Some(MachineEvent::Doorbell { doorbell: Doorbell::START_LINE, .. }) => return Ok(()),
            Some(MachineEvent::Fault { vcpu, fault }) => {
                return Err(Failure::unexpected(format!("vcpu{vcpu} died before the start line: {fault:?}")));
            }
            _ => machine.enforce_turns(),
        }
    }
    Err(Failure::unexpected("the guest did not come to its start line".to_owned()))
}

/// Lets a guest run until it has come to its stall.
pub(super) fn settle(machine: &Machine) {
    let began = Instant::now();
    while began.elapsed() < SETTLE {
        machine.next_event(Duration::from_micros(300));
        machine.enforce_turns();
    }
}

fn paused(machine: &Machine, runs: usize, capture: Option<Capture>) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let began = Instant::now();
        let paused = machine.pause(DEADLINE).map_err(|error| Failure::host(&error))?;
        if let Some(what) = capture {
            let _ = paused.capture(what);
        }
        paused.resume();
        times.push(began.elapsed());
        machine.next_event(Duration::from_millis(2));
        machine.enforce_turns();
    }
    Ok(times)
}

/// Most memory that this process had resident so far (proc_pid_status(5), VmHWM).
fn peak_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
