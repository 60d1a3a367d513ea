//! Where the variants of knob `arch` diverge: cells that differ in it alone and came to different verdicts.
//!
//! A knob that alternates over the cells of a scenario, as the vCPU that begins does, is no difference: its value follows from that
//! of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use stallbench_abi::knob::{self, ARCH, CALL, KNOB_SLOTS};

use crate::result::RunResult;
use crate::scenario::{phrase, text_of_value};

/// The verdicts of each variant, as phrases: several where runs of one cell differ.
type Verdicts = BTreeMap<u64, BTreeSet<String>>;

/// All results so far, by what they have in common.
#[derive(Debug, Default)]
pub(super) struct Variants {
    seen: BTreeMap<Cell, Verdicts>,
}

/// A cell without its `arch`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    case: String,
    /// Raw value of every knob; `None` of those that are no difference.
    knobs: [Option<u64>; KNOB_SLOTS],
    injected: Vec<String>,
    vcpus: usize,
}

/// Cells whose variants diverge in the same way, at several numbers of vCPUs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Divergence {
    /// The case.
    pub(super) case: String,
    /// The call layer, and the knobs that all of them set to something else than their default.
    #[serde(serialize_with = "map")]
    pub(super) knobs: Vec<(String, String)>,
    /// Holds and faults that all of them have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) injected: Vec<String>,
    /// The numbers of vCPUs.
    pub(super) vcpus: Vec<usize>,
    /// Each variant and its verdicts.
    #[serde(serialize_with = "map")]
    pub(super) verdicts: Vec<(String, Vec<String>)>,
}

fn map<V: Serialize, S: Serializer>(pairs: &[(String, V)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (name, value) in pairs {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

impl Variants {
    /// Takes a result in.
    pub(super) fn add(&mut self, result: &RunResult) {
        let run = &result.run;
        let mut knobs = run.knobs.map(Some);
        knobs[ARCH.number as usize] = None;
        for knob in knob::ALL.iter().filter(|knob| run.alternating >> knob.number & 1 == 1) {
            knobs[knob.number as usize] = None;
        }
        let holds = run.injected.holds.iter().map(|(text, _)| text);
        let injected = holds.chain(run.injected.faults.iter().map(|(text, _)| text)).cloned().collect();
        let cell = Cell { case: run.case_name.to_string(), knobs, injected, vcpus: run.vcpus };
        let verdict = &result.outcome.verdict;
        let verdicts = self.seen.entry(cell).or_default().entry(run.knobs[ARCH.number as usize]).or_default();
        verdicts.insert(phrase(verdict.word(), verdict.kind()));
    }

    /// The cells whose variants diverge, those that do it alike at several numbers of vCPUs together.
    pub(super) fn divergences(&self) -> Vec<Divergence> {
        let mut found: Vec<(Cell, &Verdicts, Vec<usize>)> = Vec::new();
        for (cell, verdicts) in self.seen.iter().filter(|(_, verdicts)| diverge(verdicts)) {
            let alike = |(other, of_other, _): &&mut (Cell, &Verdicts, Vec<usize>)| {
                *of_other == verdicts && Cell { vcpus: cell.vcpus, ..other.clone() } == *cell
            };
            match found.iter_mut().find(alike) {
                Some((.., vcpus)) => vcpus.push(cell.vcpus),
                None => found.push((cell.clone(), verdicts, vec![cell.vcpus])),
            }
        }
        found.into_iter().map(|(cell, verdicts, vcpus)| divergence(cell, verdicts, vcpus)).collect()
    }

    /// The same for people; empty where none diverge.
    pub(super) fn in_words(&self) -> String {
        let divergences = self.divergences();
        if divergences.is_empty() {
            return String::new();
        }
        let lines: Vec<_> = divergences.iter().map(Divergence::cell_in_words).collect();
        let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        let mut text = String::from("where variants of arch diverge\n");
        for (line, divergence) in lines.iter().zip(&divergences) {
            let verdicts: Vec<_> = divergence
                .verdicts
                .iter()
                .map(|(arch, verdicts)| format!("{arch} {}", verdicts.join(" or ")))
                .collect();
            let _ = writeln!(text, "  {line:<width$}   {}", verdicts.join(" · "));
        }
        text
    }
}

impl Divergence {
    /// `set-mtrr, 3, 4, 8 vCPUs, call=release, alloc=fail`.
    fn cell_in_words(&self) -> String {
        let vcpus: Vec<_> = self.vcpus.iter().map(usize::to_string).collect();
        let mut text = format!("{}, {} vCPUs", self.case, vcpus.join(" "));
        for (knob, value) in &self.knobs {
            let _ = write!(text, ", {knob}={value}");
        }
        for injected in &self.injected {
            let _ = write!(text, ", {injected}");
        }
        text
    }
}

fn diverge(verdicts: &Verdicts) -> bool {
    let mut sets = verdicts.values();
    let first = sets.next();
    sets.any(|set| Some(set) != first)
}

fn divergence(cell: Cell, verdicts: &Verdicts, vcpus: Vec<usize>) -> Divergence {
    let knobs = knob::ALL.iter().filter_map(|knob| Some((knob, cell.knobs[knob.number as usize]?)));
    // The layer that `arch` is a part of is always named.
    let knobs = knobs.filter(|(knob, raw)| knob.number == CALL.number || *raw != knob.default_value());
    let arch =
        |(raw, verdicts): (&u64, &BTreeSet<String>)| (text_of_value(&ARCH, *raw), verdicts.iter().cloned().collect());
    Divergence {
        case: cell.case,
        knobs: knobs.map(|(knob, raw)| (knob.name.to_owned(), text_of_value(knob, raw))).collect(),
        injected: cell.injected,
        vcpus,
        verdicts: verdicts.iter().map(arch).collect(),
    }
}

#[cfg(test)]
mod test {
    use stallbench_abi::knob::INITIATOR;

    use super::*;
    use crate::outcome::{Stall, StallKind, Strength, Verdict};
    use crate::sample;
    use crate::scenario::Run;

    fn stall() -> Verdict {
        let kind = StallKind::Deadlock;
        Verdict::Stall(Stall { kind, strength: Strength::Observed, culprit: None, waits: vec![], root: vec![] })
    }

    fn result(vcpus: usize, arch: &str, initiator: u64, verdict: Verdict) -> RunResult {
        let mut knobs = [0; KNOB_SLOTS];
        knob::ALL.iter().for_each(|knob| knobs[knob.number as usize] = knob.default_value());
        knobs[ARCH.number as usize] = ARCH.parse(arch, vcpus).unwrap();
        knobs[CALL.number as usize] = CALL.parse("release", vcpus).unwrap();
        knobs[INITIATOR.number as usize] = initiator;
        let alternating = 1 << INITIATOR.number;
        RunResult::new(Run { knobs, alternating, ..sample::run(vcpus) }, sample::outcome(verdict))
    }

    #[test]
    fn cells_that_differ_in_arch_alone_and_in_their_verdict_are_told_together() {
        let mut variants = Variants::default();
        for vcpus in [2, 3] {
            variants.add(&result(vcpus, "generic", 0, Verdict::Pass));
            variants.add(&result(vcpus, "generic-old-handler", 1, stall()));
        }
        assert_eq!(
            variants.in_words(),
            "where variants of arch diverge\n  sample, 2 3 vCPUs, call=release   generic pass · generic-old-handler stall deadlock\n"
        );
        let json = serde_json::to_value(variants.divergences()).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{
                "case": "sample", "knobs": { "call": "release" }, "vcpus": [2, 3],
                "verdicts": { "generic": ["pass"], "generic-old-handler": ["stall deadlock"] },
            }])
        );
    }

    #[test]
    fn vcpus_at_which_they_diverge_otherwise_have_a_line_of_their_own() {
        let mut variants = Variants::default();
        for (vcpus, old) in [(2, stall()), (3, Verdict::Budget { reason: String::new() })] {
            variants.add(&result(vcpus, "generic", 0, Verdict::Pass));
            variants.add(&result(vcpus, "generic-old-handler", 0, old));
        }
        assert_eq!(variants.divergences().iter().map(|d| &*d.vcpus).collect::<Vec<_>>(), [&[2][..], &[3]]);
    }

    #[test]
    fn variants_that_agree_and_cells_that_differ_in_more_are_no_divergence() {
        let mut variants = Variants::default();
        variants.add(&result(2, "generic", 0, stall()));
        variants.add(&result(2, "generic-old-handler", 0, stall()));
        variants.add(&result(3, "own-helper", 0, Verdict::Pass));
        let mut other = result(2, "own-helper", 0, Verdict::Pass);
        other.run.knobs[CALL.number as usize] = CALL.default_value();
        variants.add(&other);
        assert_eq!(variants.in_words(), "");
    }

    #[test]
    fn initiator_that_does_not_alternate_is_a_difference() {
        let mut variants = Variants::default();
        for (arch, initiator, verdict) in [("generic", 0, Verdict::Pass), ("own-helper", 1, stall())] {
            let mut result = result(2, arch, initiator, verdict);
            result.run.alternating = 0;
            variants.add(&result);
        }
        assert!(variants.divergences().is_empty());
    }
}
