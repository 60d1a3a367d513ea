//! Traces of searches: which leave one, and where it lies. A file is there as a whole or not at all, and never in the place of another.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use stallbench_explore::{Event, StateHash, Step, Subject, Trace};
use stallbench_state::certificate::Certificate;
use stallbench_state::program::Program;
use thiserror::Error;

use crate::execute::{RunPlan, boot_block};
use crate::outcome::{RunOutcome, Verdict};
use crate::repeat::file_name;
use crate::result::differences;
use crate::scenario::Run;

/// What a trace that goes round says of itself: the step behind which its end was before.
pub const ROUND: &str = "round-from";
/// Files of one name in the current directory at most, each with a number of its own.
const MOST_OF_A_NAME: usize = 99;

/// A way from the start line to where the verdict comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The state at the start line.
    pub start: StateHash,
    /// What the host hands the guest.
    pub boot: StateHash,
    /// How many vCPUs.
    pub vcpus: usize,
    /// What happens on the way.
    pub events: Vec<Event>,
    /// Its end is the state behind so many steps of it: from there it goes round.
    pub round_from: Option<usize>,
    /// Instructions between two stops in front of which interrupts come, by vCPU.
    pub places: Vec<(usize, stallbench_explore::Place)>,
    /// NMIs, and INITs, come there too.
    pub sent: [bool; 2],
}

/// A trace that could not be written.
#[derive(Debug, Error)]
#[error("write trace {}: {source}", path.display())]
pub struct TraceWriteError {
    /// Where it was to lie.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Where traces lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file, of the only run.
    File(PathBuf),
    /// With the run, in the directory of all of them.
    Out(PathBuf),
    /// In the current directory, of runs that are not as expected.
    Here,
}

/// The traces of a session.
#[derive(Debug)]
pub struct Traces {
    place: Place,
    payload: String,
    options: Vec<(String, String)>,
    failures: Mutex<Vec<TraceWriteError>>,
}

impl Traces {
    /// Traces of a payload's runs; the options are what it takes beside their names to ask for them again.
    pub fn new(place: Place, payload: &[u8], options: Vec<(String, String)>) -> Self {
        let no_lines = |text: String| text.replace(char::is_control, "?");
        let options = options.into_iter().map(|(key, value)| (key, no_lines(value))).collect();
        Self { place, payload: Certificate::digest(payload), options, failures: Mutex::default() }
    }

    /// Writes the way that was recorded of a run, if any was: the outcome then names the file. One that cannot be written costs the
    /// outcome nothing else, and is told at the end.
    #[must_use]
    pub fn write(&self, run: &Run, mut outcome: RunOutcome) -> RunOutcome {
        let recorded = outcome.explored.as_ref().and_then(|explored| explored.recorded.clone());
        let Some(recorded) = recorded.filter(|_| self.wants(run, &outcome)) else { return outcome };
        let model = outcome.explored.as_ref().map_or_else(String::new, |explored| explored.model.clone());
        let trace = Trace {
            of: self.subject(run, model, &recorded),
            start: recorded.start,
            steps: recorded.events.iter().map(Step::from).collect(),
            verdict: words(&outcome.verdict),
        };
        match self.write_to(run, &trace.to_string()) {
            Ok(path) => outcome.trace = Some(path),
            Err(error) => self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(error),
        }
        outcome
    }

    fn wants(&self, run: &Run, outcome: &RunOutcome) -> bool {
        self.place != Place::Here || !differences(run, outcome).is_empty()
    }

    /// What could not be written so far.
    pub fn failures(&self) -> Vec<TraceWriteError> {
        std::mem::take(&mut self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn subject(&self, run: &Run, model: String, recorded: &Recorded) -> Subject {
        let set = run.set.iter().map(|setting| ("set".to_owned(), format!("{}={}", setting.knob.name, setting.text)));
        let round = recorded.round_from.map(|step| (ROUND.to_owned(), step.to_string()));
        let mut subject = Subject {
            payload: self.payload.clone(),
            scenario: run.name.to_string(),
            vcpus: run.vcpus,
            model,
            seed: run.seed,
            options: set.chain(self.options.iter().cloned()).chain(round).collect(),
            boot: recorded.boot,
        };
        subject.deliver_at(&recorded.places);
        subject.expect_nmis_and_inits(recorded.sent);
        subject
    }

    fn write_to(&self, run: &Run, text: &str) -> Result<PathBuf, TraceWriteError> {
        let paths: Vec<PathBuf> = match &self.place {
            Place::File(path) => vec![path.clone()],
            Place::Out(out) => vec![out.join(file_name(run)).join("schedule.trace")],
            Place::Here => names(&format!("stallbench-{}", file_name(run).replace('/', "_"))).collect(),
        };
        let mut paths = paths.into_iter().peekable();
        while let Some(path) = paths.next() {
            match new_file(&path, text) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && paths.peek().is_some() => {}
                Err(source) => return Err(TraceWriteError { path, source }),
            }
        }
        let source = io::ErrorKind::AlreadyExists.into();
        Err(TraceWriteError { path: PathBuf::new(), source })
    }
}

/// The names that a file can have here.
fn names(stem: &str) -> impl Iterator<Item = PathBuf> {
    let numbered = (2..=MOST_OF_A_NAME).map(move |number| format!("-{number}"));
    let stem = stem.to_owned();
    std::iter::once(String::new()).chain(numbered).map(move |number| PathBuf::from(format!("{stem}{number}.trace")))
}

/// Writes a file that was not there, under another name first: a link is made where nothing is, or not at all.
pub fn new_file(path: &Path, text: &str) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.part", std::process::id()));
    let partial = PathBuf::from(partial);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        fs::hard_link(&partial, path)
    });
    // What matters is whether it could be written.
    let _ = fs::remove_file(&partial);
    written
}

/// A verdict in the words of a trace: `stall not-accepting`.
pub fn words(verdict: &Verdict) -> String {
    let kind = verdict.kind().map_or_else(String::new, |kind| format!(" {kind}"));
    format!("{}{kind}", verdict.word())
}

/// The hash of what the host hands the guest: the same for every payload in which the case has the same name.
pub(crate) fn boot_hash(program: &Program, plan: &RunPlan) -> StateHash {
    let block = stallbench_abi::boot::BootBlock { case: 0, ..boot_block(plan) };
    let mut bytes = vec![0; <stallbench_abi::boot::BootBlock as stallbench_abi::Plain>::SIZE];
    let written = stallbench_abi::Plain::write(&block, &mut bytes);
    debug_assert!(written.is_some(), "it has the size of one");
    let case = program.cases().get(plan.case).map_or("", |case| case.name.as_str());
    bytes.extend_from_slice(case.as_bytes());
    StateHash::of(&bytes)
}

#[cfg(test)]
mod test {
    use std::sync::Arc;

    use super::*;
    use crate::outcome::ExploredOutcome;
    use crate::sample;

    fn explored(verdict: Verdict) -> RunOutcome {
        let explored = ExploredOutcome {
            model: "sc".to_owned(),
            recorded: Some(Arc::new(Recorded::default())),
            ..ExploredOutcome::default()
        };
        RunOutcome { explored: Some(explored), ..sample::outcome(verdict) }
    }

    #[test]
    fn trace_lies_with_its_run_and_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("call/sample@vcpus=2");
        fs::create_dir_all(&there).unwrap();
        let options = vec![("layout".to_owned(), "a\nend 0".to_owned())];
        let traces = Traces::new(Place::Out(directory.path().to_owned()), b"the guest", options);
        let path = traces.write(&sample::run(2), explored(Verdict::Pass)).trace.expect("a trace");
        assert_eq!(path, there.join("schedule.trace"));
        let trace = Trace::parse(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!((trace.of.scenario.as_str(), trace.verdict.as_str()), ("call/sample@vcpus=2", "pass"));
        assert_eq!(trace.of.options, [("layout".to_owned(), "a?end 0".to_owned())]);
        assert_eq!(trace.of.payload, Certificate::digest(b"the guest"));
    }

    #[test]
    fn file_that_is_there_already_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.trace");
        fs::write(&path, "mine").unwrap();
        let traces = Traces::new(Place::File(path.clone()), b"", Vec::new());
        let outcome = traces.write(&sample::run(2), explored(Verdict::Pass));
        assert_eq!((outcome.trace, fs::read_to_string(&path).unwrap()), (None, "mine".to_owned()));
        assert!(traces.failures()[0].to_string().contains("File exists"), "it is told");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing half written");
    }

    #[test]
    fn only_what_is_not_as_expected_leaves_one_unasked() {
        let traces = Traces::new(Place::Here, b"", Vec::new());
        let budget = Verdict::Budget { reason: String::new() };
        assert!(!traces.wants(&sample::run(2), &explored(Verdict::Pass)));
        assert!(traces.wants(&sample::run(2), &explored(budget)));
        let names: Vec<_> = names("stallbench-a").take(2).collect();
        assert_eq!(names, [Path::new("stallbench-a.trace"), Path::new("stallbench-a-2.trace")]);
    }
}
