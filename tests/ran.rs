//! Runs of the binary as a user makes them, with what they come to out of their JSON lines.

use assert_cmd::Command;
use serde_json::Value;

/// What a run came to.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) results: Vec<Value>,
    /// On both streams.
    pub(crate) said: String,
}

/// `stallbench run` with these arguments.
#[allow(dead_code, reason = "not each test that has this module runs both")]
pub(crate) fn stallbench(arguments: &[&str]) -> Ran {
    of("run", arguments)
}

/// `stallbench explore` with these arguments.
#[allow(dead_code, reason = "not each test that has this module runs both")]
pub(crate) fn stallbench_explore(arguments: &[&str]) -> Ran {
    of("explore", arguments)
}

fn of(what: &str, arguments: &[&str]) -> Ran {
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::cargo_bin("stallbench").unwrap();
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).arg(what).args(arguments);
    let output = command.arg(format!("--report=jsonl={}", report.path().display())).output().unwrap();
    let text = std::fs::read_to_string(report.path()).unwrap();
    let results = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    Ran {
        code: output.status.code(),
        results: results.filter(|line| line["type"] == "result").collect(),
        said: format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    }
}

impl Ran {
    /// The only result.
    pub(crate) fn only(&self) -> &Value {
        assert_eq!(self.results.len(), 1, "{}", self.said);
        &self.results[0]
    }
}
