//! The run directory of `--out`: who a run is, written first; what it came to, written last.
//!
//! ```text
//! DIR/session.json                       the command, the version, the host; written first
//! DIR/mtrr/stack-broadcast@vcpus=4/      a directory a run; `#2` and so on for repetitions
//!     run.json                           scenario, case, vCPUs, knobs, seed, and the command that repeats it
//!     log.txt                            lines that the guest logged, if there are any
//!     console.txt                        what a plain guest wrote to its console, if anything
//!     dump.core                          the machine at the end, for `stallbench debug --dump`, where `--dump` asks for it
//!     certificate.json                   the proof of a stall, for `stallbench verify`
//!     verdict.json                       the result as in the JSON lines, written last
//! DIR/summary.json                       what all came to; written last
//! ```
//!
//! A directory without a verdict is a run that died or was interrupted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use stallbench_abi::knob;
use stallbench_state::certificate::Certificate;
use thiserror::Error;

use crate::repeat::{Repeat, file_name};
use crate::report::{Report, SCHEMA_VERSION, Start, result_json};
use crate::result::{RunResult, Summary};
use crate::scenario::{Run, text_of_value};

/// Why a run directory cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Something is there already.
    #[error("--out {}: is there already and is not an empty directory", .0.display())]
    Taken(PathBuf),
    /// It cannot be made or written.
    #[error("--out {}: {source}", path.display())]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A run directory.
#[derive(Debug)]
pub struct Evidence {
    root: PathBuf,
    command: Vec<String>,
    repeat: Repeat,
    /// Digest of the payload, as certificates name it.
    payload: String,
    /// The first thing that could not be written by a worker.
    failure: Mutex<Option<io::Error>>,
}

impl Evidence {
    /// Whether a directory can be made there: nothing is there, or an empty directory.
    pub fn check(root: &Path) -> Result<(), EvidenceError> {
        if fs::symlink_metadata(root).is_ok() && !is_empty_directory(root) {
            return Err(EvidenceError::Taken(root.to_owned()));
        }
        Ok(())
    }

    /// Makes the directory. `command` is what was asked for, `repeat` how one run is repeated, `payload`
    /// the ELF file that runs.
    pub fn create(root: &Path, command: Vec<String>, repeat: Repeat, payload: &[u8]) -> Result<Self, EvidenceError> {
        let unwritable = |source| EvidenceError::Unwritable { path: root.to_owned(), source };
        Self::check(root)?;
        fs::create_dir_all(root).map_err(unwritable)?;
        let probe = root.join("session.json");
        fs::write(&probe, b"{}\n").map_err(unwritable)?;
        let payload = Certificate::digest(payload);
        Ok(Self { root: root.to_owned(), command, repeat, payload, failure: Mutex::new(None) })
    }

    /// A run begins. Called by the thread that runs it.
    pub fn run_begins(&self, run: &Run) {
        let written = self.write_identity(run);
        if let (Err(error), Ok(mut failure)) = (written, self.failure.lock()) {
            failure.get_or_insert(error);
        }
    }

    fn write_identity(&self, run: &Run) -> io::Result<()> {
        let directory = self.directory(run);
        fs::create_dir_all(&directory)?;
        let knobs: serde_json::Map<String, Value> = knob::ALL
            .iter()
            .map(|knob| (knob.name.to_owned(), text_of_value(knob, run.knobs[knob.number as usize]).into()))
            .collect();
        let identity = json!({
            "schema_version": SCHEMA_VERSION,
            "scenario": &*run.name,
            "case": &*run.case_name,
            "vcpus": run.vcpus,
            "seed": run.seed,
            "repetition": run.repetition,
            "layout": run.layout.as_deref().map(|layout| &layout.name),
            "knobs": knobs,
            "repeat": self.repeat.command(run),
        });
        write_json(&directory.join("run.json"), &identity)
    }

    /// Where a run's evidence lies.
    fn directory(&self, run: &Run) -> PathBuf {
        self.root.join(file_name(run))
    }

    fn first_failure(&self) -> io::Result<()> {
        let failure = self.failure.lock().ok().and_then(|mut failure| failure.take());
        failure.map_or(Ok(()), Err)
    }
}

impl Report for Arc<Evidence> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        let session = json!({
            "schema_version": SCHEMA_VERSION,
            "stallbench": env!("CARGO_PKG_VERSION"),
            "command": self.command,
            "host": start.host,
            "scenarios": start.scenarios,
            "seed": start.seed,
            "budget_ms": start.budget_ms,
        });
        write_json(&self.root.join("session.json"), &session)
    }

    fn result(&mut self, result: &RunResult) -> io::Result<()> {
        self.first_failure()?;
        let directory = self.directory(&result.run);
        if !result.outcome.log.is_empty() {
            let lines: String =
                result.outcome.log.iter().map(|line| format!("vcpu{} {}\n", line.vcpu, line.text)).collect();
            fs::write(directory.join("log.txt"), lines)?;
        }
        if let Some(console) = &result.outcome.console {
            fs::write(directory.join("console.txt"), &console.text)?;
        }
        if let Some(proof) = &result.outcome.proof.proof {
            let certificate = proof.certificate(&self.payload, &result.run.name);
            fs::write(directory.join("certificate.json"), certificate.to_json())?;
        }
        write_json(&directory.join("verdict.json"), &result_json(result)?)
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.first_failure()?;
        let summary = json!({
            "schema_version": SCHEMA_VERSION,
            "asked": summary.asked,
            "total": summary.done,
            "unexpected": summary.unexpected,
            "interrupted": summary.interrupted,
            "verdicts": summary.verdicts,
        });
        write_json(&self.root.join("summary.json"), &summary)
    }
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    fs::write(path, text)
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::outcome::Verdict;
    use crate::sample;

    #[test]
    fn directory_without_a_verdict_is_a_run_that_died() {
        let directory = tempfile::tempdir().unwrap();
        let mut evidence =
            Arc::new(Evidence::create(directory.path(), vec!["run".into()], Repeat::default(), b"").unwrap());
        let (died, ended) = (sample::run(2), sample::run(3));
        evidence.run_begins(&died);
        evidence.run_begins(&ended);
        evidence.result(&RunResult::new(ended, sample::outcome(Verdict::Pass))).unwrap();
        let there = |run: &str, file: &str| directory.path().join("call").join(run).join(file).is_file();
        assert!(there("sample@vcpus=2", "run.json") && !there("sample@vcpus=2", "verdict.json"));
        assert!(there("sample@vcpus=3", "verdict.json"));
    }

    #[test]
    fn directory_that_holds_something_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("x"), "").unwrap();
        let error = Evidence::create(directory.path(), vec![], Repeat::default(), b"").unwrap_err();
        assert!(error.to_string().ends_with("is there already and is not an empty directory"));
        let file = directory.path().join("x");
        assert!(Evidence::create(&file, vec![], Repeat::default(), b"").is_err());
        assert!(matches!(
            Evidence::create(&file.join("y"), vec![], Repeat::default(), b""),
            Err(EvidenceError::Unwritable { .. })
        ));
    }
}
