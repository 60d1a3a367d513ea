//! From two captures to a verdict.

use core::time::Duration;

use stallbench_abi::vcpu::Until;
use stallbench_state::machine::{MpState, VcpuState};

use crate::activity::{Activity, HeldBack};
use crate::analysis::Analysis;
use crate::claim::Wait;
use crate::culprit::culprit;
use crate::history::{Callback, History};
use crate::report::{Address, Contradiction, Member, Stall, StallKind, Strength, WaitReport};
use crate::root::{edges, root};
use crate::set::VcpuSet;

/// How a vCPU ran for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// CPU time of its thread, which need not have been in the guest.
    pub time: Duration,
    /// How often it was let into the guest.
    pub entries: u64,
}

impl Ran {
    /// Whether it would have left a wait that can end.
    pub fn is_enough(self, confirm: Duration) -> bool {
        self.entries > 0 && self.time >= confirm
    }
}

/// The stall that two captures show, if they do: the same waits that can never end, on the same values, with each of their
/// vCPUs having run between the captures: let into the guest, and for at least `confirm` of CPU time.
///
/// `ran_between` is what each vCPU ran between the end of the first stop and the beginning of the second.
pub fn conclude(first: &Analysis<'_>, second: &Analysis<'_>, ran_between: &[Ran], confirm: Duration) -> Option<Stall> {
    let stuck = second.closure.stuck;
    if stuck.is_empty() || stuck != first.closure.stuck {
        return None;
    }
    let ran = |vcpu: usize| ran_between.get(vcpu).is_some_and(|ran| ran.is_enough(confirm));
    let holds = stuck.iter().all(|vcpu| ran(vcpu) && stood_still(first, second, vcpu));
    holds.then(|| stall(second, Strength::Observed))
}

/// The stall of a machine that is proved to come nowhere: what it hangs on is told by the waits that can never end, or where there
/// are none, by what its vCPUs do.
pub fn proved(analysis: &Analysis<'_>, livelock: bool) -> Stall {
    match analysis.closure.stuck.is_empty() {
        false => stall(analysis, Strength::Proved),
        true => Stall {
            kind: if livelock { StallKind::Livelock } else { kind_without_waits(&analysis.view.machine.vcpus) },
            strength: Strength::Proved,
            culprit: None,
            root: Vec::new(),
            waits: waits(analysis),
        },
    }
}

/// The kind of a stall that nobody publishes a wait of, by what its vCPUs do.
pub fn kind_without_waits(vcpus: &[VcpuState]) -> StallKind {
    let is = |vcpu: &VcpuState, mp_state| vcpu.mp_state == Ok(mp_state);
    let idles = |vcpu: &VcpuState| vcpu.registers.as_ref().is_ok_and(|registers| registers.interrupts_enabled());
    if vcpus.iter().any(|vcpu| HeldBack::of(vcpu).is_some()) {
        StallKind::NotAccepting
    } else if vcpus.iter().any(|vcpu| is(vcpu, MpState::Halted) && idles(vcpu)) {
        StallKind::LostInterrupt
    } else if vcpus.iter().any(|vcpu| is(vcpu, MpState::Halted)) {
        StallKind::AbsentMember
    } else {
        StallKind::Deadlock
    }
}

/// Whether a vCPU waits as it did, and has got nothing done since.
fn stood_still(first: &Analysis<'_>, second: &Analysis<'_>, vcpu: usize) -> bool {
    let done = |analysis: &Analysis<'_>| {
        analysis.view.published.vcpus.get(vcpu).map(|page| (page.progress, page.interrupts, page.events))
    };
    match (first.wait(vcpu), second.wait(vcpu)) {
        (Some(before), Some(after)) => before.is_same(after) && done(first) == done(second),
        _ => false,
    }
}

/// The stall of a machine with waits that can never end.
fn stall(analysis: &Analysis<'_>, strength: Strength) -> Stall {
    let history = History::new(analysis);
    let edges = edges(analysis);
    let root = root(analysis, &edges, &history);
    let culprit = culprit(analysis, &edges, root, &history);
    let waits = wait_reports(analysis, &edges, &history);
    let root_members = root.at.iter().map(|vcpu| Member { vcpu, doing: analysis.doing(vcpu) }).collect();
    Stall { kind: root.kind, strength, culprit, root: root_members, waits }
}

/// Every confirmed wait of a machine, whether or not it can end.
pub fn waits(analysis: &Analysis<'_>) -> Vec<WaitReport> {
    let history = History::new(analysis);
    wait_reports(analysis, &edges(analysis), &history)
}

/// The contradictions that were there before: a claim that is ahead of the machine for a few instructions is none.
pub fn lasting_contradictions(before: &[Contradiction], now: &Analysis<'_>) -> Vec<Contradiction> {
    let lasts = |now: &&Contradiction| before.iter().any(|c| (c.vcpu, &c.claim) == (now.vcpu, &now.claim));
    now.contradictions().filter(lasts).cloned().collect()
}

fn wait_reports(analysis: &Analysis<'_>, edges: &[VcpuSet], history: &History<'_>) -> Vec<WaitReport> {
    let of_vcpu = |vcpu: usize| {
        let innermost = analysis.wait(vcpu).map(|wait| {
            let awaited_do = awaited_do(analysis, wait, edges[vcpu], history);
            let closed = analysis.closure.stuck.contains(vcpu);
            let gone = analysis.gone(vcpu).map(|object| history.fate(object));
            let gone = gone.map(|gone| format!("{}, {}", gone.name, gone.ending()));
            WaitReport { awaited_do, closed, gone, ..wait_report(vcpu, wait) }
        });
        let outer = analysis.vcpus[vcpu].outer.iter().map(move |wait| wait_report(vcpu, wait));
        innermost.into_iter().chain(outer)
    };
    (0..analysis.vcpus.len()).flat_map(of_vcpu).collect()
}

fn wait_report(vcpu: usize, wait: &Wait<'_>) -> WaitReport {
    WaitReport {
        vcpu,
        site: wait.site.function.clone(),
        step: wait.site.step.clone(),
        word: wait.site.word.clone(),
        address: Address(wait.claim.address),
        record: (wait.claim.record != 0).then_some(Address(wait.claim.record)),
        gone: None,
        value: wait.value,
        until: until(&wait.claim),
        awaits: wait.need.awaits.iter().collect(),
        awaited_do: String::new(),
        context: wait.context.to_string(),
        depth: wait.depth,
        interrupts_enabled: wait.interrupts_enabled,
        closed: false,
    }
}

/// What ends a wait, as in "waits for … to become 1".
fn until(claim: &stallbench_abi::vcpu::Wait) -> String {
    let is_flag = claim.mask.is_power_of_two();
    match (claim.until, claim.value) {
        (Until::EQUAL, 0) if is_flag => "to clear".into(),
        (Until::DIFFERENT, value) if is_flag && value == claim.mask => "to clear".into(),
        (Until::EQUAL, value) if is_flag && value == claim.mask => "to be set".into(),
        (Until::DIFFERENT, 0) if is_flag => "to be set".into(),
        (Until::EQUAL, value) => format!("to become {value}"),
        (_, value) => format!("to be other than {value}"),
    }
}

/// What the awaited vCPUs do that cannot act, where it is more than a wait of their own: one text where all of them do it, else one
/// for each vCPU.
fn awaited_do(analysis: &Analysis<'_>, wait: &Wait<'_>, awaited: VcpuSet, history: &History<'_>) -> String {
    let texts: Vec<_> = awaited.iter().map(|vcpu| (vcpu, one_does(analysis, wait, vcpu, history))).collect();
    match texts.first() {
        None => String::new(),
        Some((_, first)) if awaited == wait.need.awaits && texts.iter().all(|(_, text)| text == first) => first.clone(),
        Some(_) => {
            let said = texts.iter().filter(|(_, text)| !text.is_empty());
            said.map(|(vcpu, text)| format!("vcpu{vcpu} {text}")).collect::<Vec<_>>().join("; ")
        }
    }
}

fn one_does(analysis: &Analysis<'_>, wait: &Wait<'_>, vcpu: usize, history: &History<'_>) -> String {
    if wait.is_for_call() && history.callback(vcpu, wait.claim.record_call) == Callback::Running {
        return "running its callback".into();
    }
    match &analysis.vcpus[vcpu].activity {
        Activity::Idle if analysis.view.declared.init_lost.contains(vcpu) => {
            "idle, its INIT was lost (host-injected)".into()
        }
        Activity::Idle if history.unhandled(vcpu).is_some() => "idle, its record queued, no interrupt pending".into(),
        Activity::Idle => match history.dropped(vcpu) {
            Some(dropped) => format!("idle, its {dropped} was dropped (guest-injected)"),
            None => "idle, nothing on its way to it".into(),
        },
        Activity::Waiting(_) if analysis.is_held(vcpu) => analysis.doing(vcpu),
        Activity::Waiting(_) => analysis.held_back(vcpu).map(|held| held.to_string()).unwrap_or_default(),
        _ => analysis.doing(vcpu),
    }
}
