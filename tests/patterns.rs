//! The patterns: each has a bug that shows and a fix that holds, one knob apart, and neither is a scenario that cannot fail.
//! What is declared is read through the library; what is run goes through the binary, as a user's run does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use assert_cmd::Command;
use serde_json::Value;
use stallbench_image::program;
use stallbench_runner::scenario::{
    Case, Catalogue, Cell, Checked, Difference, Pattern, Problem, Root, Scenario, Twins, differences,
};

/// The patterns that there are to be, by their ids.
const FIRST: u32 = 1;
const LAST: u32 = 36;

/// Patterns whose bug is declared to pass, with the reason why it cannot show.
const BUG_PASSES: [(&str, &str); 0] = [];

/// Patterns whose bug is a hypervisor's own: bug and fix differ in a fault that the host injects, in no knob.
const OF_THE_HOST: [&str; 2] = ["C22", "C23"];

fn case(name: &str) -> Result<Case, Problem> {
    let (index, info) = program().case(name).unwrap_or_else(|| panic!("the image has no case {name}"));
    Ok(Case { name: info.name.clone(), index, knobs: info.knobs, points: program().points().into() })
}

fn checked(scenario: &Arc<Scenario>) -> Checked {
    Checked::new(scenario, &case).unwrap()
}

/// The holds of a scenario, as it declares them.
fn holds(checked: &Checked) -> Vec<String> {
    checked.injection.holds().map(str::to_owned).collect()
}

/// Its faults, in the same way.
fn faults(checked: &Checked) -> Vec<String> {
    checked.injection.faults().map(|(_, fault)| fault.to_owned()).collect()
}

/// A bug and its fix, checked, with the knob between them.
struct Pair {
    pattern: String,
    bug: Checked,
    fixed: Checked,
    differences: Vec<Difference>,
}

impl Pair {
    fn new(pattern: &Pattern, twins: &Twins) -> Self {
        let (bug, fixed) = (checked(twins.bug), checked(twins.fixed));
        let differences = differences(&bug, &fixed);
        Self { pattern: pattern.id().to_owned(), bug, fixed, differences }
    }

    /// What turns a run of the bug into one of the fix, and the other way round.
    fn steps(&self) -> (Step, Step) {
        if self.is_of_the_host() {
            return (Step::Faults(faults(&self.fixed)), Step::Faults(faults(&self.bug)));
        }
        let [difference] = &self.differences[..] else { panic!("{} differs in {:?}", self.pattern, self.differences) };
        let set = |value: &String| Step::Knob(format!("{}={value}", difference.knob.name));
        (set(&difference.fixed[0]), set(&difference.bug[0]))
    }

    fn is_of_the_host(&self) -> bool {
        OF_THE_HOST.contains(&self.pattern.as_str())
    }

    /// A cell in which the bug shows, and the cell of the fix at as many vCPUs.
    fn cells(&self) -> (Cell, Cell) {
        let fixed = self.fixed.cells().unwrap();
        let same = |bug: &Cell| fixed.iter().find(|fixed| fixed.vcpus == bug.vcpus).cloned();
        let bugs = self.bug.cells().unwrap();
        let showing = bugs.into_iter().filter(|cell| cell.expectation.verdict != "pass");
        showing.filter_map(|bug| Some((bug.clone(), same(&bug)?))).next().unwrap_or_else(|| {
            panic!("{}: no cell of {} that shows the bug has a fixed twin", self.pattern, self.bug.scenario.name())
        })
    }
}

fn pairs(catalogue: &Catalogue) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for pattern in catalogue.patterns().unwrap() {
        pairs.extend(catalogue.twins(pattern).unwrap().iter().map(|twins| Pair::new(pattern, twins)));
    }
    pairs
}

/// One step from a scenario to its twin.
#[derive(Debug)]
enum Step {
    /// A knob with its value, as `--set` takes it.
    Knob(String),
    /// The faults of the twin.
    Faults(Vec<String>),
}

impl Step {
    /// The options of a run with it, and the file of the scenario where it needs one of its own.
    fn options(&self, cell: &Cell) -> (Vec<String>, Option<tempfile::NamedTempFile>) {
        match self {
            Self::Knob(setting) => (vec!["--set".into(), setting.clone(), cell.name.clone()], None),
            Self::Faults(faults) => {
                let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
                std::fs::write(file.path(), with_faults(&cell.name, faults)).unwrap();
                (vec![file.path().display().to_string(), cell.name.clone()], Some(file))
            }
        }
    }
}

/// The file of a cell's subject, in which its scenario has these faults.
fn with_faults(cell: &str, faults: &[String]) -> String {
    let (subject, rest) = cell.split_once('/').unwrap();
    let name = format!("name = \"{}\"", rest.split('@').next().unwrap());
    let path = format!("{}/../../fixtures/scenarios/{subject}.toml", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read_to_string(path).unwrap();
    let mut scenarios: Vec<String> = file.split("[[scenario]]").map(str::to_owned).collect();
    let found = scenarios.iter_mut().find(|scenario| scenario.trim_start().starts_with(&name));
    let scenario = found.unwrap_or_else(|| panic!("{cell} is not in the file of its subject"));
    let others = scenario.lines().filter(|line| !line.starts_with("faults = ")).collect::<Vec<_>>().join("\n");
    *scenario = others.replacen(&name, &format!("{name}\nfaults = {faults:?}"), 1) + "\n";
    scenarios.join("[[scenario]]")
}

/// The declared verdict, with its kind.
fn declared(cell: &Cell) -> (&str, Option<&str>) {
    (cell.expectation.verdict, cell.expectation.kind)
}

/// Runs one cell with one step to its twin: exit code 100, and the verdict that its twin declares.
fn assert_becomes(cell: &Cell, step: &Step, twin: &Cell) {
    let report = tempfile::NamedTempFile::new().unwrap();
    let option = format!("--report=jsonl={}", report.path().display());
    let (options, _file) = step.options(cell);
    let mut command = Command::cargo_bin("stallbench").unwrap();
    command.current_dir(env!("CARGO_TARGET_TMPDIR"));
    let output = command.arg("run").args(options).arg(option).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(100), "{} with {step:?}: {said}", cell.name);
    let lines = std::fs::read_to_string(report.path()).unwrap();
    let result = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let result = result.into_iter().find(|line| line["type"] == "result").unwrap();
    let verdict = (result["verdict"].as_str().unwrap(), result["kind"].as_str());
    let (expected, kind) = declared(twin);
    let as_its_twin = verdict.0 == expected && (kind.is_none() || verdict.1 == kind);
    assert!(as_its_twin, "{} with {step:?}: {verdict:?}, its twin declares {:?}: {said}", cell.name, declared(twin));
}

/// Every pair, on two threads: most of the time a guest waits for ever.
fn each(pairs: &[Pair], check: impl Fn(&Pair) + Sync) {
    thread::scope(|scope| {
        for half in pairs.chunks(pairs.len().div_ceil(2).max(1)) {
            scope.spawn(|| half.iter().for_each(&check));
        }
    });
}

#[test]
fn every_pattern_has_a_bug_that_shows_and_a_fix_that_passes() {
    let catalogue = Catalogue::default();
    for pattern in catalogue.patterns().unwrap() {
        let id = pattern.id();
        let twins = catalogue.twins(pattern).unwrap();
        assert!(!twins.is_empty(), "{id}: no scenario has a twin whose name ends with -fixed");
        for pair in twins.iter().map(|twins| Pair::new(pattern, twins)) {
            let shows = pair.bug.cells().unwrap().iter().any(|cell| cell.expectation.verdict != "pass");
            let said = BUG_PASSES.iter().any(|(passes, _)| *passes == id);
            assert!(shows != said, "{id}: {} shows the bug: {shows}", pair.bug.scenario.name());
            let fixed = pair.fixed.cells().unwrap();
            let stalls: Vec<_> = fixed.iter().filter(|cell| cell.expectation.verdict != "pass").collect();
            assert!(stalls.is_empty(), "{id}: the fix does not pass: {stalls:?}");
            assert_eq!(pair.bug.vcpus, pair.fixed.vcpus, "{id}: bug and fix have different vCPUs");
        }
    }
}

#[test]
fn bug_that_stalls_says_who_is_at_its_root_and_what_lies_in_memory() {
    for pair in pairs(&Catalogue::default()) {
        for cell in pair.bug.cells().unwrap().iter().filter(|cell| cell.expectation.verdict == "stall") {
            let root = cell.expectation.culprit != Root::Any || cell.expectation.culprit_vcpu.is_some();
            assert!(root, "{}: {} says nothing of a culprit", pair.pattern, cell.name);
            assert!(!cell.expectation.words.is_empty(), "{}: {} names no word", pair.pattern, cell.name);
        }
    }
}

#[test]
fn bug_and_fix_differ_in_exactly_one_knob_or_in_what_the_host_does_wrong() {
    for pair in pairs(&Catalogue::default()) {
        let (bug, fixed) = (pair.bug.scenario.name(), pair.fixed.scenario.name());
        assert_eq!(pair.bug.case.name, pair.fixed.case.name, "{bug} and {fixed} run different cases");
        assert_eq!(holds(&pair.bug), holds(&pair.fixed), "{bug} and {fixed} differ in holds");
        if pair.is_of_the_host() {
            assert!(pair.differences.is_empty(), "{bug} and {fixed} differ in {:?}", pair.differences);
            assert_eq!((faults(&pair.bug).len(), faults(&pair.fixed).len()), (1, 0), "{bug} has one fault more");
            continue;
        }
        assert_eq!(faults(&pair.bug), faults(&pair.fixed), "{bug} and {fixed} differ in faults");
        let [one] = &pair.differences[..] else { panic!("{bug} and {fixed} differ in {:?}", pair.differences) };
        assert!(one.bug.len() == 1 && one.fixed.len() == 1, "{bug} and {fixed}: {} is an axis", one.knob.name);
    }
}

#[test]
fn no_two_patterns_share_case_and_knobs() {
    let catalogue = Catalogue::default();
    let mut seen: HashMap<_, (String, String)> = HashMap::new();
    for pattern in catalogue.patterns().unwrap() {
        for scenario in catalogue.scenarios_of(pattern).unwrap() {
            let checked = checked(scenario);
            for cell in checked.cells().unwrap() {
                let shape = (checked.case.name.clone(), cell.vcpus, cell.raw);
                let (other, name) =
                    seen.entry(shape).or_insert_with(|| (pattern.id().to_owned(), cell.name.clone())).clone();
                assert_eq!(other, pattern.id(), "{name} and {} are one and the same", cell.name);
            }
        }
    }
}

#[test]
fn all_patterns_of_the_catalogue_are_there_and_no_others() {
    let catalogue = Catalogue::default();
    let patterns = catalogue.patterns().unwrap();
    let known: Vec<String> = (FIRST..=LAST).map(|number| format!("C{number:02}")).collect();
    for pattern in &patterns {
        assert!(known.iter().any(|id| id == pattern.id()), "{} is no pattern of the catalogue", pattern.id());
    }
    let missing: Vec<_> = known.iter().filter(|id| patterns.iter().all(|pattern| pattern.id() != **id)).collect();
    assert!(missing.is_empty(), "{} of {} patterns are missing: {missing:?}", missing.len(), known.len());
}

#[test]
fn bug_with_the_fix_in_place_is_not_as_expected() {
    each(&pairs(&Catalogue::default()), |pair| {
        let ((bug, fixed), (fix, _)) = (pair.cells(), pair.steps());
        assert_becomes(&bug, &fix, &fixed);
    });
}

#[test]
fn fix_with_the_bug_in_place_is_not_as_expected() {
    each(&pairs(&Catalogue::default()), |pair| {
        let ((bug, fixed), (_, broken)) = (pair.cells(), pair.steps());
        assert_becomes(&fixed, &broken, &bug);
    });
}
