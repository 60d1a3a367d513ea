//! Who is to blame: the wait that breaks its own contract, never the first vCPU met.

use stallbench_abi::image::SiteKind;

use crate::activity::Activity;
use crate::analysis::{Analysis, site_name};
use crate::claim::Wait;
use crate::history::{Callback, History};
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
        StallKind::LostInterrupt => {
            sender(analysis, root.at, history).or_else(|| asynchronous(analysis, root, history))
        }
        StallKind::AbsentMember => asynchronous(analysis, root, history).or_else(|| absent(analysis, edges, root.at)),
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

/// It left a record for a vCPU and sent it no interrupt.
fn sender(analysis: &Analysis<'_>, at: VcpuSet, history: &History<'_>) -> Option<Culprit> {
    let unhandled: Vec<_> = at.iter().filter_map(|target| history.unhandled(target)).collect();
    let senders: VcpuSet = unhandled.iter().filter(|lost| !lost.interrupt_sent).map(|lost| lost.sender).collect();
    let vcpu = senders.single()?;
    let injected = if unhandled.iter().any(|lost| lost.injected) { " (injected by the guest)" } else { "" };
    let reason = format!("it left call #{} for {at} and sent no interrupt{injected}", unhandled.first()?.call);
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
fn absent(analysis: &Analysis<'_>, edges: &[VcpuSet], at: VcpuSet) -> Option<Culprit> {
    let vcpu = at.single()?;
    let why = match &analysis.vcpus[vcpu].activity {
        Activity::Absent(_) => "never came up",
        Activity::Halted => "halts with interrupts off",
        _ => "has nothing to do and nothing on its way",
    };
    let reason = format!("{why}, {}", waited_for(analysis, edges, vcpu));
    Some(Culprit { vcpu, site: place_of(analysis, vcpu), reason })
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
