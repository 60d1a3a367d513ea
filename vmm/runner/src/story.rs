//! The account of a way: what of it matters, a column a vCPU, as text or as a picture.

mod picture;

use std::fmt::Write;

use stallbench_core::controlled::Inject;
use stallbench_explore::{Access, Deed, Event, Row, account};

use crate::outcome::{RunOutcome, ScheduleOutcome, Verdict};

/// Characters of a column: of few vCPUs, of many.
const WIDTHS: (usize, usize) = (44, 26);
/// So many vCPUs are few.
const FEW: usize = 3;

/// A way and what it came to.
#[derive(Clone, Debug)]
pub struct Story<'a> {
    /// What it is of, in a line.
    pub title: String,
    /// How many vCPUs.
    pub vcpus: usize,
    /// What happened.
    pub events: &'a [Event],
    /// After so many steps no schedule leads to the end any more; and why, in a line.
    pub no_return: Option<(usize, String)>,
    /// What it came to, a line each.
    pub end: Vec<String>,
    rows: Vec<Row>,
}

/// A cell: the line of which it is, the column, its text.
struct Cell {
    step: usize,
    vcpu: usize,
    text: String,
    is_own: bool,
}

impl<'a> Story<'a> {
    /// Of what a search or a replay came to.
    pub fn of(title: String, vcpus: usize, events: &'a [Event], outcome: &RunOutcome) -> Self {
        let schedule = outcome.explored.as_ref().and_then(|explored| explored.schedule.as_ref());
        let no_return = schedule.and_then(no_return);
        let rows = account(events, &members(outcome, vcpus), no_return.as_ref().map(|(step, _)| *step));
        Self { title, vcpus, events, no_return, end: end(outcome), rows }
    }

    /// For a terminal or a file: a line a step, a column a vCPU.
    pub fn text(&self) -> String {
        let width = self.width();
        let mut text = format!("{:>7}", "step");
        (0..self.vcpus).for_each(|vcpu| _ = write!(text, "  {:<width$}", format!("vcpu{vcpu}")));
        let mut text = format!("{}\n", text.trim_end());
        for cell in self.cells() {
            if self.no_return.as_ref().is_some_and(|(step, _)| *step == cell.step) {
                let why = self.no_return.as_ref().map_or("", |(_, why)| why);
                let _ = writeln!(text, "------- {why}");
            }
            let indent = 7 + 2 + cell.vcpu * (width + 2);
            for (number, line) in wrapped(&cell.text, width).iter().enumerate() {
                let step = if number == 0 && !cell.is_own { cell.step.to_string() } else { String::new() };
                let _ = writeln!(text, "{step:>7}{:space$}{line}", "", space = indent - 7);
            }
        }
        self.end.iter().for_each(|line| _ = writeln!(text, "        {line}"));
        text
    }

    fn width(&self) -> usize {
        if self.vcpus <= FEW { WIDTHS.0 } else { WIDTHS.1 }
    }

    fn cells(&self) -> Vec<Cell> {
        let cell = |row: &Row| match *row {
            Row::Own { vcpu, first, last } => {
                let text = if first == last { "…".to_owned() } else { format!("… {} steps", last - first + 1) };
                Cell { step: first, vcpu, text, is_own: true }
            }
            Row::Step(step) => {
                let event = &self.events[step - 1];
                Cell { step, vcpu: event.choice.vcpu(), text: told(event), is_own: false }
            }
        };
        self.rows.iter().map(cell).collect()
    }
}

/// The vCPUs of a stall; without one all of them.
fn members(outcome: &RunOutcome, vcpus: usize) -> Vec<usize> {
    let Verdict::Stall(stall) = &outcome.verdict else { return (0..vcpus).collect() };
    let waiting = stall.waits.iter().map(|wait| wait.vcpu);
    let members: Vec<_> = waiting.chain(stall.root.iter().map(|member| member.vcpu)).collect();
    if members.is_empty() { (0..vcpus).collect() } else { members }
}

fn no_return(schedule: &ScheduleOutcome) -> Option<(usize, String)> {
    let step = schedule.no_return.filter(|step| *step > 0)?;
    let turning = schedule.turning.as_ref()?;
    Some((step, crate::report::turning(step, turning)))
}

/// What it came to: the verdict, and who waits for what.
fn end(outcome: &RunOutcome) -> Vec<String> {
    let mut lines = vec![crate::trace::words(&outcome.verdict)];
    if let Verdict::Stall(stall) = &outcome.verdict {
        lines.extend(stall.waits.iter().map(|wait| {
            let awaits: Vec<_> = wait.awaits.iter().map(|vcpu| format!("vcpu{vcpu}")).collect();
            let word = format!("{} {}", wait.word, wait.address);
            format!("vcpu{} in {} waits for {word} {}, from {}", wait.vcpu, wait.site, wait.until, awaits.join(" "))
        }));
    }
    lines
}

/// A step in a few words.
fn told(event: &Event) -> String {
    let takes = event.takes.map(|takes| match takes {
        Inject::Vector(vector) => format!("takes vector {vector:#x}"),
        Inject::Nmi => "takes an NMI".to_owned(),
        Inject::Init => "takes an INIT and waits".to_owned(),
        Inject::StartUp(vector) => format!("is started by SIPI {vector:#x}"),
    });
    let does: Vec<_> = takes.into_iter().chain(event.does.iter().map(deed)).collect();
    let does = if does.is_empty() { format!("goes on to {}", short(&event.to.name)) } else { does.join(", ") };
    format!("{}: {does}", short(&event.from.name))
}

fn deed(deed: &Deed) -> String {
    let of = |Access { address, name, value, .. }: &Access| {
        if name.is_empty() { format!("{address:#x} {value:#x}") } else { format!("{name} {value:#x}") }
    };
    match deed {
        Deed::Read(access) => format!("reads {}", of(access)),
        Deed::Write(access) => format!("writes {}", of(access)),
        Deed::Hold(access) => format!("stores {}, unseen", of(access)),
        Deed::Land(access) => format!("its store {} is seen", of(access)),
        Deed::Send { what, to } => format!("sends {what} to {}", list(to)),
        Deed::Early { what, to, .. } => format!("sends {what} to {}, before its time", list(to)),
        Deed::Wrote { icr } => format!("writes {icr:#x} to its ICR, which was sent before"),
        Deed::EndOfInterrupt => "ends the interrupt".to_owned(),
    }
}

fn list(vcpus: &[usize]) -> String {
    vcpus.iter().map(|vcpu| format!("vcpu{vcpu}")).collect::<Vec<_>>().join(" ")
}

/// `function+0x12` without its path.
fn short(place: &str) -> &str {
    place.rsplit_once("::").map_or(place, |(_, last)| last)
}

/// Lines of at most so many characters, cut between words where there are some.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, " ".to_owned()));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample;
    use stallbench_explore::{Choice, Place, StateHash};

    pub(super) fn event(choice: Choice, from: &str, does: Vec<Deed>) -> Event {
        let place = |name: &str| Place { address: Some(0x10000), name: name.to_owned() };
        let takes = matches!(choice, Choice::Interrupt(_)).then_some(Inject::Vector(0xfb));
        Event { choice, takes, does, from: place(from), to: place("a::b::after+0x1"), hash: StateHash::default() }
    }

    pub(super) fn lock(value: u64) -> Access {
        Access { address: 0x40_0010, size: 4, value, name: "lock".to_owned() }
    }

    pub(super) fn events() -> Vec<Event> {
        vec![
            event(Choice::Run(0), "a::b::first+0x2", Vec::new()),
            event(Choice::Run(0), "a::b::take+0x2", vec![Deed::Read(lock(0)), Deed::Write(lock(1))]),
            event(Choice::Run(0), "a::b::call+0x2", vec![Deed::Send { what: "vector 0xfb".to_owned(), to: vec![1] }]),
            event(Choice::Interrupt(1), "<x & y>::spin+0x2", vec![Deed::Read(lock(1))]),
        ]
    }

    pub(super) fn story(events: &[Event]) -> Story<'_> {
        let outcome = sample::outcome(Verdict::Pass);
        let story = Story::of("call/sample@vcpus=2".to_owned(), 2, events, &outcome);
        Story { no_return: Some((4, "step 4: no way back".to_owned())), ..story }
    }

    #[test]
    fn account_has_a_column_for_each_vcpu_and_folds_what_is_its_own() {
        let events = events();
        let text = story(&events).text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["step", "vcpu0", "vcpu1"]);
        assert_eq!(lines[1].trim(), "…");
        assert_eq!(lines[2], "      2  take+0x2: reads lock 0x0, writes lock 0x1");
        assert_eq!(lines[4], "------- step 4: no way back");
        assert_eq!(lines[5].find("spin+0x2: takes vector 0xfb,"), Some(9 + WIDTHS.0 + 2), "{text}");
        assert_eq!(lines.last().map(|line| line.trim()), Some("pass"));
    }

    #[test]
    fn long_cells_are_cut_between_words() {
        assert_eq!(wrapped("aaa bbb ccc", 7), ["aaa bbb", "  ccc"]);
        assert_eq!(wrapped("aaaaaaaaaa", 3), ["aaaaaaaaaa"]);
    }
}
