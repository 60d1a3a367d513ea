//! Who last wrote the words that the loops of a stall read: found in a second run of the guest, with these words watched.
//!
//! The second run is left alone, without attempts at a proof, for somewhat longer than the first one took: what their stepping writes
//! is not watched. Then it must be stalled too, in the same loops, or nothing is said.

use std::time::Duration;

use stallbench_core::watch::{LastWriters, MOST_WORDS, Word, Writer};
use stallbench_core::{Capture, HostKvm, Machine};
use stallbench_stall::code::place;
use stallbench_stall::proof::{Loop, Proof, Read, ends_at};
use stallbench_state::machine::MachineState;
use stallbench_state::program::PlainProgram;

use super::{PlainPlan, run};
use crate::dump::Keep;
use crate::execute::stop::STOP_DEADLINE;
use crate::outcome::{LoopOutcome, RunOutcome, Verdict};

/// How long a watched run is left alone, in times of the first run: each write that is watched takes an exit. And so much more.
const TIMES: u32 = 2;
const MORE: Duration = Duration::from_millis(20);

/// Completes the loops of a stall by who last wrote what they read, or says why that is not known.
pub(super) fn complete(
    outcome: &mut RunOutcome,
    host: &HostKvm,
    program: &PlainProgram,
    plan: &PlainPlan,
    interrupted: &dyn Fn() -> bool,
) {
    let Some(proof) = outcome.proof.proof.clone() else { return };
    let words = words(&proof);
    if words.is_empty() || !matches!(outcome.verdict, Verdict::Stall(_)) {
        return;
    }
    let watched = &words[..words.len().min(MOST_WORDS)];
    let told = match host.watches_writes() {
        Ok(true) => watch(&proof, watched, outcome.wall, (host, program, plan, interrupted)),
        Ok(false) => Err("data breakpoints never fire on this host".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    match told {
        Ok(told) => fill(&mut outcome.loops, &proof, &told),
        Err(why) => outcome.unwatched = Some(why),
    }
}

/// The words that loops read, each once.
fn words(proof: &Proof) -> Vec<Word> {
    let mut words = Vec::new();
    for read in proof.loops.iter().flat_map(|of_vcpu| &of_vcpu.reads) {
        let word = word(read);
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

fn word(read: &Read) -> Word {
    Word { linear: read.linear, physical: read.address, size: read.size }
}

/// Runs the guest again, until it is stalled as before. Gives for each word who wrote it last.
fn watch(
    proof: &Proof,
    words: &[Word],
    first: Duration,
    (host, program, plan, interrupted): (&HostKvm, &PlainProgram, &PlainPlan, &dyn Fn() -> bool),
) -> Result<Vec<(Word, String)>, String> {
    let plan = PlainPlan { alone: first * TIMES + MORE, keep: Keep::default(), control: None, ..plan.clone() };
    let mut last = None;
    let watching = |machine: &mut Machine| {
        last = Some(machine.watch(words)?);
        Ok(())
    };
    let (outcome, machine) =
        run(host, program, &plan, interrupted, watching, |_| ()).map_err(|error| error.to_string())?;
    let is_same = outcome.proof.proof.as_deref().is_some_and(|again| is_same(proof, again));
    let Some(last) = last.filter(|_| is_same && matches!(outcome.verdict, Verdict::Stall(_))) else {
        return Err("a second run, watched, was not stalled in the same loops".to_owned());
    };
    let state = machine.pause(STOP_DEADLINE).map_err(|error| error.to_string())?.capture(Capture::Control);
    let seen = Seen { program, machine: &machine, state: &state };
    Ok(words.iter().enumerate().map(|(index, word)| (*word, told(&last, index, &seen))).collect())
}

/// Whether two stalls have each vCPU wait for the same words.
fn is_same(one: &Proof, other: &Proof) -> bool {
    let loops = |proof: &Proof| -> Vec<_> {
        let words = |of_vcpu: &Loop| of_vcpu.reads.iter().map(word).collect::<Vec<_>>();
        proof.loops.iter().map(|of_vcpu| (of_vcpu.vcpu, words(of_vcpu))).collect()
    };
    loops(one) == loops(other)
}

/// A watched run at its end.
struct Seen<'s> {
    program: &'s PlainProgram,
    machine: &'s Machine,
    state: &'s MachineState,
}

/// Who wrote a word last, a fragment.
fn told(last: &LastWriters, index: usize, seen: &Seen<'_>) -> String {
    if !last.holds(index, seen.machine.memory()) {
        return "somebody unseen: by another address, or while the guest was stepped".into();
    }
    let Some(Writer { vcpu, behind }) = last.of(index) else {
        return "nobody since the start".into();
    };
    let system = seen.state.vcpus.get(vcpu).and_then(|vcpu| vcpu.system.as_ref().ok());
    let instruction = system.and_then(|system| ends_at(behind, seen.program, system, seen.machine.memory()));
    match instruction {
        Some((at, mnemonic)) => format!("vcpu{vcpu} at {} ({mnemonic})", place(seen.program, at)),
        None => format!("vcpu{vcpu} just before {}", place(seen.program, behind)),
    }
}

fn fill(loops: &mut [LoopOutcome], proof: &Proof, told: &[(Word, String)]) {
    for (outcome, of_vcpu) in loops.iter_mut().zip(&proof.loops) {
        for (read, of_proof) in outcome.reads.iter_mut().zip(&of_vcpu.reads) {
            let told = told.iter().find(|(watched, _)| *watched == word(of_proof));
            read.last_writer = told.map(|(_, writer)| writer.clone());
        }
    }
}
