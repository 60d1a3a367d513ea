//! Writes the dumps of a session.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::Value;
use stallbench_state::dump::{About, Packed, Parts};
use thiserror::Error;

use super::{Moment, When};
use crate::outcome::RunOutcome;
use crate::repeat::{Repeat, file_name};
use crate::report::result_json;
use crate::result::RunResult;
use crate::scenario::Run;

/// Dumps of unexpected runs at most that nobody asked for and gave no directory for: they lie in the current one, a megabyte each.
const MOST_UNASKED: usize = 8;

/// A dump that could not be written.
#[derive(Debug, Error)]
#[error("write dump {}: {source}", path.display())]
pub struct DumpWriteError {
    /// Where it was to lie.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The dumps of a session.
#[derive(Debug)]
pub struct Dumps {
    when: When,
    /// The run directory, if there is one.
    out: Option<PathBuf>,
    repeat: Repeat,
    host: Value,
    /// The guest's ELF file, made when it is first wanted.
    payload: LazyLock<Packed, Box<dyn FnOnce() -> Packed + Send>>,
    failures: Mutex<Vec<DumpWriteError>>,
    /// Dumps of running machines so far.
    asked: AtomicU64,
    /// Dumps at the end of runs so far, those that were not written too.
    ended: AtomicUsize,
}

impl Dumps {
    /// Dumps of a guest's runs on a host, whose fingerprint is as reports have it. With a run directory they lie there, each with its
    /// run; else in the current directory.
    pub fn new(
        when: When,
        out: Option<&Path>,
        repeat: Repeat,
        host: Value,
        payload: impl FnOnce() -> Packed + Send + 'static,
    ) -> Self {
        Self {
            when,
            out: out.map(Path::to_owned),
            repeat,
            host,
            payload: LazyLock::new(Box::new(payload)),
            failures: Mutex::default(),
            asked: AtomicU64::new(0),
            ended: AtomicUsize::new(0),
        }
    }

    /// Which runs leave one.
    pub fn when(&self) -> When {
        self.when
    }

    /// Writes what was kept of a run, if anything was: the outcome then names the file. One that cannot be written costs the outcome
    /// nothing else, and is told at the end.
    #[must_use]
    pub fn write(&self, run: &Run, mut outcome: RunOutcome) -> RunOutcome {
        let Some(moment) = outcome.moment.take() else { return outcome };
        let result = RunResult::new(run.clone(), outcome.clone());
        // A machine is kept before it is known to be one that was explored, of which something else may be expected.
        if self.when == When::Unexpected && result.is_as_expected() {
            return outcome;
        }
        if self.ended.fetch_add(1, Ordering::Relaxed) >= self.most() {
            return outcome;
        }
        let result = result_json(&result);
        outcome.dump = self.write_noting(self.path(run, ""), |path| self.write_to(path, run, Some(result?), &moment));
        outcome
    }

    /// How many runs leave one.
    fn most(&self) -> usize {
        if self.out.is_none() && self.when == When::Unexpected { MOST_UNASKED } else { usize::MAX }
    }

    /// How many dumps were left out, for there were so many already.
    pub fn left_out(&self) -> usize {
        self.ended.load(Ordering::Relaxed).saturating_sub(self.most())
    }

    /// Writes a machine that runs on: where it lies, if it could be written.
    pub fn write_running(&self, run: &Run, moment: &Moment) -> Option<PathBuf> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let path = self.path(run, &format!("-running-{number}"));
        self.write_noting(path, |path| self.write_to(path, run, None, moment))
    }

    fn write_noting(&self, path: PathBuf, write: impl FnOnce(&Path) -> io::Result<()>) -> Option<PathBuf> {
        let Err(source) = write(&path) else { return Some(path) };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.push(DumpWriteError { path, source });
        None
    }

    /// What could not be written so far.
    pub fn failures(&self) -> Vec<DumpWriteError> {
        std::mem::take(&mut self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where a dump of a run lies.
    fn path(&self, run: &Run, which: &str) -> PathBuf {
        match &self.out {
            Some(out) => out.join(file_name(run)).join(format!("dump{which}.core")),
            None => PathBuf::from(format!("stallbench-{}{which}.core", file_name(run).replace('/', "_"))),
        }
    }

    /// What a dump of a run says that it is of, before there is a result.
    pub fn about(&self, run: &Run) -> About {
        About {
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            run: run.name.to_string(),
            command: self.repeat.command(run),
            host: self.host.clone(),
            result: None,
        }
    }

    fn write_to(&self, path: &Path, run: &Run, result: Option<Value>, moment: &Moment) -> io::Result<()> {
        let about = About { result, ..self.about(run) };
        let parts = Parts { about: &about, machine: &moment.machine, memory: &moment.memory, payload: &self.payload };
        as_a_whole(path, |file| parts.write(file), |partial| fs::rename(partial, path))
    }
}

/// Writes a file under another name first, so that it is never there in part, and has it put in its place.
pub(crate) fn as_a_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    put: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.part", std::process::id()));
    let partial = PathBuf::from(partial);
    let written = File::create(&partial).and_then(|file| {
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        // What is left in the buffer is written with its errors.
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        put(&partial)
    });
    if written.is_err() {
        // What matters is why it could not be written.
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::outcome::Verdict;
    use crate::sample;
    use stallbench_state::dump::{Dump, DumpedMemory};
    use stallbench_state::machine::MachineState;
    use std::sync::Arc;

    fn kept() -> RunOutcome {
        let machine = MachineState { vcpus: vec![sample::vcpu()] };
        let moment = Some(Arc::new(Moment { machine, memory: DumpedMemory::default() }));
        RunOutcome { moment, ..sample::outcome(Verdict::Pass) }
    }

    fn dumps(out: &Path) -> Dumps {
        Dumps::new(When::Always, Some(out), Repeat::default(), serde_json::json!({ "cpu": "x" }), || {
            Packed::of(b"the guest")
        })
    }

    #[test]
    fn dump_lies_with_its_run_and_says_what_it_is_of() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("call/sample@vcpus=2");
        fs::create_dir_all(&there).unwrap();
        let outcome = dumps(directory.path()).write(&sample::run(2), kept());
        let path = outcome.dump.expect("a dump");
        assert_eq!(path, there.join("dump.core"));
        let dump = Dump::read(&fs::read(path).unwrap()).unwrap();
        assert_eq!((dump.about.run.as_str(), dump.payload.as_slice()), ("call/sample@vcpus=2", &b"the guest"[..]));
        assert_eq!(dump.about.command, "stallbench run 'call/sample@vcpus=2' --seed 0");
        assert_eq!(dump.about.result.expect("a result")["verdict"], "pass");
        assert_eq!(fs::read_dir(there).unwrap().count(), 1, "no other file");
    }

    #[test]
    fn dump_that_cannot_be_written_costs_the_outcome_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let dumps = dumps(&directory.path().join("absent"));
        let outcome = dumps.write(&sample::run(2), kept());
        assert_eq!((outcome.verdict, outcome.dump), (Verdict::Pass, None));
        let failures: Vec<_> = dumps.failures().iter().map(ToString::to_string).collect();
        assert!(failures[0].ends_with("dump.core: No such file or directory (os error 2)"), "{failures:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn current_directory_is_not_filled_unasked() {
        let of = |when, out| Dumps::new(when, out, Repeat::default(), Value::Null, || Packed::of(b""));
        let somewhere = Path::new("somewhere");
        assert_eq!(of(When::Unexpected, None).most(), MOST_UNASKED);
        assert_eq!(of(When::Unexpected, Some(somewhere)).most(), usize::MAX);
        assert_eq!(of(When::Always, None).most(), usize::MAX, "that is asked for");
        let dumps = Dumps { ended: AtomicUsize::new(MOST_UNASKED), ..of(When::Unexpected, None) };
        let unexpected = RunOutcome { verdict: Verdict::Budget { reason: String::new() }, ..kept() };
        assert_eq!((dumps.left_out(), dumps.write(&sample::run(2), unexpected).dump, dumps.left_out()), (0, None, 1));
        assert_eq!((dumps.write(&sample::run(2), kept()).dump, dumps.left_out()), (None, 1), "as expected");
    }

    #[test]
    fn half_a_file_does_not_stay() {
        let directory = tempfile::tempdir().unwrap();
        let full = as_a_whole(&directory.path().join("x"), |_| Err(io::ErrorKind::StorageFull.into()), |_| Ok(()));
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
