//! From what the user asked for to the runs, in order. Everything that can be wrong with a request is found here, before a VM exists.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stallbench_abi::knob::{self, INITIATOR, KNOB_SLOTS, LAYOUT};
use stallbench_abi::layout::MAX_VCPUS;

use super::catalogue::Catalogue;
use super::compile::Checked;
use super::condition::{Condition, Term, Values};
use super::error::{Problem, ScenarioError, start_of};
use super::expectation::Expectation;
use super::exploration::Exploration;
use super::injection::{Injected, Injection};
use super::knobs::{Case, Setting};
use super::matrix::{Cell, raw_values};
use super::pattern::looks_like_an_id;
use super::stories::{ALL_PATTERNS, of_patterns};
use super::{Scenario, Size};
use crate::layout::Layout;
use crate::nearest::{did_you_mean_or, did_you_mean_these};
use crate::oracle::order::Mode;

/// Characters of a name in front of the `@` beyond which it is no name, whatever there is.
const LONGEST: usize = 200;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names of scenarios, cells, subjects, groups and patterns. Empty: everything that is in the default.
    pub names: Vec<String>,
    /// Numbers of vCPUs, instead of those declared.
    pub vcpus: Vec<usize>,
    /// `KNOB=VALUE`, on top of what the cell says.
    pub set: Vec<String>,
    /// How often each cell runs.
    pub repeat: u32,
    /// Seed of the first repetition; each further one counts up.
    pub seed: u64,
    /// A layout of the user's own, in place of those that scenarios name.
    pub layout: Option<Arc<Layout>>,
    /// How the order of MTRR programming is looked at, instead of how the scenarios declare it.
    pub order: Option<Mode>,
    /// Cells alone of which their scenario says what exploring them comes to under this memory model.
    pub declared: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            vcpus: Vec::new(),
            set: Vec::new(),
            repeat: 1,
            seed: 0,
            layout: None,
            order: None,
            declared: None,
        }
    }
}

/// What is to be run, in order: each cell as often as asked for, then the next.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The first repetition of each cell.
    pub cells: Vec<Run>,
    /// How often each runs. The others are made when they are due: a million repetitions take no memory.
    pub repeat: u32,
}

/// One execution of one cell.
#[derive(Clone, Debug)]
pub struct Run {
    /// `subject/name`.
    pub scenario: Arc<str>,
    /// `subject/name@vcpus=4,alloc=fail`.
    pub name: Arc<str>,
    /// Number of the case in the image.
    pub case: usize,
    /// Name of the case; empty for a plain guest, which has none.
    pub case_name: Arc<str>,
    /// How many vCPUs.
    pub vcpus: usize,
    /// Raw value of every knob, `--set` included.
    pub knobs: [u64; KNOB_SLOTS],
    /// What `--set` changed.
    pub set: Vec<Setting>,
    /// Seed of what is random in the guest.
    pub seed: u64,
    /// Which repetition, from 0 on.
    pub repetition: u32,
    /// The layout that is programmed, where the case takes one.
    pub layout: Option<Arc<Layout>>,
    /// Knobs whose value follows from the cell's place among the others, a bit for each number.
    pub alternating: u64,
    /// Where vCPUs are held, and what goes wrong.
    pub injected: Arc<Injected>,
    /// How the order of MTRR programming is looked at.
    pub order: Mode,
    /// How the scenario declares that it is to be looked at.
    pub declared_order: Mode,
    /// What is expected of the cell as it is declared.
    pub expectation: Arc<Expectation>,
    /// What is expected where all of its schedules are explored.
    pub explorations: Arc<[Exploration]>,
    /// What amounts in the expectation refer to.
    pub size: Size,
}

impl Run {
    /// Whether it is a plain guest's: then it has no case, no knobs and no seed.
    pub fn is_plain(&self) -> bool {
        self.case_name.is_empty()
    }
}

impl Selection {
    /// The runs that a request asks for. `case_named` looks a case up in the image that will run.
    pub fn new(
        catalogue: &Catalogue,
        request: &Request,
        case_named: &dyn Fn(&str) -> Result<Case, Problem>,
    ) -> Result<Self, ScenarioError> {
        check_vcpus("--vcpus", &request.vcpus, MAX_VCPUS)?;
        let mut selector = Selector { catalogue, request, case_named, cells: Vec::new(), names: HashSet::new() };
        let names: Vec<_> = request.names.iter().map(|name| Asked::find(catalogue, name)).collect::<Result<_, _>>()?;
        if names.is_empty() {
            let all = if request.declared.is_some() { catalogue.scenarios()? } else { default_scenarios(catalogue)? };
            selector.many("", all, None)?;
        }
        for asked in names {
            match asked {
                Asked::Many(name, scenarios, filter) => selector.many(name, scenarios, filter)?,
                Asked::One(scenario, filter) => selector.one(scenario, filter)?,
            }
        }
        Ok(Self { cells: selector.cells, repeat: request.repeat })
    }

    /// One run of each case, which shall pass: for images of the user's own.
    pub fn of_cases(cases: &[Case], request: &Request) -> Result<Self, ScenarioError> {
        check_vcpus("--vcpus", &request.vcpus, MAX_VCPUS)?;
        let expectation = Arc::new(Expectation::pass("a payload of the user's own: nothing else is declared"));
        let two = vec![2];
        let mut first = Vec::new();
        for case in cases {
            for vcpus in if request.vcpus.is_empty() { &two } else { &request.vcpus } {
                let cell = Cell {
                    name: format!("payload/{}@vcpus={vcpus}", case.name),
                    vcpus: *vcpus,
                    axes: Vec::new(),
                    raw: raw_values([].iter()),
                    rule: 0,
                    expectation: Arc::clone(&expectation),
                    explorations: Vec::new(),
                };
                first.push(first_run(&format!("payload/{}", case.name), case, &cell, &Injection::default(), request)?);
            }
        }
        Ok(Self { cells: first, repeat: request.repeat })
    }

    /// A plain guest of that name, once for each number of vCPUs.
    pub fn of_plain(
        name: &str,
        vcpus: &[usize],
        repeat: u32,
        expectation: &Arc<Expectation>,
    ) -> Result<Self, ScenarioError> {
        check_vcpus("--vcpus", vcpus, MAX_VCPUS)?;
        let scenario: Arc<str> = format!("payload/{name}").into();
        let run = |vcpus: &usize| Run {
            scenario: Arc::clone(&scenario),
            name: format!("{scenario}@vcpus={vcpus}").into(),
            case: 0,
            case_name: "".into(),
            vcpus: *vcpus,
            knobs: [0; KNOB_SLOTS],
            set: Vec::new(),
            seed: 0,
            repetition: 0,
            layout: None,
            alternating: 0,
            injected: Arc::default(),
            order: Mode::Off,
            declared_order: Mode::Off,
            expectation: Arc::clone(expectation),
            explorations: Arc::default(),
            size: Size { vcpus: *vcpus, initiator: 0 },
        };
        Ok(Self { cells: vcpus.iter().map(run).collect(), repeat })
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.cells.len().saturating_mul(self.repeat as usize)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The run at that place.
    pub fn get(&self, index: usize) -> Option<Run> {
        let repeat = self.repeat.max(1) as usize;
        let first = self.cells.get(index / repeat)?.clone();
        // Smaller than `repeat`, which is a u32.
        let repetition = (index % repeat) as u32;
        Some(Run { seed: first.seed.wrapping_add(u64::from(repetition)), repetition, ..first })
    }

    /// Refuses runs that need more vCPUs than the host gives.
    pub fn check_host(&self, most: usize) -> Result<(), ScenarioError> {
        let most = most.min(MAX_VCPUS);
        match self.cells.iter().find(|run| run.vcpus > most) {
            Some(run) => Err(ScenarioError::Vcpus { what: run.name.to_string(), vcpus: run.vcpus, most }),
            None => Ok(()),
        }
    }
}

/// Whether an argument is a path. What is built in wins over a path of the same name.
fn is_path(argument: &str, catalogue: &Catalogue) -> bool {
    let explicit = argument.starts_with('.') || argument.starts_with('/') || argument.ends_with(".toml");
    explicit || (Path::new(argument).exists() && Asked::find(catalogue, argument).is_err())
}

impl Catalogue {
    /// Whether an argument is taken for a file or directory. What is built in wins over a path of the same name.
    pub fn is_path(&self, argument: &str) -> bool {
        is_path(argument, self)
    }

    /// Takes the files and directories among the arguments into the catalogue; the names remain. Where only files are given,
    /// the names of all their scenarios do.
    pub fn take_paths(&mut self, arguments: &[String]) -> Result<Vec<String>, ScenarioError> {
        let (paths, names): (Vec<_>, Vec<_>) = arguments.iter().cloned().partition(|argument| is_path(argument, self));
        for path in &paths {
            self.add(&PathBuf::from(path))?;
        }
        if names.is_empty() && !paths.is_empty() {
            return Ok(self.given().iter().flat_map(|subject| &subject.scenarios).map(|s| s.name()).collect());
        }
        Ok(names)
    }
}

impl Catalogue {
    /// The scenarios of a subject, a group or a pattern, or the one of that name.
    pub fn named<'a>(&'a self, name: &'a str) -> Result<Vec<&'a Arc<Scenario>>, ScenarioError> {
        Ok(match Asked::find(self, name)? {
            Asked::Many(_, scenarios, _) => scenarios,
            Asked::One(scenario, _) => vec![scenario],
        })
    }
}

/// What a name names.
enum Asked<'a> {
    /// A subject, a group or a pattern: its name, its scenarios, and what stands behind its `@`.
    Many(&'a str, Vec<&'a Arc<Scenario>>, Option<&'a str>),
    /// A scenario, and what stands behind its `@`.
    One(&'a Arc<Scenario>, Option<&'a str>),
}

impl<'a> Asked<'a> {
    fn find(catalogue: &'a Catalogue, name: &'a str) -> Result<Self, ScenarioError> {
        let (base, filter) = match name.split_once('@') {
            Some((base, filter)) => (base, Some(filter)),
            None => (name, None),
        };
        let length = base.chars().count();
        if length > LONGEST {
            return Err(ScenarioError::LongName { length, start: start_of(base) });
        }
        let found = match base.split_once('/') {
            Some((subject, scenario)) => scenario_named(catalogue, subject, scenario)?.map(|s| Self::One(s, filter)),
            None => many_named(catalogue, base)?.map(|scenarios| Self::Many(base, scenarios, filter)),
        };
        match found {
            Some(found) => Ok(found),
            None => Err(ScenarioError::UnknownName { name: base.to_owned(), nearest: nearest_names(catalogue, base)? }),
        }
    }
}

fn scenario_named<'a>(
    catalogue: &'a Catalogue,
    subject: &str,
    name: &str,
) -> Result<Option<&'a Arc<Scenario>>, ScenarioError> {
    let mut scenarios = catalogue.subject(subject)?.into_iter().flat_map(|subject| &subject.scenarios);
    Ok(scenarios.find(|scenario| scenario.entry.name.get_ref() == name))
}

fn many_named<'a>(catalogue: &'a Catalogue, name: &str) -> Result<Option<Vec<&'a Arc<Scenario>>>, ScenarioError> {
    let subjects = catalogue.subject(name)?;
    if !subjects.is_empty() {
        return Ok(Some(subjects.into_iter().flat_map(|subject| &subject.scenarios).collect()));
    }
    let mut members = catalogue.scenarios()?;
    members.retain(|scenario| scenario.groups().any(|group| group == name));
    if !members.is_empty() {
        return Ok(Some(members));
    }
    if name == ALL_PATTERNS {
        return Ok(Some(of_patterns(catalogue)?));
    }
    catalogue.pattern(name)?.map(|pattern| catalogue.scenarios_of(pattern)).transpose()
}

fn default_scenarios(catalogue: &Catalogue) -> Result<Vec<&Arc<Scenario>>, ScenarioError> {
    let mut scenarios = catalogue.scenarios()?;
    scenarios.retain(|scenario| scenario.is_default());
    Ok(scenarios)
}

fn nearest_names(catalogue: &Catalogue, name: &str) -> Result<String, ScenarioError> {
    if looks_like_an_id(name) {
        let near = catalogue.near_patterns(name)?;
        if !near.is_empty() {
            return Ok(did_you_mean_these(&near));
        }
    }
    let mut known: Vec<String> = catalogue.patterns()?.iter().map(|pattern| pattern.name().to_owned()).collect();
    for subject in catalogue.subjects()? {
        known.push(subject.name.clone());
        for scenario in &subject.scenarios {
            known.push(scenario.name());
            known.extend(scenario.groups().map(str::to_owned));
        }
    }
    let subjects = catalogue.subjects()?.iter().map(|subject| subject.name.as_str()).collect::<Vec<_>>().join(", ");
    let all = || format!("; the subjects are {subjects}; stallbench list shows them all");
    Ok(did_you_mean_or(name, known.iter().map(String::as_str), all))
}

struct Selector<'a> {
    catalogue: &'a Catalogue,
    request: &'a Request,
    case_named: &'a dyn Fn(&str) -> Result<Case, Problem>,
    cells: Vec<Run>,
    /// Names of the cells that are selected already.
    names: HashSet<Arc<str>>,
}

impl Selector<'_> {
    /// Scenarios by subject, group or pattern: `--vcpus` and what stands behind the `@` pick among the declared cells.
    fn many(&mut self, name: &str, scenarios: Vec<&Arc<Scenario>>, filter: Option<&str>) -> Result<(), ScenarioError> {
        let mut picked = 0;
        for scenario in scenarios {
            let checked = Checked::new(scenario, self.case_named)?;
            let Some(condition) = shared_filter(&checked, filter)? else { continue };
            let mut cells = self.cells(&checked, &[])?;
            if name.is_empty() && self.request.declared.is_some() {
                cells.retain(|cell| cell.explorations.iter().any(|exploration| exploration.is_default));
            }
            cells.retain(|cell| condition.holds(Values { vcpus: cell.vcpus, raw: &cell.raw }));
            picked += cells.len();
            if !self.request.vcpus.is_empty() {
                cells.retain(|cell| self.request.vcpus.contains(&cell.vcpus));
            }
            self.add(&checked, &cells)?;
        }
        match filter {
            Some(filter) if picked == 0 => Err(ScenarioError::NoSuchCell {
                scenario: name.to_owned(),
                filter: filter.to_owned(),
                values: "none of its scenarios has".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// One scenario by name: `--vcpus`, or `vcpus` in the name, may be any number that its expectations cover.
    fn one(&mut self, scenario: &Arc<Scenario>, filter: Option<&str>) -> Result<(), ScenarioError> {
        let checked = Checked::new(scenario, self.case_named)?;
        let mut vcpus = self.request.vcpus.clone();
        let Some(filter) = filter else {
            let cells = self.cells(&checked, &vcpus)?;
            return self.add(&checked, &cells);
        };
        let condition = parse_filter(&checked, filter)?;
        if vcpus.is_empty() && (self.request.declared.is_none() || named_vcpus(&condition).is_some()) {
            vcpus = named_vcpus(&condition).map_or_else(|| checked.vcpus.clone(), |named| vec![named]);
        }
        let mut cells = self.cells(&checked, &vcpus)?;
        cells.retain(|cell| condition.holds(Values { vcpus: cell.vcpus, raw: &cell.raw }));
        if cells.is_empty() {
            let (scenario, filter) = (scenario.name(), filter.to_owned());
            return Err(ScenarioError::NoSuchCell { scenario, filter, values: axes_in_words(&checked) });
        }
        self.add(&checked, &cells)
    }

    /// The cells of a scenario at these numbers of vCPUs, or where there are none as they are declared.
    fn cells(&self, checked: &Checked, vcpus: &[usize]) -> Result<Vec<Cell>, ScenarioError> {
        let Some(model) = &self.request.declared else {
            return if vcpus.is_empty() { checked.cells() } else { cells_at(checked, vcpus) };
        };
        let mut cells = checked.explored_cells()?;
        cells.retain(|cell| cell.explorations.iter().any(|exploration| exploration.is_of(model)));
        cells.retain(|cell| vcpus.is_empty() || vcpus.contains(&cell.vcpus));
        Ok(cells)
    }

    fn add(&mut self, checked: &Checked, cells: &[Cell]) -> Result<(), ScenarioError> {
        self.catalogue.check_pattern(&checked.scenario)?;
        let alternating = checked.alternate.iter().fold(0, |bits, axis| bits | 1 << axis.knob.number);
        for cell in cells {
            let run = first_run(&checked.scenario.name(), &checked.case, cell, &checked.injection, self.request)?;
            let order = self.request.order.unwrap_or(checked.order);
            let run = Run { alternating, order, declared_order: checked.order, ..run };
            if self.names.insert(Arc::clone(&run.name)) {
                self.cells.push(run);
            }
        }
        Ok(())
    }
}

fn cells_at(checked: &Checked, vcpus: &[usize]) -> Result<Vec<Cell>, ScenarioError> {
    let mut cells = Vec::new();
    for vcpus in vcpus {
        cells.extend(checked.cells_at(*vcpus)?);
    }
    Ok(cells)
}

/// The first repetition of a cell.
fn first_run(
    scenario: &str,
    case: &Case,
    cell: &Cell,
    injection: &Injection,
    request: &Request,
) -> Result<Run, ScenarioError> {
    let mut knobs = cell.raw;
    let set = request.set.iter().map(|text| setting(case, text, cell.vcpus)).collect::<Result<Vec<_>, _>>()?;
    for setting in &set {
        knobs[setting.knob.number as usize] = setting.raw;
    }
    let wrong = |problem| ScenarioError::Name { name: cell.name.clone(), problem: Box::new(problem) };
    let layout = layout_of(case, cell, &mut knobs, request).map_err(wrong)?;
    // What is expected stays as declared, but the vCPU that begins is the one that does.
    let size = Size { vcpus: cell.vcpus, initiator: knobs[INITIATOR.number as usize] };
    let injected = match injection.resolve(size, &case.points) {
        // Exploring leaves out what is held, so that vCPUs are named there which need not be.
        Err(_) if request.declared.is_some() => injection.left_out(size, &case.points),
        injected => injected,
    };
    let injected = injected.map_err(wrong)?;
    Ok(Run {
        scenario: scenario.into(),
        name: cell.name.as_str().into(),
        case: case.index,
        case_name: case.name.as_str().into(),
        vcpus: cell.vcpus,
        knobs,
        set,
        seed: request.seed,
        repetition: 0,
        layout,
        alternating: 0,
        injected: Arc::new(injected),
        order: request.order.unwrap_or_default(),
        declared_order: Mode::Off,
        expectation: Arc::clone(&cell.expectation),
        explorations: cell.explorations.as_slice().into(),
        size,
    })
}

/// The layout of a cell whose case takes one: the user's own, or the built-in one that a knob names.
fn layout_of(
    case: &Case,
    cell: &Cell,
    knobs: &mut [u64; KNOB_SLOTS],
    request: &Request,
) -> Result<Option<Arc<Layout>>, Problem> {
    if !case.takes(&LAYOUT) {
        return Ok(None);
    }
    let word = &mut knobs[LAYOUT.number as usize];
    if request.layout.is_some() {
        if let Some(axis) = cell.axes.iter().find(|setting| setting.knob.number == LAYOUT.number) {
            return Err(Problem::LayoutInName(axis.text.clone()));
        }
        *word = knob::layout::OWN.into();
    }
    Layout::of(*word as u8, request.layout.as_ref()).map(Some).ok_or(Problem::NoLayout)
}

fn setting(case: &Case, text: &str, vcpus: usize) -> Result<Setting, ScenarioError> {
    let wrong = |problem| ScenarioError::Set { setting: text.to_owned(), problem: Box::new(problem) };
    let (name, value) = text.split_once('=').ok_or_else(|| wrong(Problem::NoSetting(text.to_owned())))?;
    let knob = case.knob(name.trim()).map_err(wrong)?;
    Setting::new(knob, value.trim(), vcpus).map_err(wrong)
}

fn parse_filter(checked: &Checked, filter: &str) -> Result<Condition, ScenarioError> {
    let wrong = |problem| {
        let name = format!("{}@{filter}", checked.scenario.name());
        ScenarioError::Name { name, problem: Box::new(problem) }
    };
    let mut condition = Condition::default();
    for part in filter.split(',') {
        let (name, value) = part.split_once('=').ok_or_else(|| wrong(Problem::NoSetting(part.to_owned())))?;
        condition.terms.push(Term::parse(&checked.case, name, &[value.to_owned()]).map_err(wrong)?);
    }
    Ok(condition)
}

/// The filter of a subject, group or pattern for one of its scenarios; `None` where its case does not take a knob of the filter.
fn shared_filter(checked: &Checked, filter: Option<&str>) -> Result<Option<Condition>, ScenarioError> {
    let Some(filter) = filter else { return Ok(Some(Condition::default())) };
    match parse_filter(checked, filter) {
        Err(ScenarioError::Name { problem, .. }) if matches!(*problem, Problem::NotTaken { .. }) => Ok(None),
        parsed => parsed.map(Some),
    }
}

/// The number of vCPUs that a filter names, if it names exactly one.
fn named_vcpus(condition: &Condition) -> Option<usize> {
    condition.terms.iter().find_map(|term| match term {
        Term::Vcpus(spans) => spans.first().filter(|span| span.from == span.to).map(|span| span.from),
        Term::Knob(..) => None,
    })
}

fn axes_in_words(checked: &Checked) -> String {
    let vcpus: Vec<_> = checked.vcpus.iter().map(usize::to_string).collect();
    let mut words = format!("it has vcpus {}", vcpus.join(", "));
    for axis in checked.matrix.iter().chain(&checked.alternate) {
        words.push_str(&format!("; {} {}", axis.knob.name, axis.values.join(", ")));
    }
    words
}

fn check_vcpus(what: &str, vcpus: &[usize], most: usize) -> Result<(), ScenarioError> {
    match vcpus.iter().find(|vcpus| **vcpus == 0 || **vcpus > most) {
        Some(vcpus) => Err(ScenarioError::Vcpus { what: what.to_owned(), vcpus: *vcpus, most }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod test;
