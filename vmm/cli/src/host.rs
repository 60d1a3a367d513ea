//! `stallbench host`: what this KVM host is and can do.

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;
use stallbench_core::{HostError, HostKvm};
use stallbench_runner::report::SCHEMA_VERSION;
use stallbench_state::host::{HostFingerprint, Known, Probed};

use crate::exit::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn host(arguments: &Arguments) -> Result<Exit, Failure> {
    match (HostKvm::open(), arguments.json) {
        (Ok(host), json) => {
            let probed = host.probe().map_err(|error| Failure::host(&error))?;
            output::print(&if json { in_json(&host, &probed) } else { in_words(&host, &probed) })
        }
        (Err(error), false) => Err(error.into()),
        (Err(error), true) => unusable_in_json(error),
    }
}

fn in_words(host: &HostKvm, probed: &[Probed]) -> String {
    let fingerprint = host.fingerprint();
    let mut text = format!(
        "kernel         {}\nvendor module  {}\ncpu            {}\nhost CPUs      {}\nvCPUs          1 to {}\n\n",
        fingerprint.kernel,
        fingerprint.vendor_module,
        fingerprint.cpu,
        fingerprint.host_cpus,
        host.max_vcpus()
    );
    for capability in host.capabilities() {
        let has = if capability.available { "yes" } else { "no " };
        let _ = write!(text, "{has}  {:<26}", capability.name);
        if !capability.available {
            let _ = write!(text, " without it, {}", capability.without);
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text.push_str("\nasked of this machine by small guests\n");
    for probed in probed {
        let _ = writeln!(text, "{}", answer(probed));
    }
    let said: Vec<_> = by_name(fingerprint, probed).collect();
    if !said.is_empty() {
        let _ = writeln!(text, "\nknown only by the name {}, not asked of this machine", fingerprint.vendor_module);
        for fact in said {
            let _ = writeln!(text, "- {fact}");
        }
    }
    text.push_str("\nusable: everything that is required is there\n");
    text
}

/// `no   in-service   ISR and …: without it, …`.
fn answer(probed: &Probed) -> String {
    let (word, cost) = match probed.answer {
        Some(true) => ("yes", String::new()),
        Some(false) => ("no ", format!("; not so here: {}", probed.without)),
        None => ("?  ", "; the guest that asked gave no answer".to_owned()),
    };
    format!("{word}  {:<26} {}{cost}", probed.name, probed.what)
}

/// What is said of the vendor module and was not answered by the machine itself.
fn by_name(fingerprint: &HostFingerprint, probed: &[Probed]) -> impl Iterator<Item = &'static str> {
    let answered =
        |known: &&Known| probed.iter().any(|probed| Some(probed.name) == known.question && probed.answer.is_some());
    fingerprint.known.iter().filter(move |known| !answered(known)).map(|known| known.fact)
}

fn in_json(host: &HostKvm, probed: &[Probed]) -> String {
    let value = json!({
        "schema_version": SCHEMA_VERSION,
        "usable": true,
        "host": host.fingerprint(),
        "max_vcpus": host.max_vcpus(),
        "capabilities": host.capabilities(),
        "probed": probed,
        "by_name": by_name(host.fingerprint(), probed).collect::<Vec<_>>(),
    });
    format!("{value}\n")
}

fn unusable_in_json(error: HostError) -> Result<Exit, Failure> {
    let reason = Failure::new(Exit::HostUnusable, &error).to_string();
    let value = json!({
        "schema_version": SCHEMA_VERSION,
        "usable": false,
        "reason": reason,
        "remedy": error.remedy(),
    });
    output::print(&format!("{value}\n"))?;
    Err(error.into())
}
