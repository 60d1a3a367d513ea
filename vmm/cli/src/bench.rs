//! `stallbench bench`: what this host's primitives cost, and stallbench on top of them. Figures, never a verdict: the aims beside
//! them are those of an idle machine and pass or fail nothing.

mod dump;
mod explore;
mod figure;
mod machine;
mod process;
mod proof;

use clap::Args;
use serde_json::json;
use stallbench_core::HostKvm;
use stallbench_runner::report::SCHEMA_VERSION;

use crate::exit::{Exit, Failure};
use crate::guest::Guest;
use crate::output;
use figure::{Figure, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// How often each thing is measured
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Time a run of the whole table too, once
    #[arg(long)]
    table: bool,
    /// Time the scenarios of 16 to 255 vCPUs too, and every schedule of three
    #[arg(long)]
    scale: bool,
    /// Time the ways to look at the order of MTRR programming too
    #[arg(long)]
    order: bool,
    /// Time a guest that is alive and suspected every 100 ms too, for about so many seconds a run
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    suspect: Option<u64>,
}

/// The stall that the figures are about.
const STALLED: &str = "mtrr/stack-broadcast@vcpus=4";
/// The scenario whose order is looked at.
const ORDERED: &str = "mtrr/order@vcpus=4,global-pages=on";
/// The smallest scenario that passes.
const SMALLEST: &str = "call/smallest@vcpus=2";

pub(crate) fn bench(arguments: &Arguments) -> Result<Exit, Failure> {
    let host = HostKvm::open()?;
    let guest = Guest::open(None)?;
    let runs = usize::from(arguments.runs);
    // Memory first: later measurements would only raise the mark.
    let mut figures = machine::stalled(&host, &guest, STALLED, runs)?;
    figures.extend(machine::primitives(&host, &guest, STALLED, runs)?);
    figures.extend(dump::figures(&host, &guest, STALLED, runs)?);
    for vcpus in [2, 4, 8] {
        figures.push(machine::all_up(&host, &guest, STALLED, vcpus, runs)?);
    }
    figures.push(process::figure(
        "process-smallest",
        "the smallest passing scenario, process start to exit",
        "20 ms",
        &[SMALLEST],
        runs,
    )?);
    figures.push(process::figure(
        "process-stalled-4",
        "a stalled 4-vCPU run, process start to exit",
        "30 ms",
        &[STALLED],
        runs,
    )?);
    figures.extend(explore::beside_bare(&host, &guest, runs)?);
    figures.push(explore::by_workers(&host, &guest, runs)?);
    if arguments.table {
        figures.push(process::figure("table", "run table, cells up to 8 vCPUs, two host CPUs", "30 s", &["table"], 1)?);
    }
    if arguments.order {
        figures.extend(machine::orders(&host, &guest, ORDERED, runs)?);
    }
    if let Some(seconds) = arguments.suspect {
        figures.extend(proof::suspected(&host, seconds)?);
    }
    if arguments.scale {
        figures.extend(scale(&host, &guest, runs)?);
    }
    output::print(&if arguments.json { in_json(&host, &figures) } else { in_words(&host, &figures) })
}

fn scale(host: &HostKvm, guest: &Guest, runs: usize) -> Result<Vec<Figure>, Failure> {
    let mut figures = Vec::new();
    for vcpus in [16, 64, 255] {
        figures.push(machine::all_up(host, guest, STALLED, vcpus, runs.min(5))?);
    }
    figures.extend(machine::cells(host, guest, "scale", runs.min(5))?);
    figures.extend(explore::of_three(host, guest, runs.min(3))?);
    Ok(figures)
}

fn in_words(host: &HostKvm, figures: &[Figure]) -> String {
    let fingerprint = host.fingerprint();
    format!(
        "{} · {} · {} · {} host CPUs\n{}\naims are for an idle machine with two CPUs and kvm_pvm; they pass or fail nothing\n",
        fingerprint.vendor_module,
        fingerprint.kernel,
        fingerprint.cpu,
        fingerprint.host_cpus,
        table(figures)
    )
}

fn in_json(host: &HostKvm, figures: &[Figure]) -> String {
    let value = json!({
        "schema_version": SCHEMA_VERSION,
        "host": host.fingerprint(),
        "figures": figures.iter().map(Figure::to_json).collect::<Vec<_>>(),
    });
    format!("{value}\n")
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_runner::scenario::Catalogue;

    #[test]
    fn measured_scenarios_are_in_the_catalogue() {
        let catalogue = Catalogue::default();
        for name in [STALLED, SMALLEST, ORDERED, explore::EXPLORED] {
            assert!(catalogue.named(name).is_ok(), "{name}");
        }
    }
}
