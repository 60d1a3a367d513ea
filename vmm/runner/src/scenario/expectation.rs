//! What a scenario expects of a run, and whether the run was so.

use std::fmt;

use thiserror::Error;

use crate::nearest::did_you_mean;
use crate::outcome::{BreachKind, RunOutcome, StallKind, Strength, Verdict, Wait0Outcome, Words};

use super::amount::{Amount, Size};

/// What is expected of a cell, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The word of the verdict.
    pub verdict: &'static str,
    /// The word of its kind; `None`: any, or the verdict has none.
    pub kind: Option<&'static str>,
    /// At least this strength, for a stall.
    pub strength: Strength,
    /// Who is at the root.
    pub culprit: Root,
    /// Which vCPU is at the root; `None`: any.
    pub culprit_vcpu: Option<Amount>,
    /// Words in memory, by name.
    pub words: Vec<(String, Amount)>,
    /// Waits for a record of an earlier call; `None`: any number.
    pub residual_waits: Option<Amount>,
    /// What the text of a guest fault, or the reason of an inconsistency, breach or budget, contains.
    pub contains: Option<String>,
    /// What a search of all schedules knows.
    pub pins: Pins,
    /// The reason, from the protocol.
    pub because: String,
}

/// What is expected of a search of all schedules; `None`: anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// States of the machine.
    pub states: Option<usize>,
    /// Choices that lead from one to another.
    pub transitions: Option<usize>,
    /// States from which no schedule leads to the end.
    pub stuck: Option<usize>,
    /// Preemptions of the schedule that is shown.
    pub preemptions: Option<usize>,
}

/// A verdict, or a kind of one, that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{word}' is no {what}, expected {known}{nearest}")]
pub struct NoSuchVerdict {
    what: String,
    word: String,
    known: String,
    nearest: String,
}

fn known(what: &str, word: &str, words: &[&'static str]) -> Result<&'static str, NoSuchVerdict> {
    words.iter().find(|known| **known == word).copied().ok_or_else(|| NoSuchVerdict {
        what: what.to_owned(),
        word: word.to_owned(),
        known: if words.is_empty() { "none".to_owned() } else { words.join(", ") },
        nearest: did_you_mean(word, words.iter().copied()),
    })
}

/// What is expected of a culprit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Nothing.
    Any,
    /// That there is none: no wait breaks its own contract.
    Nobody,
    /// That it is in this function of the protocol.
    Site(String),
}

impl Expectation {
    /// A pass, with nothing more to say.
    pub fn pass(because: &str) -> Self {
        Self {
            verdict: Verdict::Pass.word(),
            kind: None,
            strength: Strength::Observed,
            culprit: Root::Any,
            culprit_vcpu: None,
            words: Vec::new(),
            residual_waits: None,
            contains: None,
            pins: Pins::default(),
            because: because.to_owned(),
        }
    }

    /// What `--expect` says: `VERDICT` or `VERDICT=KIND`.
    pub fn asked(text: &str) -> Result<Self, NoSuchVerdict> {
        let (verdict, kind) = text.split_once('=').map_or((text, None), |(verdict, kind)| (verdict, Some(kind)));
        let verdict = known("verdict", verdict, &Verdict::WORDS)?;
        let what = format!("kind of {verdict}");
        let kind = kind.map(|kind| known(&what, kind, &kinds_of(verdict))).transpose()?;
        Ok(Self { verdict, kind, ..Self::pass("--expect says so") })
    }

    /// What of an outcome is not as expected, a fragment each; empty when all is.
    pub fn differences(&self, outcome: &RunOutcome, size: Size) -> Vec<String> {
        let mut found = Vec::new();
        self.compare_verdict(outcome, &mut found);
        if found.is_empty() {
            self.compare_strength(outcome, &mut found);
            self.compare_culprit(outcome, size, &mut found);
            self.compare_text(outcome, &mut found);
        }
        // Of a search that ends undecided there is nothing more to say.
        if outcome.is_looked_at() || !matches!(outcome.verdict, Verdict::Budget { .. }) {
            self.compare_memory(outcome, size, &mut found);
        }
        self.compare_explored(outcome, &mut found);
        found
    }

    /// What only a machine can show that somebody has looked at.
    fn compare_memory(&self, outcome: &RunOutcome, size: Size, found: &mut Vec<String>) {
        self.compare_wait0(outcome, found);
        self.compare_words(outcome, size, found);
        if let Some(amount) = self.residual_waits
            && !amount.accepts(outcome.residual_waits as u64, size)
        {
            found.push(format!("{} residual waits, expected {}", outcome.residual_waits, amount.describe(size)));
        }
    }

    fn compare_verdict(&self, outcome: &RunOutcome, found: &mut Vec<String>) {
        let (verdict, kind) = (outcome.verdict.word(), outcome.verdict.kind());
        if verdict != self.verdict || (self.kind.is_some() && kind != self.kind) {
            found.push(format!("{}, expected {}", phrase(verdict, kind), phrase(self.verdict, self.kind)));
        }
    }

    fn compare_strength(&self, outcome: &RunOutcome, found: &mut Vec<String>) {
        if let Some(stall) = outcome.verdict.stall()
            && stall.strength < self.strength
        {
            found.push(format!("strength {}, expected at least {}", stall.strength, self.strength));
        }
    }

    fn compare_culprit(&self, outcome: &RunOutcome, size: Size, found: &mut Vec<String>) {
        let culprit = culprit_of(outcome);
        let named = culprit.map_or("nobody", |(_, site)| site);
        match (&self.culprit, culprit) {
            (Root::Site(site), _) if named != site => found.push(format!("culprit {named}, expected {site}")),
            (Root::Nobody, Some((vcpu, site))) => found.push(format!("culprit vcpu{vcpu} in {site}, expected none")),
            _ => {}
        }
        if let (Some(amount), Some((vcpu, _))) = (self.culprit_vcpu, culprit)
            && !amount.accepts(vcpu as u64, size)
        {
            found.push(format!("culprit vcpu{vcpu}, expected vcpu{}", amount.describe(size)));
        }
    }

    /// A pass says that no oracle objects, and one that has not seen everything cannot say so.
    fn compare_wait0(&self, outcome: &RunOutcome, found: &mut Vec<String>) {
        if self.verdict == Verdict::Pass.word() && outcome.wait0 == Wait0Outcome::NotObserved {
            found.push("wait=0 not observed because events were lost, expected kept".to_owned());
        }
    }

    fn compare_text(&self, outcome: &RunOutcome, found: &mut Vec<String>) {
        let (what, said) = match &outcome.verdict {
            Verdict::GuestFault(fault) => ("guest fault", &fault.text),
            Verdict::Inconsistent { reason } => ("inconsistent", reason),
            Verdict::Breach(breach) => ("breach", &breach.reason),
            Verdict::Budget { reason } => ("budget", reason),
            _ => return,
        };
        if let Some(text) = self.contains.as_ref().filter(|text| !said.contains(*text)) {
            found.push(format!("{what} '{said}', expected one that says '{text}'"));
        }
    }

    fn compare_explored(&self, outcome: &RunOutcome, found: &mut Vec<String>) {
        // What is pinned is what a search knows that has gone on from all states.
        let Some(explored) = outcome.explored.as_ref().filter(|explored| explored.frontier == 0) else { return };
        let preemptions = explored.schedule.as_ref().map(|schedule| schedule.preemptions);
        let pinned = [
            ("states", self.pins.states, Some(explored.states)),
            ("transitions", self.pins.transitions, Some(explored.transitions)),
            ("states that lead nowhere", self.pins.stuck, Some(explored.stuck)),
            ("preemptions", self.pins.preemptions, preemptions),
        ];
        for (what, pinned, is) in pinned {
            if pinned.is_some() && pinned != is {
                let [is, pinned] = [is, pinned].map(|count| count.map_or("no".to_owned(), |count| count.to_string()));
                found.push(format!("{is} {what}, expected {pinned}"));
            }
        }
    }

    /// Where all schedules were explored, the words are those of every end.
    fn compare_words(&self, outcome: &RunOutcome, size: Size, found: &mut Vec<String>) {
        let ends = outcome.explored.as_ref().filter(|_| outcome.verdict == Verdict::Pass);
        let ends = ends.map(|explored| explored.words.as_slice()).unwrap_or_default();
        for words in ends.iter().chain(ends.is_empty().then_some(&outcome.words)) {
            for difference in self.differences_of_words(words, size) {
                if !found.contains(&difference) {
                    found.push(difference);
                }
            }
        }
    }

    fn differences_of_words(&self, words: &Words, size: Size) -> Vec<String> {
        let difference = |(name, amount): &(String, Amount)| match words.get(name) {
            None => Some(format!("no word {name} in memory, expected {}", amount.describe(size))),
            Some(value) if !amount.accepts(value, size) => {
                Some(format!("{name}={value}, expected {}", amount.describe(size)))
            }
            Some(_) => None,
        };
        self.words.iter().filter_map(difference).collect()
    }
}

/// The vCPU and the function at the root of an outcome.
pub fn culprit_of(outcome: &RunOutcome) -> Option<(usize, &str)> {
    match &outcome.verdict {
        Verdict::Stall(stall) => stall.culprit.as_ref().map(|culprit| (culprit.vcpu, culprit.site.as_str())),
        Verdict::Breach(breach) => Some((breach.vcpu, breach.site.as_str())),
        _ => None,
    }
}

/// The words of all kinds that a verdict can have.
pub(super) fn kinds_of(verdict: &str) -> Vec<&'static str> {
    match verdict {
        "stall" => StallKind::ALL.iter().map(|kind| kind.word()).collect(),
        "breach" => BreachKind::ALL.iter().map(|kind| kind.word()).collect(),
        _ => Vec::new(),
    }
}

/// `stall deadlock`.
pub fn phrase(verdict: &str, kind: Option<&str>) -> String {
    kind.map_or_else(|| verdict.to_owned(), |kind| format!("{verdict} {kind}"))
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&phrase(self.verdict, self.kind))?;
        match &self.culprit {
            Root::Any => {}
            Root::Nobody => f.write_str(", no culprit")?,
            Root::Site(site) => write!(f, ", culprit {site}")?,
        }
        if let Some(vcpu) = self.culprit_vcpu {
            write!(f, " (vcpu{vcpu})")?;
        }
        for (name, amount) in &self.words {
            write!(f, ", {name}{amount}")?;
        }
        if let Some(amount) = self.residual_waits {
            write!(f, ", residual waits {amount}")?;
        }
        match &self.contains {
            Some(text) => write!(f, ", saying \"{text}\""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::outcome::{Culprit, Stall};
    use crate::sample;

    const FOUR: Size = Size { vcpus: 4, initiator: 0 };

    fn deadlock(site: Option<&str>) -> RunOutcome {
        let culprit = site.map(|site| Culprit { vcpu: 0, site: site.into(), reason: String::new() });
        let mut outcome = sample::outcome(Verdict::Stall(Stall {
            kind: StallKind::Deadlock,
            strength: Strength::Observed,
            culprit,
            root: vec![],
            waits: vec![],
        }));
        outcome.words = Words(vec![("count".into(), 2), ("gate".into(), 0)]);
        outcome
    }

    fn expected() -> Expectation {
        Expectation {
            verdict: "stall",
            kind: Some("deadlock"),
            culprit: Root::Site("call_many".into()),
            culprit_vcpu: Some(Amount::parse("initiator").unwrap()),
            words: vec![("count".into(), Amount::parse("vcpus-2").unwrap())],
            ..Expectation::pass("")
        }
    }

    #[test]
    fn declared_stall_is_as_expected() {
        assert!(expected().differences(&deadlock(Some("call_many")), FOUR).is_empty());
    }

    #[test]
    fn expectation_that_was_asked_for_is_a_verdict_with_or_without_a_kind() {
        let asked = |text| Expectation::asked(text).map(|expected| (expected.verdict, expected.kind));
        assert_eq!(asked("budget"), Ok(("budget", None)));
        assert_eq!(asked("stall=livelock"), Ok(("stall", Some("livelock"))));
        let error = |text| Expectation::asked(text).expect_err("it is refused").to_string();
        assert!(error("stal").contains("did you mean stall"), "{}", error("stal"));
        assert!(error("stall=").starts_with("'' is no kind of stall, expected deadlock, "), "{}", error("stall="));
        assert!(error("stall=lifelock").contains("mean livelock"), "{}", error("stall=lifelock"));
        assert_eq!(error("pass=x"), "'x' is no kind of pass, expected none");
    }

    #[test]
    fn unexpected_pass_is_named() {
        let differences = expected().differences(&sample::outcome(Verdict::Pass), FOUR);
        assert_eq!(differences[0], "pass, expected stall deadlock");
    }

    #[test]
    fn other_culprit_other_vcpu_and_other_words_are_each_named() {
        let differences = expected().differences(&deadlock(Some("call_single")), Size { vcpus: 3, initiator: 2 });
        assert_eq!(
            differences,
            ["culprit call_single, expected call_many", "culprit vcpu0, expected vcpu2", "count=2, expected 1"]
        );
    }

    #[test]
    fn culprit_where_none_is_declared_is_a_difference() {
        let nobody = Expectation { culprit: Root::Nobody, culprit_vcpu: None, ..expected() };
        assert!(nobody.differences(&deadlock(None), FOUR).is_empty());
        assert_eq!(nobody.differences(&deadlock(Some("a")), FOUR), ["culprit vcpu0 in a, expected none"]);
    }

    #[test]
    fn pass_whose_wait0_contract_was_not_observed_is_a_difference() {
        let mut outcome = sample::outcome(Verdict::Pass);
        outcome.wait0 = Wait0Outcome::NotObserved;
        let differences = Expectation::pass("").differences(&outcome, FOUR);
        assert_eq!(differences, ["wait=0 not observed because events were lost, expected kept"]);
    }

    #[test]
    fn weaker_proof_than_declared_is_a_difference() {
        let proved = Expectation { strength: Strength::Proved, ..expected() };
        let differences = proved.differences(&deadlock(Some("call_many")), FOUR);
        assert_eq!(differences, ["strength observed, expected at least proved"]);
    }
}
