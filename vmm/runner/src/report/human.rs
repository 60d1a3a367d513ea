//! The report for people. Few runs: a block each. Many: a line a scenario, and a block for whatever was not as expected.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::pipe::Pipe;
use super::variants::Variants;
use super::{Report, Start};
use crate::oracle::order::{Finding, Mode};
use crate::outcome::{Breach, ReadOutcome, RunOutcome, StallKind, Verdict, Wait0Outcome, WaitReport};
use crate::result::{RunResult, Summary};
use crate::scenario::culprit_of;

/// Up to so many runs, each gets a block.
const FEW: usize = 12;
/// Waits that a block shows of each vCPU set; the rest is counted.
const MOST_WAITS: usize = 16;
/// Characters of a reason that a block shows.
const MOST_REASON: usize = 400;
/// Regions of a memory layout that a block shows.
const MOST_REGIONS: usize = 24;
/// Lines of the guest's log that a block shows.
const MOST_LINES: usize = 20;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const HEAD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The report for people. Its text has colours; the sink drops them where they do not belong.
#[derive(Debug)]
pub struct Human<W> {
    sink: Pipe<W>,
    few: bool,
    group: Option<Group>,
    variants: Variants,
}

/// The runs of one scenario, so far.
#[derive(Debug)]
struct Group {
    scenario: String,
    summary: Summary,
    blocks: String,
}

impl<W: Write> Human<W> {
    /// Writes to `sink`.
    pub fn new(sink: W) -> Self {
        Self { sink: Pipe::new(sink), few: true, group: None, variants: Variants::default() }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.sink.write_all(text.as_bytes())?;
        self.sink.flush()
    }

    fn finish_group(&mut self) -> io::Result<()> {
        let Some(group) = self.group.take() else { return Ok(()) };
        let summary = &group.summary;
        let (style, word) = if summary.unexpected == 0 { (GOOD, "ok  ") } else { (BAD, "FAIL") };
        let mut text = format!(
            "{style}{word}{style:#}  {:<44} {:>4} {:<5} {:>9}  {}",
            group.scenario,
            summary.done,
            if summary.done == 1 { "run" } else { "runs" },
            time(summary.wall),
            summary.verdicts_in_words(),
        );
        if summary.unexpected > 0 {
            let _ = write!(text, "; {BAD}{} not as expected{BAD:#}", summary.unexpected);
        }
        text.push('\n');
        text.push_str(&group.blocks);
        self.write(&text)
    }
}

impl<W: Write> Report for Human<W> {
    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.few = start.scenarios <= FEW;
        Ok(())
    }

    fn result(&mut self, result: &RunResult) -> io::Result<()> {
        self.variants.add(result);
        if self.few {
            return self.write(&format!("{}\n", block(result, true)));
        }
        if self.group.as_ref().is_none_or(|group| *group.scenario != *result.run.scenario) {
            self.finish_group()?;
            self.group = Some(Group {
                scenario: result.run.scenario.to_string(),
                summary: Summary::default(),
                blocks: String::new(),
            });
        }
        if let Some(group) = &mut self.group {
            group.summary.count(result);
            group.summary.wall += result.outcome.wall;
            if !result.is_as_expected() || !result.outcome.interventions.is_empty() {
                let _ = writeln!(group.blocks, "{}", block(result, true));
            }
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.finish_group()?;
        self.write(&format!("{}{}", self.variants.in_words(), summary_line(summary)))
    }
}

fn summary_line(summary: &Summary) -> String {
    let runs = if summary.done == 1 { "run" } else { "runs" };
    let mut text = format!("{HEAD}{} {runs}{HEAD:#}", summary.done);
    if summary.done > 0 {
        let _ = write!(text, ": {}", summary.verdicts_in_words());
    }
    let _ = match summary.unexpected {
        0 if summary.done == 0 => Ok(()),
        0 => write!(text, "; {GOOD}all as expected{GOOD:#}"),
        n => write!(text, "; {BAD}{n} not as expected{BAD:#}"),
    };
    if summary.interrupted {
        let _ = write!(text, "; {BAD}interrupted, {} not run{BAD:#}", summary.asked - summary.done);
    }
    let _ = writeln!(text, " ({})", time(summary.wall));
    text
}

/// One run in full.
pub fn block(result: &RunResult, colour: bool) -> String {
    let text = coloured_block(result);
    if colour { text } else { plain(&text) }
}

fn coloured_block(result: &RunResult) -> String {
    let mut text = String::new();
    let run = &result.run;
    let _ = write!(text, "{HEAD}{}{HEAD:#}", run.name);
    for setting in &run.set {
        let _ = write!(text, " --set {}={}", setting.knob.name, setting.text);
    }
    if run.seed > 0 && !run.is_plain() {
        let _ = write!(text, " --seed {}", run.seed);
    }
    if run.repetition > 0 {
        let _ = write!(text, " #{}", run.repetition + 1);
    }
    text.push('\n');
    headline(&mut text, result);
    layout(&mut text, result);
    waits(&mut text, &result.outcome);
    proof(&mut text, &result.outcome);
    super::explored::tell(&mut text, &result.outcome);
    findings(&mut text, &result.outcome);
    if run.declared_order != Mode::Off && result.outcome.order.mode == Mode::Off {
        text.push_str("  mtrr order: not observed (--order off)\n");
    }
    for intervention in &result.outcome.interventions {
        let _ = writeln!(text, "  {BAD}intervention{BAD:#}: {intervention}");
    }
    if let Some(dump) = &result.outcome.dump {
        let _ = writeln!(text, "  dump: {}", dump.display());
    }
    if let Some(trace) = &result.outcome.trace {
        let _ = writeln!(text, "  trace: {0}; `stallbench replay '{0}'` goes that way again", trace.display());
    }
    for difference in &result.differences {
        let _ = writeln!(text, "  {BAD}not as expected{BAD:#}: {difference}");
    }
    if !result.differences.is_empty() {
        let _ = writeln!(text, "  expected: {}, because {}", run.expectation, run.expectation.because);
    }
    text
}

/// `STALL deadlock   4 vCPUs   observed   38 ms`.
fn headline(text: &mut String, result: &RunResult) {
    let verdict = &result.outcome.verdict;
    let style = if result.is_as_expected() { GOOD } else { BAD };
    let _ = write!(text, "{style}{}{style:#}", verdict.word().to_uppercase());
    if let Some(kind) = verdict.kind() {
        let _ = write!(text, " {kind}");
    }
    let _ = write!(text, "   {} {}", result.run.vcpus, if result.run.vcpus == 1 { "vCPU" } else { "vCPUs" });
    if let Some(stall) = verdict.stall() {
        let _ = write!(text, "   {}", stall.strength);
    } else if *verdict == Verdict::Pass && result.outcome.explored.as_ref().is_some_and(|explored| explored.complete) {
        text.push_str("   complete");
    }
    let _ = write!(text, "   {}", time(result.outcome.wall));
    let as_expected = if result.is_as_expected() { "as expected" } else { "NOT AS EXPECTED" };
    let _ = write!(text, "   {DIM}{as_expected}{DIM:#}");
    if !result.outcome.interventions.is_empty() {
        let _ = write!(text, "   {BAD}after interventions{BAD:#}");
    }
    text.push('\n');
}

/// What the proof of a stall is about, or why there is none.
fn proof(text: &mut String, outcome: &RunOutcome) {
    let proof = &outcome.proof;
    if outcome.verdict.stall().is_none() {
        return;
    }
    if let Some(states) = proof.states {
        let of = format!("{}, closed under every order of the vCPUs", self::states(states));
        let _ = writeln!(text, "  proof: {of} ({} steps, {})", proof.steps, time(proof.took));
    } else if let Some(unproved) = &proof.unproved {
        let _ = writeln!(text, "  no proof: {}", plain(unproved));
    }
}

/// A number of states, which may be beyond all that is counted.
pub(crate) fn states(states: u128) -> String {
    match states {
        1 => "1 state".into(),
        u128::MAX => "more than 10^38 states".into(),
        states => format!("{states} states"),
    }
}

/// The layout that was programmed, and what it makes of memory.
fn layout(text: &mut String, result: &RunResult) {
    let Some(layout) = &result.run.layout else { return };
    let _ = write!(text, "  layout {}", plain(&layout.name));
    let _ = writeln!(text, "{}", after(": ", &plain(&layout.machine)));
    let map = &result.outcome.mtrr.map;
    for region in map.iter().take(MOST_REGIONS) {
        let _ = writeln!(text, "    {region}");
    }
    if map.len() > MOST_REGIONS {
        let _ = writeln!(text, "    … and {} more regions", map.len() - MOST_REGIONS);
    }
}

/// A flag goes by its record, any other word by where it lies.
fn waited_word(wait: &WaitReport) -> String {
    match wait.record {
        Some(record) if wait.word.starts_with("flag ") => format!("{} of record {record}", wait.word),
        _ => format!("{} {}", wait.word, wait.address),
    }
}

fn waits(text: &mut String, outcome: &RunOutcome) {
    let Some(stall) = outcome.verdict.stall() else { return };
    let place = |wait: &WaitReport| format!("{} {}", wait.site, wait.step).trim_end().to_owned();
    let condition = |wait: &WaitReport| {
        let interrupts = if wait.interrupts_enabled { "" } else { ", IF=0" };
        format!("waits for {} {}{interrupts}", waited_word(wait), wait.until)
    };
    let shown = &stall.waits[..stall.waits.len().min(MOST_WAITS)];
    let places = shown.iter().map(|wait| place(wait).len()).max().unwrap_or(0);
    let conditions = shown.iter().map(|wait| condition(wait).len()).max().unwrap_or(0);
    for wait in shown {
        let _ = write!(text, "  vcpu{:<3} {:<places$} {:<conditions$}   ← ", wait.vcpu, place(wait), condition(wait));
        text.push_str(&awaited(&wait.awaits));
        if !wait.awaited_do.is_empty() {
            let _ = write!(text, " ({})", wait.awaited_do);
        }
        if let Some(gone) = &wait.gone {
            let _ = write!(text, " (in {})", plain(gone));
        }
        if wait.depth > 0 && wait.context != "task" {
            let _ = write!(text, " {DIM}[{}]{DIM:#}", wait.context);
        }
        text.push('\n');
    }
    if stall.waits.len() > shown.len() {
        let _ = writeln!(text, "  … and {} more waits", stall.waits.len() - shown.len());
    }
}

/// `vcpu1, vcpu2, vcpu3`, or a range where there are many.
fn awaited(vcpus: &[usize]) -> String {
    match vcpus {
        [] => "nobody".to_owned(),
        [first, .., last] if vcpus.len() > 4 && last - first + 1 == vcpus.len() => format!("vcpu{first} to vcpu{last}"),
        _ if vcpus.len() > 8 => format!("{} vCPUs, vcpu{} first", vcpus.len(), vcpus[0]),
        _ => vcpus.iter().map(|vcpu| format!("vcpu{vcpu}")).collect::<Vec<_>>().join(", "),
    }
}

fn findings(text: &mut String, outcome: &RunOutcome) {
    let words: Vec<_> = outcome.words.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let words = words.join(" ");
    match (&outcome.verdict, reason(outcome)) {
        (Verdict::Stall(_), Some(reason)) => {
            let (vcpu, site) = culprit_of(outcome).unwrap_or_default();
            let _ = writeln!(text, "  {HEAD}culprit vcpu{vcpu}{HEAD:#} in {site}: {reason}{}", after("; ", &words));
        }
        // A plain guest has no contract that a wait of it could break.
        (Verdict::Stall(_), None) if outcome.wait0 == Wait0Outcome::NotApplicable => loops(text, outcome),
        (Verdict::Stall(_), None) => {
            let _ = writeln!(
                text,
                "  no culprit: no wait breaks its own contract{}{}",
                hangs_on(outcome),
                after("; ", &words)
            );
        }
        (_, Some(reason)) => {
            let _ = writeln!(text, "  {reason}{}", after("; ", &words));
        }
        (_, None) if !words.is_empty() => {
            let _ = writeln!(text, "  {words}");
        }
        _ => {}
    }
    injected(text, outcome);
    oracles(text, outcome);
    for contradiction in &outcome.contradictions {
        let _ = writeln!(text, "  {BAD}contradiction{BAD:#}: {contradiction}");
    }
    console(text, outcome);
    for line in outcome.log.iter().take(MOST_LINES) {
        let _ = writeln!(text, "  {DIM}vcpu{} says{DIM:#} {}", line.vcpu, plain(&line.text));
    }
    if is_undecided(&outcome.verdict) || matches!(outcome.verdict, Verdict::GuestFault(_)) {
        for vcpu in outcome.vcpu_states.iter().take(MOST_WAITS) {
            let _ = writeln!(
                text,
                "  vcpu{:<3} {}: {} (ran {})",
                vcpu.vcpu,
                vcpu.phase,
                plain(&vcpu.doing),
                time(vcpu.ran)
            );
        }
    }
}

/// What each vCPU of a plain guest does for ever.
fn loops(text: &mut String, outcome: &RunOutcome) {
    for one in outcome.loops.iter().take(MOST_WAITS) {
        let _ = write!(text, "  vcpu{:<3} {} at {}", one.vcpu, plain(&one.does), one.rip);
        for (index, read) in one.reads.iter().enumerate().take(MOST_WAITS) {
            let separator = if index == 0 { ": reads" } else { "," };
            let _ = write!(text, "{separator} {}", read_word(read));
        }
        if one.reads.len() > MOST_WAITS {
            let _ = write!(text, " and {} more", one.reads.len() - MOST_WAITS);
        }
        if !one.aside.is_empty() {
            let _ = write!(text, "; {DIM}set aside{DIM:#} {}", one.aside.join(", "));
        }
        text.push('\n');
    }
    if outcome.loops.len() > MOST_WAITS {
        let _ = writeln!(text, "  … and {} more vCPUs", outcome.loops.len() - MOST_WAITS);
    }
    if let Some(why) = &outcome.unwatched {
        let _ = writeln!(text, "  {DIM}who last wrote that is not known{DIM:#}: {}", plain(why));
    }
}

/// `lock 0x400010 (4 bytes, 0x1), which ends it when it becomes 0 and was last written by vcpu1 at unlock+0x4 (mov)`.
fn read_word(read: &ReadOutcome) -> String {
    let bytes = if read.size == 1 { "byte" } else { "bytes" };
    let symbol = read.symbol.as_deref().map(|symbol| format!("{} ", plain(symbol))).unwrap_or_default();
    let mut text = format!("{symbol}{} ({} {bytes}, {})", read.address, read.size, read.value);
    text.push_str(&after(", which ends it ", &read.ends));
    if let Some(writer) = &read.last_writer {
        text.push_str(if read.ends.is_empty() { ", which" } else { " and" });
        text.push_str(&format!(" was last written by {}", plain(writer)));
    }
    text
}

/// The end of what a plain guest wrote to its console.
fn console(text: &mut String, outcome: &RunOutcome) {
    let Some(console) = &outcome.console else { return };
    let lines: Vec<_> = console.text.lines().collect();
    let earlier = lines.len().saturating_sub(MOST_LINES);
    if earlier > 0 || console.dropped > 0 {
        let _ = writeln!(text, "  {DIM}console{DIM:#} … {earlier} lines and {} bytes before", console.dropped);
    }
    for line in &lines[earlier..] {
        let _ = writeln!(text, "  {DIM}console{DIM:#} {}", plain(line));
    }
}

/// What was injected, and by whom: a verdict must not look as if it had come about by itself.
fn injected(text: &mut String, outcome: &RunOutcome) {
    for hold in &outcome.injected.holds {
        let held = hold.vcpu.map_or_else(|| "nobody was".to_owned(), |vcpu| format!("vcpu{vcpu} was"));
        let over = if hold.vcpu.is_some() && !hold.over { ", to the end" } else { "" };
        let _ = writeln!(text, "  {DIM}held{DIM:#}: {} ({held}{over})", hold.what);
    }
    for fault in &outcome.injected.faults {
        let _ = writeln!(
            text,
            "  {DIM}{}{DIM:#}: {} ({} hit{})",
            fault.by.word(),
            fault.what,
            fault.hits,
            if fault.hits == 1 { "" } else { "s" }
        );
    }
}

/// Whether the reason of a verdict says already who is busy.
fn is_undecided(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Budget { .. } | Verdict::Starved { .. })
}

/// What the other oracles say, beside the verdict.
fn oracles(text: &mut String, outcome: &RunOutcome) {
    for problem in &outcome.mtrr.problems {
        let _ = writeln!(text, "  mtrr: {problem}");
    }
    for problem in &outcome.control.problems {
        let _ = writeln!(text, "  control registers: {problem}");
    }
    order(text, outcome);
    // Where no machine was looked at, no events were lost.
    if outcome.wait0 == Wait0Outcome::NotObserved && outcome.is_looked_at() {
        text.push_str("  wait=0 contract: not observed, events were lost\n");
    }
    let is_verdict = |breach: &Breach| matches!(&outcome.verdict, Verdict::Breach(verdict) if verdict == breach);
    for breach in outcome.breaches.iter().filter(|breach| !is_verdict(breach)) {
        let _ = writeln!(text, "  breach {}: {}", breach.kind.word(), breach_reason(breach));
    }
    if let Some(slow) = outcome.slow.as_ref().filter(|_| !is_undecided(&outcome.verdict)) {
        let (waiting, ran) = (awaited(&slow.waiting), time(slow.ran));
        let _ = writeln!(
            text,
            "  slow, not stuck: {waiting} waited for vcpu{}, which {} ({ran} of CPU time)",
            slow.vcpu, slow.doing
        );
    }
    if outcome.residual_waits > 0 {
        let _ = writeln!(text, "  residual waits: {}", outcome.residual_waits);
    }
}

/// What a stall hangs on that is no cycle: the waits of a cycle show it.
fn hangs_on(outcome: &RunOutcome) -> String {
    match outcome.verdict.stall() {
        Some(stall) if stall.kind != StallKind::Deadlock => {
            let members =
                stall.root.iter().take(MOST_WAITS).map(|member| format!("vcpu{} ({})", member.vcpu, member.doing));
            after("; it hangs on ", &members.collect::<Vec<_>>().join(", "))
        }
        _ => String::new(),
    }
}

/// `mtrr order, filter: 20 accesses; ok 2 3 4`; nothing where nobody looked.
fn order(text: &mut String, outcome: &RunOutcome) {
    let order = &outcome.order;
    if order.mode == Mode::Off {
        return;
    }
    let _ = write!(text, "  mtrr order, {}: {} accesses", order.mode, order.accesses);
    if order.instructions > 0 {
        let _ = write!(text, ", {} instructions in {} procedures", order.instructions, order.procedures);
    }
    for finding in [Finding::Ok, Finding::Violated, Finding::NotObserved] {
        let steps: Vec<_> = order.steps_that_are(finding).map(|step| step.number().to_string()).collect();
        if !steps.is_empty() {
            let _ = write!(text, "; {} {}", finding.word(), steps.join(" "));
        }
    }
    let _ = writeln!(text, "{}", order.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})")));
    for violation in &order.violations {
        let _ = writeln!(text, "  {BAD}violated{BAD:#}: {violation}");
    }
}

/// What a verdict says beside its words.
fn reason(outcome: &RunOutcome) -> Option<String> {
    match &outcome.verdict {
        Verdict::Pass => None,
        Verdict::Stall(stall) => stall.culprit.as_ref().map(|culprit| culprit.reason.clone()),
        Verdict::Inconsistent { reason } | Verdict::Starved { reason } | Verdict::Budget { reason } => {
            Some(shortened(&plain(reason)))
        }
        Verdict::Breach(breach) => Some(breach_reason(breach)),
        Verdict::GuestFault(fault) => Some(guest_fault(fault)),
    }
}

fn breach_reason(breach: &Breach) -> String {
    plain(&format!("vcpu{} in {}: {}", breach.vcpu, breach.site, breach.reason))
}

fn guest_fault(fault: &crate::outcome::GuestFault) -> String {
    let mut text = format!("vcpu{}: {}", fault.vcpu, plain(&fault.text));
    if !fault.file.is_empty() {
        let _ = write!(text, " ({}:{})", plain(&fault.file), fault.line);
    }
    if let Some(rip) = fault.rip {
        let _ = write!(text, ", at {rip}");
    }
    if !fault.symbol.is_empty() {
        let _ = write!(text, " in {}", fault.symbol);
    }
    text
}

fn after(separator: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{separator}{text}") }
}

/// A time as people read it.
pub(crate) fn time(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        1_000_000..100_000_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} s", duration.as_secs()),
    }
}

/// A reason that goes on for hundreds of vCPUs, cut to what people read; JSON has all of it.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_REASON) {
        Some((end, _)) => format!("{} … ({} more bytes)", &text[..end], text.len() - end),
        None => text.to_owned(),
    }
}

/// Text without escape sequences and other control characters: a guest must not drive the terminal.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                let _ = chars.by_ref().find(|c| c.is_ascii_alphabetic());
            }
            '\n' | '\t' => plain.push(c),
            c if c.is_control() => plain.push('\u{fffd}'),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod test;
