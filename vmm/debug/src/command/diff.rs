//! `diff`: this machine against another.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Value, json};
use stallbench_abi::layout::PAGE;
use stallbench_state::dump::Dump;
use stallbench_state::machine::VcpuState;
use stallbench_state::memory::Memory;

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
    usage: "diff FILE",
    summary: "this machine against the dump in FILE: registers, local APICs, MTRRs, memory",
    details: "What is on the left is here, what is behind the arrow is in FILE. Of memory the first 64 places that differ are shown.\n",
    takes: Takes::File,
    needs: Needs::Machine,
    run,
};

/// Largest dump that is read.
const LARGEST: u64 = 1 << 30;
/// Most places of memory that are listed.
const MOST_PLACES: usize = 64;

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let path = arguments.word("the file")?;
    arguments.end()?;
    let other = read(&session.path(path))?;
    let (mut text, mut vcpus) = (String::new(), Vec::new());
    if other.machine.vcpus.len() != session.vcpus().len() {
        let _ = writeln!(text, "vCPUs: {} -> {}", session.vcpus().len(), other.machine.vcpus.len());
    }
    for (here, there) in session.vcpus().iter().zip(&other.machine.vcpus) {
        let lines = of_vcpu(session, here, there);
        if !lines.is_empty() {
            let _ = writeln!(text, "{}\n  {}", style::heading(&format!("vcpu{}", here.index)), lines.join("\n  "));
        }
        vcpus.push(json!({"vcpu": here.index, "differences": lines}));
    }
    let memory = memory(session, &other);
    text.push_str(&memory_in_text(session, &memory));
    if text.is_empty() {
        text.push_str("no difference\n");
    }
    let places: Vec<Value> = memory.iter().take(MOST_PLACES).map(|place| place.data()).collect();
    Ok(Answer::new(text, json!({"vcpus": vcpus, "memory": places})))
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
    other(&here.mp_state, &there.mp_state, "state", &mut lines);
    other(&here.events, &there.events, "events", &mut lines);
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
        _ => other(&here.apic.as_ref().map(|_| ()), &there.apic.as_ref().map(|_| ()), "local APIC", &mut lines),
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
fn other<T: PartialEq + std::fmt::Debug>(here: &T, there: &T, what: &str, lines: &mut Vec<String>) {
    if here != there {
        lines.push(format!("{what}: {here:?} -> {there:?}"));
    }
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
fn memory(session: &Session, other: &Dump) -> Vec<Place> {
    let filled = session.target().filled().into_iter().chain(other.filled());
    let pages: BTreeSet<u64> = filled.flat_map(|range| range.start / PAGE..range.end.div_ceil(PAGE)).collect();
    let mut places = Vec::new();
    for page in pages {
        let (mut here, mut there) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
        let both = session.memory().read(page * PAGE, &mut here) && other.memory.read(page * PAGE, &mut there);
        if both && here != there && places.len() <= MOST_PLACES {
            differing(page * PAGE, &here, &there, &mut places);
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

    use crate::sample::{answer, refusal, session};

    #[test]
    fn file_that_is_no_dump_is_a_line() {
        assert!(refusal("diff").starts_with("the file is missing; usage: diff FILE"));
        assert!(refusal("diff /nonexistent/file").starts_with("/nonexistent/file: "));
        let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let line = format!("diff '{}'", foreign.display());
        assert!(refusal(&line).contains("Cargo.toml: failed to "), "{}", refusal(&line));
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
