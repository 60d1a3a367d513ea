//! What can be wrong with scenarios and with the request for them. All of it is found before a VM exists.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// A place in a scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, or `built-in/NAME.toml`.
    pub file: String,
    /// Line, from 1 on.
    pub line: usize,
    /// Column, from 1 on.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why scenarios cannot be had as they were asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScenarioError {
    /// A file or directory cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A directory without a scenario file.
    #[error("read {}: no *.toml file in this directory", path.display())]
    EmptyDirectory {
        /// Which.
        path: PathBuf,
    },
    /// A dump or a guest in the place of a scenario.
    #[error("read {}: an ELF file, and no scenarios: `debug --dump` looks at a dump, `--payload` runs a guest", path.display())]
    Elf {
        /// Which.
        path: PathBuf,
    },
    /// A file that is larger than any list of scenarios.
    #[error("read {}: larger than {most} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// How large it may be.
        most: u64,
    },
    /// A file says something that cannot be.
    #[error("{place}: {problem}")]
    File {
        /// Where.
        place: Box<Place>,
        /// What.
        problem: Box<Problem>,
    },
    /// No scenario, subject, group or pattern has this name.
    #[error("no scenario, subject, group or pattern is named '{name}'{nearest}")]
    UnknownName {
        /// As it was asked for.
        name: String,
        /// The names nearest to it, ready to print.
        nearest: String,
    },
    /// A name that is longer than any that there can be.
    #[error("no name has {length} characters: '{start}…'")]
    LongName {
        /// How many it has.
        length: usize,
        /// How it begins.
        start: String,
    },
    /// The part of a name behind the `@` says nothing usable.
    #[error("'{name}': {problem}")]
    Name {
        /// The whole name.
        name: String,
        /// What is wrong.
        problem: Box<Problem>,
    },
    /// The scenario exists, but not this cell of it.
    #[error("{scenario} has no cell '{filter}'; {values}")]
    NoSuchCell {
        /// `subject/name`.
        scenario: String,
        /// What stood behind the `@`.
        filter: String,
        /// Its axes and their values.
        values: String,
    },
    /// `--set` asks for something that cannot be.
    #[error("--set {setting}: {problem}")]
    Set {
        /// As it was asked for.
        setting: String,
        /// What is wrong.
        problem: Box<Problem>,
    },
    /// More vCPUs than there can be.
    #[error("{what}: {vcpus} vCPUs, and this host gives 1 to {most}")]
    Vcpus {
        /// The scenario or option.
        what: String,
        /// How many were asked for.
        vcpus: usize,
        /// How many the host gives.
        most: usize,
    },
    /// The scenario declares no expectation for these vCPUs.
    #[error("{cell}: no expectation is declared for {vcpus} {}", if *vcpus == 1 { "vCPU" } else { "vCPUs" })]
    NotDeclared {
        /// The cell.
        cell: String,
        /// Its vCPUs.
        vcpus: usize,
    },
}

/// What is wrong, apart from where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// TOML that does not parse, or that has not the shape of a scenario file.
    #[error("{0}")]
    Syntax(String),
    /// A name that is not kebab-case.
    #[error("'{0}' is no name: expected lower-case letters, digits and hyphens, a letter first")]
    BadName(String),
    /// A name with more characters than it may have.
    #[error("a name of {length} characters, more than the {most} that it can have: '{start}…'")]
    LongName {
        /// How many it has.
        length: usize,
        /// How many it may have.
        most: usize,
        /// How it begins.
        start: String,
    },
    /// A hold or a fault that does not read as one.
    #[error("'{text}' is no {what}: expected {expected}")]
    BadInjection {
        /// Hold or fault.
        what: &'static str,
        /// As it is written.
        text: String,
        /// What is one.
        expected: &'static str,
    },
    /// More holds or faults than a boot block takes.
    #[error("{count} {what}, more than the {most} that a run can have")]
    TooManyInjections {
        /// Holds or faults.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there can be.
        most: usize,
    },
    /// A pause point that the image does not have.
    #[error("the image has no pause point '{point}'{nearest}")]
    UnknownPoint {
        /// As it is written.
        point: String,
        /// The names nearest to it, ready to print.
        nearest: String,
    },
    /// A vCPU that a run does not have.
    #[error("there is no vCPU {vcpu} in a run with {vcpus}")]
    NoSuchVcpu {
        /// Which.
        vcpu: usize,
        /// How many there are.
        vcpus: usize,
    },
    /// A number of an arrival that is none.
    #[error("{value} is no number of an arrival: they count from 1 on")]
    BadNumber {
        /// What it came to.
        value: i128,
    },
    /// A name that another has already.
    #[error("a second {what} named '{name}'")]
    Duplicate {
        /// Scenario, axis, …
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A scenario or pattern that another file declares already.
    #[error("a second {what} '{name}'; the first is at {place}")]
    DeclaredElsewhere {
        /// Scenario or pattern.
        what: &'static str,
        /// `subject/name`, or the id or name of the pattern.
        name: String,
        /// Where the other one stands.
        place: Box<Place>,
    },
    /// The id of a pattern that is none.
    #[error("'{0}' is no id of a pattern: expected an upper-case letter and two or three digits, as in C07")]
    BadId(String),
    /// A title that does not fit into the line that it is for.
    #[error("a title is one line of at most {0} characters")]
    BadTitle(usize),
    /// A scenario shows a pattern that there is not.
    #[error("there is no pattern '{pattern}'{nearest}")]
    UnknownPattern {
        /// The id.
        pattern: String,
        /// Those nearest.
        nearest: String,
    },
    /// A word that is none of those expected.
    #[error("unknown {what} '{word}', expected {expected}{nearest}")]
    UnknownWord {
        /// Verdict, kind, …
        what: &'static str,
        /// The word.
        word: String,
        /// Those that are.
        expected: String,
        /// Those nearest.
        nearest: String,
    },
    /// The image has no such case.
    #[error("the image has no case '{case}'{nearest}")]
    UnknownCase {
        /// The name.
        case: String,
        /// Those nearest.
        nearest: String,
    },
    /// There is no such knob.
    #[error("unknown knob '{knob}'{nearest}")]
    UnknownKnob {
        /// The name.
        knob: String,
        /// Those nearest.
        nearest: String,
    },
    /// The number of vCPUs where a knob is expected.
    #[error("vcpus is no knob: `vcpus = N` in a file, --vcpus N on the command line")]
    VcpusIsNoKnob,
    /// The case has no use for the knob.
    #[error("case '{case}' takes no knob '{knob}'; it takes {takes}")]
    NotTaken {
        /// The case.
        case: String,
        /// The knob.
        knob: String,
        /// The knobs that it takes.
        takes: String,
    },
    /// The knob cannot have this value.
    #[error("'{value}' is no value of {knob}: {why}, expected {expected}{nearest}")]
    BadValue {
        /// The knob.
        knob: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
        /// The values that it can have.
        expected: String,
        /// Those nearest.
        nearest: String,
    },
    /// A layout of the user's own that nobody gave.
    #[error("layout=own is the layout of --layout FILE, and there is none")]
    NoLayout,
    /// A layout of the user's own, where the name says another.
    #[error("--layout takes the place of a layout, and this one is in the name: {0}")]
    LayoutInName(String),
    /// Not KNOB=VALUE.
    #[error("'{0}' is no setting, expected KNOB=VALUE")]
    NoSetting(String),
    /// No number of vCPUs.
    #[error("'{0}' is no number of vCPUs, expected 1 to 255")]
    BadVcpus(String),
    /// An axis without values.
    #[error("{0} has no values")]
    Empty(&'static str),
    /// An amount that does not parse.
    #[error(
        "'{0}' is no amount, expected a number, vcpus, vcpus-N, vcpus+N or initiator, with =, !=, <= or >= before it if need be"
    )]
    BadAmount(String),
    /// A list where one value is expected.
    #[error("{0} values, expected one")]
    NotOne(usize),
    /// The expectation contradicts itself.
    #[error("{what} belongs to verdict '{verdict}' only")]
    Misplaced {
        /// The key.
        what: &'static str,
        /// The verdict that it goes with.
        verdict: &'static str,
    },
    /// A key that only one memory model has.
    #[error("{what} belongs to model '{model}' only")]
    OtherModel {
        /// The key.
        what: &'static str,
        /// The model that it goes with.
        model: &'static str,
    },
    /// The expectation is too vague.
    #[error("verdict '{verdict}' needs {what}")]
    Missing {
        /// The verdict.
        verdict: &'static str,
        /// The key.
        what: &'static str,
    },
    /// A condition names a value that the axis has not.
    #[error("'{value}' is on no axis of this scenario: {knob} has {values}")]
    OffAxis {
        /// The knob, or `vcpus`.
        knob: String,
        /// The value.
        value: String,
        /// Those of the axis.
        values: String,
    },
    /// No rule says what to expect of a cell.
    #[error("no [[scenario.expect]] applies to cell {0}")]
    NotCovered(String),
    /// A rule applies to no cell.
    #[error("this expectation applies to no cell{0}")]
    RuleUnused(&'static str),
    /// An exclusion that excludes nothing.
    #[error("this exclusion excludes no cell")]
    ExclusionUnused,
    /// A matrix beyond all measure.
    #[error("{0} cells, more than the {1} that a scenario can have")]
    TooManyCells(usize, usize),
    /// All cells are excluded.
    #[error("no cell is left")]
    NoCells,
}

/// As much of a name as a message shows of one that is too long.
pub(super) fn start_of(name: &str) -> String {
    name.chars().take(40).collect()
}
