//! `stallbench host`: what this KVM host is and can do.

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;
use stallbench_core::{HostError, HostKvm};
use stallbench_runner::report::SCHEMA_VERSION;

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
        (Ok(host), false) => output::print(&in_words(&host)),
        (Ok(host), true) => output::print(&in_json(&host)),
        (Err(error), false) => Err(error.into()),
        (Err(error), true) => unusable_in_json(error),
    }
}

fn in_words(host: &HostKvm) -> String {
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
    if !fingerprint.known.is_empty() {
        let _ = write!(text, "\nknown of {}:\n", fingerprint.vendor_module);
        for fact in fingerprint.known {
            let _ = writeln!(text, "- {fact}");
        }
    }
    text.push_str("\nusable: everything that is required is there\n");
    text
}

fn in_json(host: &HostKvm) -> String {
    let value = json!({
        "schema_version": SCHEMA_VERSION,
        "usable": true,
        "host": host.fingerprint(),
        "max_vcpus": host.max_vcpus(),
        "capabilities": host.capabilities(),
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
