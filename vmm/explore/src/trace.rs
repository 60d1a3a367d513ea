//! Traces: the choices of a way as text, one step a line, with what they are checked by.
//!
//! ```text
//! stallbench-trace 3
//! payload sha256:…
//! scenario acceptance/lock-and-call@vcpus=2
//! …
//! 1 run 0 | read 0x4012f0 4 =0x0 lock; write 0x4012f0 4 =0x1 lock | spin_lock+0x12 (0x10234) -> spin_lock+0x30 (0x10252) | 9f31ab…
//! 2 interrupt 1 0xfb | - | …
//! end 2 stall not-accepting | 51d0…
//! ```
//!
//! What stands before the first bar is followed; all else is what came of it then, and is compared. The last line holds the hash of all
//! bytes before it, so that a file that was cut off or edited is none.

use std::fmt;
use std::str::FromStr;

use stallbench_core::controlled::Inject;
use thiserror::Error;

use crate::event::{Deed, Event, Place};
use crate::graph::Choice;
use crate::hash::StateHash;
use crate::passage::Sent;

/// The version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 3;
/// What a trace begins with.
const MAGIC: &str = "stallbench-trace";

/// The choices of a way, and what came of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What it is a trace of.
    pub of: Subject,
    /// The state of the machine at the start line.
    pub start: StateHash,
    /// The steps.
    pub steps: Vec<Step>,
    /// What the machine comes to: the verdict, with its kind, as words.
    pub verdict: String,
}

/// What a trace is of: enough to make the machine again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// SHA-256 of the payload's file, in hexadecimal digits.
    pub payload: String,
    /// The scenario with its variables, as reports print it.
    pub scenario: String,
    /// How many vCPUs.
    pub vcpus: usize,
    /// The memory model, in its own words.
    pub model: String,
    /// Seed of what is random in the guest.
    pub seed: u64,
    /// What else it takes to name the run: `set knob=value`, `file PATH`; each a line of its own.
    pub options: Vec<(String, String)>,
    /// Hash of what the host hands the guest.
    pub boot: StateHash,
}

/// A line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was chosen.
    pub choice: Choice,
    /// What was delivered, `0xfb`, or is sent before its time, `0xc40fb`; empty where nothing was.
    pub takes: String,
    /// What the vCPU did.
    pub does: String,
    /// Where it stood, and where then.
    pub places: [String; 2],
    /// The state of the machine then.
    pub hash: StateHash,
}

/// Why a text is no trace that can be followed. Each message is a fragment that reads well after the name of the file and a colon.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// It is something else.
    #[error("is no trace: its first line is not '{MAGIC} {VERSION}'")]
    Foreign,
    /// An earlier format, or a later one.
    #[error("is a trace of version {0}, and this stallbench reads version {VERSION}")]
    Other(u64),
    /// Its end is missing.
    #[error("is cut off: its last line is not 'end …'")]
    CutOff,
    /// The hash at its end is not that of what it holds.
    #[error("was edited or damaged: its bytes are not those that its last line was made of")]
    Edited,
    /// A line is not what it has to be.
    #[error("line {line}: {what}")]
    Line {
        /// From 1 on.
        line: usize,
        /// What was expected.
        what: &'static str,
    },
}

impl Subject {
    /// Adds the instructions between two stops in front of which interrupts come, by vCPU.
    pub fn deliver_at(&mut self, places: &[(usize, Place)]) {
        let option = |(vcpu, place): &(usize, Place)| (PLACE.to_owned(), format!("{vcpu} {place}"));
        self.options.extend(places.iter().map(option));
    }

    /// Adds whether NMIs, and INITs, come between two stops.
    pub fn expect_nmis_and_inits(&mut self, expected: [bool; 2]) {
        let sent = SENT.into_iter().zip(expected).filter(|(_, is_sent)| *is_sent);
        self.options.extend(sent.map(|(what, _)| (SENDS.to_owned(), what.to_owned())));
    }

    /// Whether they do.
    pub(crate) fn sent(&self) -> Sent {
        let [nmi, init] = SENT.map(|what| self.options.iter().any(|(key, sent)| key == SENDS && sent == what));
        Sent { nmi, init }
    }

    /// These instructions: vCPU, `function+0x12`, address, each as it was written.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, Option<(usize, &str, u64)>)> {
        let all = self.options.iter().filter(|(key, _)| key == PLACE);
        all.map(|(_, text)| (text.as_str(), place(text)))
    }
}

/// Key of the lines that say where interrupts come between two stops.
const PLACE: &str = "place";

/// Key of the lines that say what else comes there.
const SENDS: &str = "sends";
const SENT: [&str; 2] = ["nmi", "init"];

/// Reads `1 function+0x12 (0x10234)`.
fn place(text: &str) -> Option<(usize, &str, u64)> {
    let (vcpu, place) = text.split_once(' ')?;
    let (name, address) = place.rsplit_once(" (0x")?;
    Some((number(vcpu)?, name, u64::from_str_radix(address.strip_suffix(')')?, 16).ok()?))
}

impl From<&Event> for Step {
    fn from(event: &Event) -> Self {
        let takes = match (event.takes, event.does.first()) {
            (Some(Inject::Vector(vector) | Inject::StartUp(vector)), _) => format!("{vector:#x}"),
            (None, Some(Deed::Early { icr, .. })) => format!("{icr:#x}"),
            _ => String::new(),
        };
        let does: Vec<_> = event.does.iter().map(ToString::to_string).collect();
        Self {
            choice: event.choice,
            takes,
            does: if does.is_empty() { NOTHING.to_owned() } else { does.join("; ") },
            places: [event.from.to_string(), event.to.to_string()],
            hash: event.hash,
        }
    }
}

/// What stands for no deed.
const NOTHING: &str = "-";

impl Trace {
    /// One hash for all states on the way.
    pub fn chain(&self) -> StateHash {
        chain(self.start, self.steps.iter().map(|step| step.hash))
    }

    /// What is sent on it before its time, each once.
    pub(crate) fn early(&self) -> Vec<u64> {
        let mut icrs = Vec::new();
        let early = self.steps.iter().filter(|step| matches!(step.choice, Choice::Early(..)));
        for icr in early.filter_map(|step| hexadecimal(&step.takes)) {
            if !icrs.contains(&icr) {
                icrs.push(icr);
            }
        }
        icrs
    }

    /// Reads a trace.
    ///
    /// # Errors
    ///
    /// [`TraceError`] says in one line what the text is not.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        check_version(text)?;
        let body = check_end(text)?;
        let mut lines = body.lines().enumerate().skip(1).peekable();
        let mut of = Subject::default();
        let mut start = None;
        while let Some((number, line)) = lines.next_if(|(_, line)| !line.starts_with(|c: char| c.is_ascii_digit())) {
            let Some((key, value)) = line.split_once(' ') else { continue };
            let what = |what| TraceError::Line { line: number + 1, what };
            if let ("end", _) = (key, value) {
                break;
            }
            header(&mut of, &mut start, key, value).map_err(what)?;
        }
        let missing = TraceError::Line { line: 2, what: "expected payload, scenario, vcpus, model and start below it" };
        let start = start.filter(|_| !of.payload.is_empty() && !of.scenario.is_empty() && !of.model.is_empty());
        let start = start.filter(|_| of.vcpus > 0).ok_or(missing)?;
        let mut steps = Vec::new();
        let mut verdict = None;
        for (number, line) in body.lines().enumerate().skip_while(|(_, line)| !is_step_or_end(line)) {
            let what = |what| TraceError::Line { line: number + 1, what };
            match end(line) {
                Some((count, words)) if verdict.is_none() && count == Some(steps.len()) => verdict = Some(words),
                Some(_) => return Err(what("expected the number of steps behind 'end'")),
                None => steps.push(step(line, steps.len() + 1, of.vcpus).map_err(what)?),
            }
        }
        let verdict = verdict.ok_or(TraceError::CutOff)?.to_owned();
        let mut trace = Self { of, start, steps, verdict };
        trace.number_early();
        Ok(trace)
    }
}

impl Trace {
    /// Numbers what is sent before its time as [`early`](Self::early) has it.
    fn number_early(&mut self) {
        let icrs = self.early();
        for step in &mut self.steps {
            if let Choice::Early(_, number) = &mut step.choice {
                let place = icrs.iter().position(|icr| hexadecimal(&step.takes) == Some(*icr));
                // A number that none has is no choice that there is.
                *number = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX);
            }
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, start, steps, verdict } = self;
        let mut text = format!("{MAGIC} {VERSION}\n{of}start {start}\n");
        for (number, step) in steps.iter().enumerate() {
            text.push_str(&format!("{} {step}\n", number + 1));
        }
        text.push_str(&format!("end {} {verdict}", steps.len()));
        writeln!(f, "{text}{BAR}{}", StateHash::of(text.as_bytes()))
    }
}

/// One hash for all states on a way.
pub fn chain(start: StateHash, states: impl Iterator<Item = StateHash>) -> StateHash {
    let hashes: Vec<_> = [start].into_iter().chain(states).map(|hash| hash.to_string()).collect();
    StateHash::of(hashes.join(" ").as_bytes())
}

/// Between the parts of a line. No symbol of Rust has it in it.
const BAR: &str = " | ";
/// Between two places.
const ARROW: &str = " -> ";

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { payload, scenario, vcpus, model, seed, options, boot } = self;
        writeln!(f, "payload sha256:{payload}\nscenario {scenario}")?;
        options.iter().try_for_each(|(key, value)| writeln!(f, "{key} {value}"))?;
        writeln!(f, "seed {seed}\nvcpus {vcpus}\nmodel {model}\nboot {boot}")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { choice, takes, does, places: [from, to], hash } = self;
        let space = if takes.is_empty() { "" } else { " " };
        write!(f, "{choice}{space}{takes}{BAR}{does}{BAR}{from}{ARROW}{to}{BAR}{hash}")
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(vcpu) => write!(f, "run {vcpu}"),
            Self::Interrupt(vcpu) => write!(f, "interrupt {vcpu}"),
            Self::Nmi(vcpu) => write!(f, "nmi {vcpu}"),
            Self::Init(vcpu) => write!(f, "init {vcpu}"),
            Self::StartUp(vcpu) => write!(f, "sipi {vcpu}"),
            Self::Flush(vcpu) => write!(f, "flush {vcpu}"),
            Self::Early(vcpu, _) => write!(f, "early {vcpu}"),
        }
    }
}

impl FromStr for Choice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "expected run, interrupt, nmi, init, sipi, flush or early, and a vCPU behind it";
        let (what, vcpu) = text.split_once(' ').ok_or(wrong)?;
        let vcpu = number::<u8>(vcpu).ok_or(wrong)?;
        match what {
            "run" => Ok(Self::Run(vcpu)),
            "interrupt" => Ok(Self::Interrupt(vcpu)),
            "nmi" => Ok(Self::Nmi(vcpu)),
            "init" => Ok(Self::Init(vcpu)),
            "sipi" => Ok(Self::StartUp(vcpu)),
            "flush" => Ok(Self::Flush(vcpu)),
            "early" => Ok(Self::Early(vcpu, 0)),
            _ => Err(wrong),
        }
    }
}

/// `0xc40fb`.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Digits alone: no sign.
fn number<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn check_version(text: &str) -> Result<(), TraceError> {
    let first = text.lines().next().and_then(|line| line.strip_prefix(MAGIC)?.strip_prefix(' '));
    match first.and_then(number::<u64>) {
        Some(version) if version == u64::from(VERSION) => Ok(()),
        Some(version) => Err(TraceError::Other(version)),
        None => Err(TraceError::Foreign),
    }
}

/// All but the hash at its end.
fn check_end(text: &str) -> Result<&str, TraceError> {
    let whole = text.strip_suffix('\n').ok_or(TraceError::CutOff)?;
    let (_, last) = whole.rsplit_once('\n').ok_or(TraceError::CutOff)?;
    if !last.starts_with("end ") {
        return Err(TraceError::CutOff);
    }
    let (body, hash) = whole.rsplit_once(BAR).ok_or(TraceError::CutOff)?;
    let is_it = hash.parse() == Ok(StateHash::of(body.as_bytes()));
    is_it.then_some(body).ok_or(TraceError::Edited)
}

/// A line of what the trace is of. What this version does not know is of no use to it.
fn header(of: &mut Subject, start: &mut Option<StateHash>, key: &str, value: &str) -> Result<(), &'static str> {
    match key {
        "payload" => of.payload = value.strip_prefix("sha256:").ok_or("expected sha256:… behind payload")?.to_owned(),
        "scenario" => of.scenario = value.to_owned(),
        "vcpus" => {
            of.vcpus = number(value).filter(|vcpus| (1..=255).contains(vcpus)).ok_or("expected 1 to 255 vCPUs")?
        }
        "model" => of.model = value.to_owned(),
        "seed" => of.seed = number(value).ok_or("expected a number behind seed")?,
        "boot" => of.boot = value.parse()?,
        "start" => *start = Some(value.parse()?),
        _ => of.options.push((key.to_owned(), value.to_owned())),
    }
    Ok(())
}

fn is_step_or_end(line: &str) -> bool {
    line.starts_with(|c: char| c.is_ascii_digit()) || line.starts_with("end ")
}

/// The number of steps and the words behind it.
fn end(line: &str) -> Option<(Option<usize>, &str)> {
    let rest = line.strip_prefix("end ")?;
    let (count, verdict) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((number(count), verdict))
}

/// A line of that number.
fn step(line: &str, at: usize, vcpus: usize) -> Result<Step, &'static str> {
    let parts: Vec<_> = line.split(BAR).collect();
    let &[choice, does, places, hash] = parts.as_slice() else {
        return Err("expected four parts with ' | ' between them");
    };
    let (count, chosen) = choice.split_once(' ').ok_or("expected a number and a choice")?;
    if number(count) != Some(at) {
        return Err("expected the number that follows that of the line before");
    }
    let mut words = chosen.splitn(3, ' ');
    let choice = [words.next(), words.next()].map(Option::unwrap_or_default).join(" ").parse::<Choice>()?;
    if choice.vcpu() >= vcpus {
        return Err("names a vCPU that there is not");
    }
    let (from, to) = places.split_once(ARROW).ok_or("expected two places with ' -> ' between them")?;
    Ok(Step {
        choice,
        takes: words.next().unwrap_or_default().to_owned(),
        does: does.to_owned(),
        places: [from.to_owned(), to.to_owned()],
        hash: hash.parse()?,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    pub(super) fn sample() -> Trace {
        let step = |choice, takes: &str, does: &str| Step {
            choice,
            takes: takes.to_owned(),
            does: does.to_owned(),
            places: ["<A as B>::f+0x1 (0x10001)".to_owned(), "off".to_owned()],
            hash: StateHash::of(does.as_bytes()),
        };
        let of = Subject {
            payload: "00ff".to_owned(),
            scenario: "call/sample@vcpus=2".to_owned(),
            vcpus: 2,
            model: "tso icr=buffer buffer=16".to_owned(),
            seed: 7,
            options: vec![("set".to_owned(), "alloc=fail".to_owned())],
            boot: StateHash::of(b"boot"),
        };
        let steps = vec![
            step(Choice::Run(0), "", "read 0x400010 4 =0x1 gate; end of interrupt"),
            step(Choice::Interrupt(1), "0xfb", "-"),
            step(Choice::Nmi(1), "", "-"),
            step(Choice::Flush(1), "", "land 0x400010 4 =0x1 gate"),
            step(Choice::Early(0, 0), "0xc40fb", "send early vector 0xfb to vcpu1"),
            step(Choice::Early(1, 1), "0xc40fc", "send early vector 0xfc to vcpu0"),
            step(Choice::Early(1, 0), "0xc40fb", "send early vector 0xfb to vcpu0"),
        ];
        Trace { of, start: StateHash::of(b"start"), steps, verdict: "stall not-accepting".to_owned() }
    }

    #[test]
    fn trace_is_read_as_it_was_written() {
        let trace = sample();
        assert_eq!(Trace::parse(&trace.to_string()), Ok(trace.clone()));
        let empty = Trace { steps: Vec::new(), verdict: String::new(), ..trace };
        assert_eq!(Trace::parse(&empty.to_string()), Ok(empty));
    }

    #[test]
    fn place_of_delivery_is_read_as_it_was_written() {
        let mut trace = sample();
        trace.of.deliver_at(&[(1, Place { address: Some(0x1_0001), name: "<A as B>::f+0x1".to_owned() })]);
        let read = Trace::parse(&trace.to_string()).expect("a trace");
        let places: Vec<_> = read.of.places().map(|(_, place)| place).collect();
        assert_eq!(places, [Some((1, "<A as B>::f+0x1", 0x1_0001))]);
        for wrong in ["", "1", "1 f+0x1", "x f+0x1 (0x1)", "1 f+0x1 (0xx)", "1 f+0x1 (0x1"] {
            assert_eq!(place(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn any_cut_off_or_edited_trace_is_refused() {
        let text = sample().to_string();
        for end in 0..text.len() {
            assert!(Trace::parse(&text[..end]).is_err(), "{end} bytes");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let edited = String::from_utf8(bytes).expect("it is ASCII");
            assert!(Trace::parse(&edited).is_err(), "byte {at}");
        }
    }

    /// A text with the right hash at its end.
    fn sealed(body: &str) -> String {
        format!("{body}{BAR}{}\n", StateHash::of(body.as_bytes()))
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let body = |from: &str, to: &str| {
            let text = sample().to_string().replacen(from, to, 1);
            let (body, _) = text.rsplit_once(BAR).expect("its end");
            Trace::parse(&sealed(body)).expect_err(to).to_string()
        };
        assert_eq!(body("trace 3", "trace 4"), "is a trace of version 4, and this stallbench reads version 3");
        assert_eq!(body("trace 3", "trace x"), "is no trace: its first line is not 'stallbench-trace 3'");
        assert_eq!(body("1 run 0", "1 run 2"), "line 10: names a vCPU that there is not");
        assert_eq!(
            body("1 run 0", "1 runs 0"),
            "line 10: expected run, interrupt, nmi, init, sipi, flush or early, and a vCPU behind it"
        );
        assert_eq!(
            body("2 interrupt", "3 interrupt"),
            "line 11: expected the number that follows that of the line before"
        );
        assert_eq!(body("vcpus 2", "vcpus 256"), "line 6: expected 1 to 255 vCPUs");
        assert_eq!(body("end 7", "end 2"), "line 17: expected the number of steps behind 'end'");
        assert_eq!(body("start ", "begin "), "line 2: expected payload, scenario, vcpus, model and start below it");
    }

    #[test]
    fn chain_is_of_every_state_on_the_way() {
        let trace = sample();
        let mut other = trace.clone();
        other.steps[1].hash = StateHash::of(b"another");
        assert_ne!(trace.chain(), other.chain());
        assert_ne!(trace.chain(), Trace { start: StateHash::of(b""), ..trace.clone() }.chain());
    }
}
