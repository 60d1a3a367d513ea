//! Reports: what becomes of results. Each report has a sink of its own; one that fails costs the others nothing.

mod explored;
pub(crate) mod human;
mod jsonl;
mod junit;
mod kind;
mod pipe;
mod variants;

use std::io;

use stallbench_state::host::HostFingerprint;
use thiserror::Error;

pub(crate) use explored::turning;
pub use human::{Human, block};
pub use jsonl::{JsonLines, SCHEMA_VERSION, result_json};
pub use junit::JUnit;
pub use kind::{Kind, KindError};

use crate::result::{RunResult, Summary};

/// What is known before the first run.
#[derive(Clone, Debug)]
pub struct Start {
    /// The host.
    pub host: HostFingerprint,
    /// Time between two looks at the progress words, in nanoseconds: verdict times are not finer than that.
    pub poll_interval_ns: u64,
    /// Runs that are asked for.
    pub scenarios: usize,
    /// Seed of the first repetition.
    pub seed: u64,
    /// What each run may take, in milliseconds.
    pub budget_ms: u64,
}

/// A report. The three are called in this order, `result` once for each run; `end` also after an interrupt.
pub trait Report {
    /// Before the first run.
    fn begin(&mut self, start: &Start) -> io::Result<()>;
    /// A run has come to a verdict.
    fn result(&mut self, result: &RunResult) -> io::Result<()>;
    /// No more runs come.
    fn end(&mut self, summary: &Summary) -> io::Result<()>;
}

/// A report that could not be written.
#[derive(Debug, Error)]
#[error("write report {target}: {source}")]
pub struct ReportError {
    /// As it was asked for: `jsonl=FILE`.
    pub target: String,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// All reports of a session.
#[derive(Default)]
pub struct Reports {
    reports: Vec<Entry>,
}

struct Entry {
    target: String,
    /// The report, as long as it can be written.
    report: Result<Box<dyn Report>, io::Error>,
}

impl Reports {
    /// Adds a report, or why there cannot be one.
    pub fn add(&mut self, target: String, report: io::Result<Box<dyn Report>>) {
        self.reports.push(Entry { target, report });
    }

    /// Before the first run.
    pub fn begin(&mut self, start: &Start) {
        self.each(|report| report.begin(start));
    }

    /// A run has come to a verdict.
    pub fn result(&mut self, result: &RunResult) {
        self.each(|report| report.result(result));
    }

    /// No more runs come. Returns the reports that could not be written.
    pub fn end(mut self, summary: &Summary) -> Vec<ReportError> {
        self.each(|report| report.end(summary));
        self.reports
            .into_iter()
            .filter_map(|entry| Some(ReportError { target: entry.target, source: entry.report.err()? }))
            .collect()
    }

    fn each(&mut self, mut action: impl FnMut(&mut dyn Report) -> io::Result<()>) {
        for entry in &mut self.reports {
            if let Ok(report) = &mut entry.report
                && let Err(error) = action(report.as_mut())
            {
                entry.report = Err(error);
            }
        }
    }
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_list().entries(self.reports.iter().map(|entry| &entry.target)).finish()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::outcome::Verdict;
    use crate::sample;

    /// A disk that is full after some bytes.
    struct Full(usize);

    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(super) fn start() -> Start {
        Start { host: HostFingerprint::default(), poll_interval_ns: 250_000, scenarios: 1, seed: 0, budget_ms: 10_000 }
    }

    #[test]
    fn report_on_a_full_disk_is_named_and_costs_the_others_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let good = directory.path().join("good.jsonl");
        let mut reports = Reports::default();
        reports.add("jsonl=full".into(), Ok(Box::new(JsonLines::new(Full(200)))));
        reports.add("jsonl=good".into(), Ok(Box::new(JsonLines::new(std::fs::File::create(&good).unwrap()))));
        reports.begin(&start());
        reports.result(&RunResult::new(sample::run(2), sample::outcome(Verdict::Pass)));
        let failed = reports.end(&Summary::default());
        assert_eq!(failed.len(), 1);
        assert!(failed[0].to_string().starts_with("write report jsonl=full: "));
        assert_eq!(std::fs::read_to_string(good).unwrap().lines().count(), 3);
    }
}
