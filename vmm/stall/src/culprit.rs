//! Who is to blame: the wait that breaks its own contract, never the first vCPU met.

use stallbench_abi::image::SiteKind;

use crate::activity::Activity;
use crate::analysis::{Analysis, site_name};
use crate::claim::Wait;
use crate::history::{Callback, History, Interrupt};
use crate::report::{Culprit, StallKind};
use crate::root::Root;
use crate::set::VcpuSet;

/// The culprit of a closed set that hangs on `root`, where there is exactly one.
pub(crate) fn culprit(
    analysis: &Analysis<'_>,
    edges: &[VcpuSet],
    root: Root,
    history: &History<'_>,
) -> Option<Culprit> {
    match root.kind {
        StallKind::Lifetime => ender(analysis, root.at, history),
        StallKind::NotAccepting => not_accepting(analysis, edges, root.at),
        StallKind::LostInterrupt => not_woken(analysis, edges, root.at)
            .or_else(|| sender(analysis, root.at, history))
            .or_else(|| dropper(root.at, analysis, history))
            .or_else(|| asynchronous(analysis, root, history)),
        StallKind::AbsentMember => asynchronous(analysis, root, history)
            .or_else(|| absent(analysis, edges, root.at, history).filter(|culprit| !analysis.is_held(culprit.vcpu))),
        _ => asynchronous(analysis, root, history),
    }
}

/// wait=0 and yet waiting. Of several such waits only one that lies on the cycle, alone there, is the root.
fn asynchronous(analysis: &Analysis<'_>, root: Root, history: &History<'_>) -> Option<Culprit> {
    let breaks = |wait: &Wait<'_>| wait.claim.asynchronous == 1 && wait.is_for_call();
    let all: VcpuSet = analysis.closure.stuck.iter().filter(|&v| analysis.wait(v).is_some_and(breaks)).collect();
    let vcpu = all.single().or_else(|| all.and(root.at).single())?;
    let wait = analysis.wait(vcpu)?;
    Some(Culprit { vcpu, site: site_name(wait), reason: broken_promise(vcpu, wait, history) })
}

fn broken_promise(vcpu: usize, wait: &Wait<'_>, history: &History<'_>) -> String {
    let failures = history.allocation_failures(vcpu).map(|failures| format!(" (allocation failure {failures})"));
    let call = wait.claim.record_call;
    match (wait.site.kind, failures) {
        (SiteKind::COMPLETION, Some(failures)) => format!("wait=0 became wait=1{failures}"),
        (SiteKind::COMPLETION, None) => format!("wait=0 waits for the completion of call #{call}"),
        (SiteKind::ACCEPTANCE, failures) => {
            format!("wait=0 waits for its record to be accepted{}", failures.unwrap_or_default())
        }
        _ => format!("wait=0 waits for its own earlier record (call #{call}), {}", callbacks(wait, history)),
    }
}

fn callbacks(wait: &Wait<'_>, history: &History<'_>) -> &'static str {
    let states: Vec<_> = wait.need.awaits.iter().map(|vcpu| history.callback(vcpu, wait.claim.record_call)).collect();
    if states.contains(&Callback::Running) {
        "whose callback has begun and not ended"
    } else if states.contains(&Callback::NotBegun) {
        "whose callback has not begun"
    } else {
        "which is not given back"
    }
}

/// An interrupt is pending at it, a sender waits, and it does not take it.
fn not_accepting(analysis: &Analysis<'_>, edges: &[VcpuSet], at: VcpuSet) -> Option<Culprit> {
    let vcpu = at.single()?;
    let held = analysis.held_back(vcpu)?;
    let reason = format!("{held}, {}", waited_for(analysis, edges, vcpu));
    Some(Culprit { vcpu, site: place_of(analysis, vcpu), reason })
}

/// An interrupt that it would take is there, and the host does not wake it.
fn not_woken(analysis: &Analysis<'_>, edges: &[VcpuSet], at: VcpuSet) -> Option<Culprit> {
    let vcpu = at.single()?;
    let Activity::KeptOut(deliverable) = &analysis.vcpus[vcpu].activity else { return None };
    let waited_for = waited_for(analysis, edges, vcpu);
    let reason =
        format!("{deliverable} is there, and it is not woken (host-injected: kept out of the guest), {waited_for}");
    Some(Culprit { vcpu, site: "halted".into(), reason })
}

/// It left a record for a vCPU and sent it no interrupt.
fn sender(analysis: &Analysis<'_>, at: VcpuSet, history: &History<'_>) -> Option<Culprit> {
    let unhandled: Vec<_> = at.iter().filter_map(|target| history.unhandled(target)).collect();
    let missing: Vec<_> = unhandled.iter().filter(|lost| lost.interrupt != Interrupt::Sent).collect();
    let senders: VcpuSet = missing.iter().map(|lost| lost.sender).collect();
    let vcpu = senders.single()?;
    let missing_as = |interrupt| missing.iter().any(|lost| lost.interrupt == interrupt);
    let what = if missing_as(Interrupt::Dropped) {
        "its interrupt was dropped (guest-injected)"
    } else if missing_as(Interrupt::LeftOut) {
        "sent no interrupt (injected by the guest)"
    } else {
        "sent no interrupt"
    };
    let reason = format!("it left call #{} for {at} and {what}", unhandled.first()?.call);
    Some(Culprit { vcpu, site: place_of(analysis, vcpu), reason })
}

/// The scenario has it send no interrupt to a vCPU that it left no record for.
fn dropper(at: VcpuSet, analysis: &Analysis<'_>, history: &History<'_>) -> Option<Culprit> {
    let dropped: Vec<_> = at.iter().filter_map(|target| history.dropped(target)).collect();
    let vcpu = dropped.iter().map(|dropped| dropped.sender).collect::<VcpuSet>().single()?;
    let reason = format!("its {} to {at} was dropped (guest-injected)", dropped.first()?);
    Some(Culprit { vcpu, site: place_of(analysis, vcpu), reason })
}

/// It ended the life of what others still wait on. Its site is the object: by now it does something else.
fn ender(analysis: &Analysis<'_>, at: VcpuSet, history: &History<'_>) -> Option<Culprit> {
    let gone: Vec<_> = at.iter().filter_map(|waiter| Some((waiter, history.fate(analysis.gone(waiter)?)))).collect();
    let enders: VcpuSet = gone.iter().filter_map(|(_, gone)| gone.by).collect();
    let vcpu = enders.single()?;
    let (waiter, first) = gone.iter().find(|(_, gone)| gone.by.is_some())?;
    let waiters: VcpuSet = gone.iter().map(|(waiter, _)| *waiter).collect();
    let wait = analysis.wait(*waiter).map(site_name).unwrap_or_default();
    let now = first.now.as_ref().map(|now| format!("; {now} lives there now")).unwrap_or_default();
    let reason = format!("it ended the life of {}, on which {waiters} {} in {wait}{now}", first.name, waits(waiters));
    Some(Culprit { vcpu, site: first.bare.clone(), reason })
}

/// A member that never comes.
fn absent(analysis: &Analysis<'_>, edges: &[VcpuSet], at: VcpuSet, history: &History<'_>) -> Option<Culprit> {
    let vcpu = at.single()?;
    let reason = format!("{}, {}", why_absent(analysis, vcpu, history), waited_for(analysis, edges, vcpu));
    Some(Culprit { vcpu, site: place_of(analysis, vcpu), reason })
}

fn why_absent(analysis: &Analysis<'_>, vcpu: usize, history: &History<'_>) -> String {
    let declared = &analysis.view.declared;
    match &analysis.vcpus[vcpu].activity {
        _ if declared.init_lost.contains(vcpu) => "its INIT was lost (host-injected)".into(),
        Activity::Absent(_) if history.never_started(vcpu) => "was never started (guest-injected)".into(),
        Activity::Absent(_) => match history.dropped(vcpu) {
            Some(dropped) => format!("never came up, its {dropped} was dropped (guest-injected)"),
            None => "never came up".into(),
        },
        Activity::Halted => "halts with interrupts off".into(),
        _ if declared.kept_out.contains(vcpu) => "is kept out of the guest (host-injected)".into(),
        _ => "has nothing to do and nothing on its way".into(),
    }
}

fn waited_for(analysis: &Analysis<'_>, edges: &[VcpuSet], vcpu: usize) -> String {
    let waiters: VcpuSet = (0..edges.len()).filter(|&waiter| edges[waiter].contains(vcpu)).collect();
    let sites: Vec<_> = waiters.iter().filter_map(|waiter| analysis.wait(waiter)).map(site_name).collect();
    match sites.first() {
        Some(site) => format!("while {waiters} {} for it in {site}", waits(waiters)),
        None => "and is waited for".into(),
    }
}

fn waits(waiters: VcpuSet) -> &'static str {
    if waiters.single().is_some() { "waits" } else { "wait" }
}

fn place_of(analysis: &Analysis<'_>, vcpu: usize) -> String {
    match analysis.wait(vcpu) {
        Some(wait) => site_name(wait),
        None => analysis.doing(vcpu),
    }
}
