//! JUnit XML: a suite a subject, a test case a run. Written whole at the end, which an interrupt reaches too.

use std::io::{self, Write};
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestSuite};

use super::human::block;
use super::{Report, Start};
use crate::outcome::Verdict;
use crate::result::{RunResult, Summary};
use crate::scenario::phrase;

/// A report as JUnit XML.
#[derive(Debug)]
pub struct JUnit<W> {
    sink: W,
    suites: Vec<(String, Vec<TestCase>)>,
    host: Vec<(&'static str, String)>,
}

impl<W: Write> JUnit<W> {
    /// Writes to `sink`, at the end.
    pub fn new(sink: W) -> Self {
        Self { sink, suites: Vec::new(), host: Vec::new() }
    }
}

impl<W: Write> Report for JUnit<W> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.host = vec![
            ("host.kernel", start.host.kernel.clone()),
            ("host.vendor_module", start.host.vendor_module.clone()),
            ("host.cpu", start.host.cpu.clone()),
            ("host.host_cpus", start.host.host_cpus.to_string()),
        ];
        Ok(())
    }

    fn result(&mut self, result: &RunResult) -> io::Result<()> {
        let subject = result.run.scenario.split('/').next().unwrap_or_default();
        let case = test_case(result);
        match self.suites.iter_mut().find(|(name, _)| name == subject) {
            Some((_, cases)) => cases.push(case),
            None => self.suites.push((subject.to_owned(), vec![case])),
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        let mut document = Document::new("stallbench");
        document.set_time(summary.wall);
        for (name, cases) in self.suites.drain(..) {
            let mut suite = TestSuite::new(name);
            suite.set_time(cases.iter().filter_map(|case| case.time).sum::<Duration>());
            for (name, value) in &self.host {
                suite.add_property((*name, value.as_str()));
            }
            if summary.interrupted {
                suite.add_property(("interrupted", "true"));
            }
            suite.add_test_cases(cases);
            document.add_test_suite(suite);
        }
        let text = document.to_string().map_err(io::Error::other)?;
        self.sink.write_all(text.as_bytes())?;
        self.sink.flush()
    }
}

fn test_case(result: &RunResult) -> TestCase {
    let verdict = &result.outcome.verdict;
    let mut name = result.run.name.to_string();
    if result.run.repetition > 0 {
        name.push_str(&format!("#{}", result.run.repetition + 1));
    }
    let mut case = TestCase::new(name, status(result));
    case.set_classname(&*result.run.scenario);
    case.set_time(result.outcome.wall);
    // The name as `run` takes it: repetitions share it, and test cases may not share theirs.
    case.add_property(("scenario", &*result.run.name));
    case.add_property(("verdict", phrase(verdict.word(), verdict.kind()).as_str()));
    case.set_system_out(block(result, false));
    case
}

fn status(result: &RunResult) -> TestCaseStatus {
    if result.is_as_expected() {
        return TestCaseStatus::success();
    }
    // What says nothing about the guest is an error of the host, not a failure of the test.
    let kind = match result.outcome.verdict {
        Verdict::Starved { .. } => NonSuccessKind::Error,
        _ => NonSuccessKind::Failure,
    };
    let mut status = TestCaseStatus::non_success(kind);
    status.set_message(result.differences.join("; "));
    status.set_type(result.outcome.verdict.word());
    status.set_description(format!("expected because {}", result.run.expectation.because));
    status
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample;

    fn written(results: &[RunResult], summary: &Summary) -> Document {
        let mut text = Vec::new();
        let mut report = JUnit::new(&mut text);
        report.begin(&crate::report::test::start()).unwrap();
        for result in results {
            report.result(result).unwrap();
        }
        report.end(summary).unwrap();
        Document::deserialize_from_str(std::str::from_utf8(&text).unwrap()).unwrap()
    }

    #[test]
    fn unexpected_result_is_a_failure_that_says_what_differs() {
        let fault = Verdict::Budget { reason: "vcpu1 still <changes> \u{1b}[0m".into() };
        let results = [
            RunResult::new(sample::run(2), sample::outcome(Verdict::Pass)),
            RunResult::new(sample::run(3), sample::outcome(fault)),
        ];
        let document = written(&results, &Summary::default());
        assert_eq!((document.tests, document.failures), (2, 1));
        assert_eq!(document.test_suites[0].test_cases[1].name.as_str(), "call/sample@vcpus=3");
    }

    #[test]
    fn repetition_has_a_test_case_of_its_own_and_the_name_of_its_scenario() {
        let run = crate::scenario::Run { repetition: 1, ..sample::run(2) };
        let document = written(&[RunResult::new(run, sample::outcome(Verdict::Pass))], &Summary::default());
        let case = &document.test_suites[0].test_cases[0];
        assert_eq!(case.name.as_str(), "call/sample@vcpus=2#2");
        let scenario = case.properties.iter().find(|property| property.name.as_str() == "scenario").unwrap();
        assert_eq!(scenario.value.as_str(), "call/sample@vcpus=2");
    }

    #[test]
    fn report_of_nothing_is_well_formed() {
        assert_eq!(written(&[], &Summary { interrupted: true, ..Summary::default() }).tests, 0);
    }
}
