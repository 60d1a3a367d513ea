//! JSON lines: one object a line, each written and flushed at once. The schema is documented in docs/json.md.

use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;
use stallbench_state::host::HostFingerprint;

use super::variants::{Divergence, Variants};
use super::{Report, Start};
use crate::outcome::RunOutcome;
use crate::result::{RunResult, Summary};
use crate::scenario::{Expectation, Setting};

/// Version of the schema. Additions keep it: readers ignore what they do not know.
pub const SCHEMA_VERSION: u32 = 1;

/// A report as JSON lines.
#[derive(Debug)]
pub struct JsonLines<W> {
    sink: W,
    variants: Variants,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `sink`, one write a line.
    pub fn new(sink: W) -> Self {
        Self { sink, variants: Variants::default() }
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.sink.write_all(&text)?;
        self.sink.flush()
    }
}

impl<W: Write> Report for JsonLines<W> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.line(&RunStart {
            r#type: "run-start",
            schema_version: SCHEMA_VERSION,
            stallbench: env!("CARGO_PKG_VERSION"),
            host: Host { fingerprint: &start.host, poll_interval_ns: start.poll_interval_ns },
            scenarios: start.scenarios,
            seed: start.seed,
            budget_ms: start.budget_ms,
        })
    }

    fn result(&mut self, result: &RunResult) -> io::Result<()> {
        self.variants.add(result);
        self.line(&ResultLine::new(result))
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.line(&RunEnd {
            r#type: "run-end",
            total: summary.done,
            unexpected: summary.unexpected,
            interrupted: summary.interrupted,
            wall_ns: u64::try_from(summary.wall.as_nanos()).unwrap_or(u64::MAX),
            verdicts: &summary.verdicts,
            arch_divergences: self.variants.divergences(),
        })
    }
}

/// A result as a JSON value, as in a line.
pub fn result_json(result: &RunResult) -> serde_json::Result<Value> {
    serde_json::to_value(ResultLine::new(result))
}

#[derive(Serialize)]
struct RunStart<'a> {
    r#type: &'static str,
    schema_version: u32,
    stallbench: &'static str,
    host: Host<'a>,
    scenarios: usize,
    seed: u64,
    budget_ms: u64,
}

#[derive(Serialize)]
struct Host<'a> {
    #[serde(flatten)]
    fingerprint: &'a HostFingerprint,
    poll_interval_ns: u64,
}

#[derive(Serialize)]
struct ResultLine<'a> {
    r#type: &'static str,
    scenario: &'a str,
    #[serde(flatten)]
    outcome: &'a RunOutcome,
    as_expected: bool,
    #[serde(skip_serializing_if = "slice_is_empty")]
    differences: &'a [String],
    expected: Expected<'a>,
    vcpus: usize,
    case: &'a str,
    seed: u64,
    repetition: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<&'a str>,
    #[serde(skip_serializing_if = "Settings::is_empty")]
    set: Settings<'a>,
}

fn slice_is_empty(slice: &[String]) -> bool {
    slice.is_empty()
}

impl<'a> ResultLine<'a> {
    fn new(result: &'a RunResult) -> Self {
        let run = &result.run;
        Self {
            r#type: "result",
            scenario: &run.name,
            outcome: &result.outcome,
            as_expected: result.is_as_expected(),
            differences: &result.differences,
            expected: Expected::new(&run.expectation),
            vcpus: run.vcpus,
            case: &run.case_name,
            seed: run.seed,
            repetition: run.repetition,
            layout: run.layout.as_deref().map(|layout| layout.name.as_str()),
            set: Settings(&run.set),
        }
    }
}

#[derive(Serialize)]
struct Expected<'a> {
    verdict: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
}

impl<'a> Expected<'a> {
    fn new(expectation: &'a Expectation) -> Self {
        Self { verdict: expectation.verdict, kind: expectation.kind }
    }
}

/// Settings as an object of texts.
struct Settings<'a>(&'a [Setting]);

impl Settings<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Settings<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for setting in self.0 {
            map.serialize_entry(setting.knob.name, &setting.text)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct RunEnd<'a> {
    r#type: &'static str,
    total: usize,
    unexpected: usize,
    interrupted: bool,
    wall_ns: u64,
    verdicts: &'a std::collections::BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    arch_divergences: Vec<Divergence>,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::outcome::{Culprit, Stall, StallKind, Strength, Verdict};
    use crate::sample;

    #[test]
    fn result_has_the_keys_of_the_schema() {
        let stall = Stall {
            kind: StallKind::Deadlock,
            strength: Strength::Observed,
            culprit: Some(Culprit { vcpu: 0, site: "call_many".into(), reason: "wait=0 became wait=1".into() }),
            root: vec![],
            waits: vec![],
        };
        let json = result_json(&RunResult::new(sample::run(4), sample::outcome(Verdict::Stall(stall)))).unwrap();
        assert_eq!(json["type"], "result");
        assert_eq!(json["scenario"], "call/sample@vcpus=4");
        assert_eq!(
            (&json["verdict"], &json["kind"], &json["strength"]),
            (&"stall".into(), &"deadlock".into(), &"observed".into())
        );
        assert_eq!(json["culprit"]["site"], "call_many");
        assert_eq!((&json["as_expected"], &json["vcpus"]), (&false.into(), &4.into()));
        assert_eq!(json["differences"][0], "stall deadlock, expected pass");
        assert_eq!((&json["wall_ns"], &json["verdict_ns"]), (&38_000_000.into(), &2_500_000.into()));
        assert_eq!(json["mtrr"]["consistent"], true);
    }

    #[test]
    fn report_is_one_object_a_line() {
        let mut text = Vec::new();
        let mut report = JsonLines::new(&mut text);
        report.begin(&crate::report::test::start()).unwrap();
        report.result(&RunResult::new(sample::run(2), sample::outcome(Verdict::Pass))).unwrap();
        report.end(&Summary { done: 1, ..Summary::default() }).unwrap();
        let lines: Vec<Value> =
            text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
        let types: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["run-start", "result", "run-end"]);
        assert_eq!((&lines[0]["schema_version"], &lines[0]["host"]["poll_interval_ns"]), (&1.into(), &250_000.into()));
        assert_eq!((&lines[2]["total"], &lines[2]["unexpected"]), (&1.into(), &0.into()));
    }
}
