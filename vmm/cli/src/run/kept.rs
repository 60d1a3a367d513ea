//! What runs leave behind on request: a directory of evidence, and dumps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::Value;
use stallbench_core::HostKvm;
use stallbench_runner::dump::{Dumps, When};
use stallbench_runner::evidence::Evidence;
use stallbench_runner::repeat::Repeat;
use stallbench_state::dump::Packed;

use super::What;
use super::plan::options;
use crate::exit::Failure;
use crate::output;

/// What runs leave behind.
#[derive(Debug, Args)]
pub(crate) struct Kept {
    /// A new directory for the evidence of each run
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write a dump of the machine at the end of a run, for `stallbench debug --dump` and gdb: never, unexpected (of each run that is not as expected) or always; it lies in the directory of the run, without --out in the current directory
    #[arg(long, value_name = "WHEN", default_value = "unexpected", value_parser = str::parse::<When>)]
    dump: When,
}

impl Kept {
    /// Refuses a run directory that is there already, before anything is looked at that could be missing.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        Ok(self.out.as_deref().map_or(Ok(()), Evidence::check)?)
    }

    /// The evidence in that directory.
    pub(crate) fn evidence(&self, repeat: Repeat, payload: &[u8]) -> Result<Option<Arc<Evidence>>, Failure> {
        let Some(root) = &self.out else { return Ok(None) };
        let command = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
        Ok(Some(Arc::new(Evidence::create(root, command, repeat, payload)?)))
    }

    /// The run directory, if one is asked for.
    pub(crate) fn out(&self) -> Option<&Path> {
        self.out.as_deref()
    }

    /// The dumps of this session.
    pub(crate) fn dumps(
        &self,
        repeat: Repeat,
        host: &HostKvm,
        payload: impl FnOnce() -> Packed + Send + 'static,
    ) -> Dumps {
        Dumps::new(self.dump, self.out.as_deref(), repeat, fingerprint(host), payload)
    }
}

/// How dumps of a run that is looked into are written, each when somebody asks.
pub(crate) fn dumps_on_request(
    what: &What,
    host: &HostKvm,
    payload: impl FnOnce() -> Packed + Send + 'static,
) -> Dumps {
    Dumps::new(When::Never, None, Repeat::new("run", options(what)), fingerprint(host), payload)
}

/// Tells what could not be written, and what was left out: whether all was written.
pub(crate) fn tell(dumps: &Dumps) -> bool {
    let left_out = dumps.left_out();
    if left_out > 0 {
        output::diagnostic(&format!("{left_out} more unexpected runs left no dump here; --out DIR keeps all"));
    }
    let failures = dumps.failures();
    failures.iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
    failures.is_empty()
}

/// A fingerprint is texts and numbers.
fn fingerprint(host: &HostKvm) -> Value {
    serde_json::to_value(host.fingerprint()).unwrap_or_default()
}
