//! Runs of a guest by the real binary, as a user's run is, and whether they came to the truth.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::binary::binary;
use crate::guest::{Guest, Truth};

/// What a run may take: enough for any verdict but `budget`, which takes all of it.
fn budget(truth: Truth) -> Duration {
    match truth {
        Truth::Dead(_) => Duration::from_secs(20),
        Truth::Live => Duration::from_secs(60),
        Truth::Changing(_) | Truth::Undecidable(_) => Duration::from_millis(600),
    }
}

/// Where files of guests and reports lie.
pub(crate) struct Bench {
    directory: TempDir,
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ran {
    code: Option<i32>,
    result: Value,
    /// Whether a certificate came of it, and holds.
    is_verified: bool,
    /// All that was printed.
    said: String,
}

/// A run that is under way.
pub(crate) struct Running {
    child: Child,
    file: PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    /// The file of a guest, in a directory of the run's own.
    fn file(&self, guest: &Guest, number: usize) -> PathBuf {
        let directory = self.directory.path().join(format!("{}-{number}", guest.title()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join(guest.name).with_extension("elf");
        let file = guest.file().unwrap_or_else(|error| panic!("{} cannot be assembled: {error}", guest.name));
        fs::write(&path, file).unwrap();
        path
    }

    /// Starts a run with more options; `number` tells runs of a guest apart.
    pub(crate) fn start(&self, guest: &Guest, number: usize, budget: Duration, options: &[&str]) -> Running {
        let file = self.file(guest, number);
        let mut command = Command::new(binary());
        command.arg("run").arg("--payload").arg(&file).args(guest.options()).args(options);
        command.arg(format!("--budget={}", budget.as_millis())).arg(format!("--expect={}", expected(guest.truth)));
        command.arg(format!("--report=jsonl={}", report(&file).display()));
        command.arg("--out").arg(file.with_extension("out"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { child, file }
    }

    /// Runs a guest once, with more options.
    pub(crate) fn run(&self, guest: &Guest, number: usize, options: &[&str]) -> Ran {
        self.start(guest, number, budget(guest.truth), options).finish(guest)
    }
}

/// As `--expect` takes it.
fn expected(truth: Truth) -> String {
    match truth {
        Truth::Dead(Some(kind)) => format!("stall={kind}"),
        _ => truth.verdict().into(),
    }
}

impl Running {
    /// Number of its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_under_way(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Waits for its end, which its budget bounds, and has the certificate of a stall checked.
    pub(crate) fn finish(self, guest: &Guest) -> Ran {
        let output = self.child.wait_with_output().unwrap();
        let mut ran = Ran {
            code: output.status.code(),
            result: result(&report(&self.file)),
            is_verified: false,
            said: said(&output),
        };
        if ran.verdict() == "stall" {
            let certificate =
                self.file.with_extension("out").join("payload").join(guest.title()).join("certificate.json");
            let mut verify = Command::new(binary());
            verify.arg("verify").arg(certificate).arg("--payload").arg(&self.file);
            let output = verify.stdin(Stdio::null()).output().unwrap();
            ran.is_verified = output.status.success();
            ran.said.push_str(&said(&output));
        }
        ran
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Where the report of a run of this file lies.
fn report(file: &Path) -> PathBuf {
    file.with_extension("jsonl")
}

/// The only result of a report, or null.
fn result(report: &Path) -> Value {
    let text = fs::read_to_string(report).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut results = lines.filter(|line| line["type"] == "result");
    results.next().unwrap_or_default()
}

impl Ran {
    /// The result as the report has it.
    pub(crate) fn result(&self) -> &Value {
        &self.result
    }

    pub(crate) fn verdict(&self) -> &str {
        self.result["verdict"].as_str().unwrap_or("none")
    }

    /// From the making of the machine to the verdict.
    pub(crate) fn wall(&self) -> Duration {
        Duration::from_nanos(self.result["wall_ns"].as_u64().unwrap_or_default())
    }

    /// What is wrong with it, if it did not come to the truth.
    pub(crate) fn lie(&self, guest: &Guest) -> Option<String> {
        let wrong = self.wrong(guest.truth)?;
        Some(format!("{}: {wrong}; the truth is {}: {}\n{}", guest.title(), guest.truth.told(), guest.why, self.said))
    }

    fn wrong(&self, truth: Truth) -> Option<String> {
        if self.verdict() != truth.verdict() {
            return Some(format!("the verdict is {} ({})", self.verdict(), self.reason()));
        }
        if self.code != Some(0) {
            return Some(format!("the exit code is {:?}", self.code));
        }
        match truth {
            Truth::Live => None,
            Truth::Dead(_) if self.result["strength"] != "proved" => {
                Some(format!("the stall is {}, not proved", self.result["strength"]))
            }
            Truth::Dead(_) if !self.is_verified => Some("the certificate does not hold".into()),
            Truth::Dead(kind) => {
                let found = self.result["kind"].as_str();
                (kind.is_some() && kind != found).then(|| format!("the stall is of kind {found:?}"))
            }
            Truth::Changing(words) | Truth::Undecidable(words) => {
                let reason = self.reason().to_lowercase();
                let named = words.iter().any(|word| reason.contains(word));
                (!named).then(|| format!("the reason is '{}'", self.reason()))
            }
        }
    }

    fn reason(&self) -> &str {
        self.result["reason"].as_str().or(self.result["text"].as_str()).unwrap_or("no reason")
    }
}
