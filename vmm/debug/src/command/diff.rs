//! `diff`: this machine against another.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use stallbench_abi::layout::PAGE;
use stallbench_state::dump::Dump;
use stallbench_state::machine::{Group, VcpuState};
use stallbench_state::memory::Memory;

use super::lapic::events_in_words;
use super::vcpus::state;
use super::{Command, Needs, Takes};
use crate::answer::{Answer, hex};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::registers::{GENERAL, Named, SYSTEM};
use crate::session::Session;
use crate::style;
use crate::target::Target;

pub(super) const COMMAND: Command = Command {
    name: "diff",
    usage: "diff [FILE]",
    summary: "this machine against the dump in FILE, or a live one against what it was: registers, local APICs, MTRRs, memory",
    details: "What is on the left is here, what is behind the arrow is in FILE; without FILE, as it was when it was last another is on the \
left,\nand as it is now behind the arrow. Of memory the first 64 places that differ are shown.\n",
    takes: Takes::File,
    needs: Needs::Machine,
    run,
};

/// Largest dump that is read.
const LARGEST: u64 = 1 << 30;
/// Most places of memory that are listed.
const MOST_PLACES: usize = 64;

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let path = arguments.next();
    arguments.end()?;
    let here = Side { vcpus: session.vcpus(), memory: session.memory(), filled: session.target().filled() };
    match path {
        Some(path) => Ok(between(session, &here, &Side::of(&read(&session.path(path))?))),
        None if !session.target().is_live() => Err(arguments.wrong("the file is missing")),
        None => match session.target().then() {
            Some(then) => Ok(between(session, &Side::of(then), &here)),
            None => Err(CommandError::NoThen),
        },
    }
}

/// A machine that is compared.
struct Side<'a> {
    vcpus: &'a [VcpuState],
    memory: &'a dyn Memory,
    filled: Vec<Range<u64>>,
}

impl<'a> Side<'a> {
    fn of(dump: &'a Dump) -> Self {
        Self { vcpus: &dump.machine.vcpus, memory: &dump.memory, filled: dump.filled() }
    }
}

fn between(session: &Session, here: &Side<'_>, there: &Side<'_>) -> Answer {
    let (mut text, mut vcpus) = (String::new(), Vec::new());
    if here.vcpus.len() != there.vcpus.len() {
        let _ = writeln!(text, "vCPUs: {} -> {}", here.vcpus.len(), there.vcpus.len());
    }
    for (here, there) in here.vcpus.iter().zip(there.vcpus) {
        let lines = of_vcpu(session, here, there);
        if !lines.is_empty() {
            let _ = writeln!(text, "{}\n  {}", style::heading(&format!("vcpu{}", here.index)), lines.join("\n  "));
        }
        vcpus.push(json!({"vcpu": here.index, "differences": lines}));
    }
    let memory = memory(here, there);
    text.push_str(&memory_in_text(session, &memory));
    if text.is_empty() {
        text.push_str("no difference\n");
    }
    let places: Vec<Value> = memory.iter().take(MOST_PLACES).map(|place| place.data()).collect();
    Answer::new(text, json!({"vcpus": vcpus, "memory": places}))
}

fn read(path: &Path) -> Result<Dump, CommandError> {
    let name = || path.display().to_string();
    let failed = |source| CommandError::File { path: name(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(failed(io::Error::other(format!("longer than {LARGEST} bytes"))));
    }
    Dump::read(&bytes).map_err(|source| CommandError::Dump { path: name(), source })
}

fn of_vcpu(session: &Session, here: &VcpuState, there: &VcpuState) -> Vec<String> {
    let mut lines = Vec::new();
    group(session, &here.registers, &there.registers, &GENERAL, &mut lines);
    group(session, &here.system, &there.system, &SYSTEM, &mut lines);
    other(&state(here), &state(there), "state", &mut lines);
    other(&events(session, here), &events(session, there), "events", &mut lines);
    match (&here.apic, &there.apic) {
        (Ok(a), Ok(b)) if a != b => {
            let requested = |apic: &stallbench_state::apic::LocalApic| {
                apic.requested().map(|vector| format!("{vector:#x}")).collect::<Vec<_>>().join(",")
            };
            let (a_requested, b_requested) = (requested(a), requested(b));
            if a_requested != b_requested {
                lines.push(format!("requested: {} -> {}", or_none(&a_requested), or_none(&b_requested)));
            }
            for (name, a, b) in
                [("icr", a.icr, b.icr), ("tpr", a.tpr.into(), b.tpr.into()), ("svr", a.svr.into(), b.svr.into())]
            {
                lines.extend((a != b).then(|| format!("{name}: {a:#x} -> {b:#x}")));
            }
        }
        (a, b) => other(&read_or_not(a), &read_or_not(b), "local APIC", &mut lines),
    }
    if let (Some(Ok(a)), Some(Ok(b))) = (&here.mtrr, &there.mtrr) {
        lines.extend(a.differences(b).iter().map(|d| format!("{}: {:#x} -> {:#x}", d.register, d.here, d.there)));
    }
    lines
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn group<G, E: std::fmt::Display>(
    session: &Session,
    here: &Result<G, E>,
    there: &Result<G, E>,
    all: &[Named<G>],
    lines: &mut Vec<String>,
) {
    match (here, there) {
        (Ok(a), Ok(b)) => {
            let differing = all.iter().map(|(name, of)| (name, of(a), of(b))).filter(|(_, a, b)| a != b);
            lines.extend(differing.map(|(name, a, b)| format!("{name}: {} -> {}", session.shown(a), session.shown(b))));
        }
        (Err(error), _) => lines.push(format!("here {error}")),
        (_, Err(error)) => lines.push(format!("there {error}")),
    }
}

/// What is shown as it is.
fn other(here: &str, there: &str, what: &str, lines: &mut Vec<String>) {
    if here != there {
        lines.push(format!("{what}: {here} -> {there}"));
    }
}

fn events(session: &Session, vcpu: &VcpuState) -> String {
    vcpu.events.as_ref().map_or_else(ToString::to_string, |events| events_in_words(session, events))
}

fn read_or_not<G>(group: &Group<G>) -> String {
    group.as_ref().map_or_else(ToString::to_string, |_| "read".to_owned())
}

/// A word of memory that differs.
#[derive(Clone, Copy)]
struct Place {
    address: u64,
    here: u64,
    there: u64,
}

impl Place {
    fn data(self) -> Value {
        json!({"address": hex(self.address), "here": hex(self.here), "there": hex(self.there)})
    }
}

/// The words of memory that differ, one more than are listed at most.
fn memory(here: &Side<'_>, there: &Side<'_>) -> Vec<Place> {
    let filled = here.filled.iter().chain(&there.filled);
    let pages: BTreeSet<u64> = filled.flat_map(|range| range.start / PAGE..range.end.div_ceil(PAGE)).collect();
    let mut places = Vec::new();
    for page in pages {
        let (mut a, mut b) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
        let both = here.memory.read(page * PAGE, &mut a) && there.memory.read(page * PAGE, &mut b);
        if both && a != b && places.len() <= MOST_PLACES {
            differing(page * PAGE, &a, &b, &mut places);
        }
    }
    places
}

fn differing(at: u64, here: &[u8], there: &[u8], places: &mut Vec<Place>) {
    let (here, _) = here.as_chunks::<8>();
    let (there, _) = there.as_chunks::<8>();
    for (i, (a, b)) in here.iter().zip(there).enumerate().filter(|(_, (a, b))| a != b) {
        let (here, there) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b));
        places.push(Place { address: at + 8 * i as u64, here, there });
    }
}

fn memory_in_text(session: &Session, places: &[Place]) -> String {
    let of = |place: &Place| format!("  {}: {:#x} -> {:#x}\n", session.shown(place.address), place.here, place.there);
    let mut text: String = places.iter().take(MOST_PLACES).map(of).collect();
    if !text.is_empty() {
        text = format!("{}\n{text}", style::heading("memory"));
    }
    if places.len() > MOST_PLACES {
        text.push_str("  and more\n");
    }
    text
}

#[cfg(test)]
mod test {
    use std::path::Path;

    use crate::live::{State, Why};
    use crate::sample::live::Lively;
    use crate::sample::{WORDS, answer, plain, refusal, session};

    #[test]
    fn file_that_is_no_dump_is_a_line() {
        assert!(refusal("diff").starts_with("the file is missing; usage: diff [FILE]"));
        assert!(refusal("diff /nonexistent/file").starts_with("/nonexistent/file: "));
        let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let line = format!("diff '{}'", foreign.display());
        assert!(refusal(&line).contains("Cargo.toml: failed to "), "{}", refusal(&line));
    }

    #[test]
    fn live_machine_is_compared_with_what_it_was() {
        let lively = Lively::new();
        let mut session = lively.session();
        let mut said =
            |line| answer(&mut session, line).map_or_else(|error| error.to_string(), |answer| plain(&answer.text));
        assert_eq!(said("diff"), "nothing has changed since the first look");
        assert!(said("step 1").contains("rax"));
        assert!(said("write 0x4000e0 0 --yes").contains("0x1 -> 0x0"));
        assert_eq!(said("diff"), "memory\n  0x4000e0 (arena+0xe0): 0x1 -> 0x0\n");
        lively.inner().state = State::Stopped(Why::Asked);
        lively.inner().machine.memory.put(WORDS[1], &0_u32);
        assert!(said("step 1").contains("rax"));
        let diff = said("diff");
        assert!(
            diff.contains("vcpu1\n  rax: 0x1 -> 0x2\n  rip: ") && diff.contains("(arena+0x100): 0x1 -> 0x0"),
            "{diff}"
        );
        assert_eq!(said("break; vcpu; diff"), diff, "it did not move since");
    }

    #[test]
    fn files_are_looked_for_in_the_directory_of_who_asks() {
        let mut session = session();
        session.set_directory(Path::new("/nonexistent/of-client"));
        let of = |session: &mut _, line| answer(session, line).expect_err("there is no such file").to_string();
        assert!(of(&mut session, "diff a.core").starts_with("/nonexistent/of-client/a.core: "));
        assert!(of(&mut session, "diff /nonexistent/a.core").starts_with("/nonexistent/a.core: "));
    }
}
