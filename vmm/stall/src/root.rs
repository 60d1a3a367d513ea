//! What a closed set of waits hangs on: its kind.

use stallbench_abi::image::SiteKind;
use stallbench_abi::vcpu::Need as NeedKind;

use crate::activity::{Activity, HeldBack};
use crate::analysis::Analysis;
use crate::claim::Wait;
use crate::graph::reachable;
use crate::history::History;
use crate::report::StallKind;
use crate::set::VcpuSet;

/// What a closed set hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) kind: StallKind,
    /// The vCPUs at the root: a cycle, those that never do what is awaited of them, those that wait in memory that is gone.
    pub(crate) at: VcpuSet,
}

/// For each vCPU whose wait can never end, the awaited ones that are to blame for it.
pub(crate) fn edges(analysis: &Analysis<'_>) -> Vec<VcpuSet> {
    let blamed = |vcpu| match analysis.wait(vcpu) {
        // To be held is no part of a protocol: whoever waits for it waits for the hold, and forms no cycle with it.
        Some(wait) if wait.site.kind == SiteKind::HOLD => VcpuSet::EMPTY,
        Some(wait) if analysis.closure.stuck.contains(vcpu) => blamed(analysis, wait),
        _ => VcpuSet::EMPTY,
    };
    (0..analysis.vcpus.len()).map(blamed).collect()
}

fn blamed(analysis: &Analysis<'_>, wait: &Wait<'_>) -> VcpuSet {
    let motionless = wait.need.awaits.minus(analysis.closure.acting);
    if wait.claim.need != NeedKind::COUNT {
        return motionless;
    }
    // A count does not say who has been counted. One that is held is not through with its part.
    let held: VcpuSet = motionless.iter().filter(|&vcpu| analysis.is_held(vcpu)).collect();
    if !held.is_empty() {
        return held;
    }
    // Where those that wait for nothing make up all that is missing, the others
    // have been: they wait for what comes behind it.
    let (waiting, not_waiting): (Vec<_>, Vec<_>) = motionless.iter().partition(|&vcpu| analysis.wait(vcpu).is_some());
    if not_waiting.len() >= wait.need.enough || waiting.is_empty() {
        return not_waiting.into_iter().collect();
    }
    motionless
}

/// What the closed set of an analysis hangs on. Call it only where there is one.
pub(crate) fn root(analysis: &Analysis<'_>, edges: &[VcpuSet], history: &History<'_>) -> Root {
    lifetime(analysis)
        .or_else(|| not_accepting(analysis, edges))
        .or_else(|| cycle(edges))
        .or_else(|| motionless(analysis, edges, history))
        .or_else(|| held(analysis))
        // Only a lock that is held under a number of no vCPU is left: nobody ever gives it back.
        .unwrap_or(Root { kind: StallKind::Deadlock, at: analysis.closure.stuck })
}

/// The waits in memory whose object is gone: nobody knows any more what its words mean, whoever else waits for whom.
fn lifetime(analysis: &Analysis<'_>) -> Option<Root> {
    let at: VcpuSet = analysis.closure.stuck.iter().filter(|&vcpu| analysis.gone(vcpu).is_some()).collect();
    (!at.is_empty()).then_some(Root { kind: StallKind::Lifetime, at })
}

/// A vCPU that holds back the interrupt of a call that waits for it, where no handler is the reason.
fn not_accepting(analysis: &Analysis<'_>, edges: &[VcpuSet]) -> Option<Root> {
    let calls = edges.iter().enumerate().filter(|(vcpu, _)| analysis.wait(*vcpu).is_some_and(Wait::is_for_call));
    let awaited = calls.fold(VcpuSet::EMPTY, |all, (_, awaited)| all.or(*awaited));
    let at: VcpuSet = awaited.iter().filter(|&vcpu| holds_back(analysis, vcpu)).collect();
    (!at.is_empty()).then_some(Root { kind: StallKind::NotAccepting, at })
}

/// Whether a vCPU holds an interrupt back. IF=0 in a handler is no refusal: it waits there as its protocol says.
fn holds_back(analysis: &Analysis<'_>, vcpu: usize) -> bool {
    match analysis.held_back(vcpu).filter(|_| !analysis.is_held(vcpu)) {
        Some(HeldBack::ByFlag(_)) => analysis.vcpus[vcpu].depth == 0,
        Some(HeldBack::ByPriority(_) | HeldBack::ByApic(_) | HeldBack::Nmi) => true,
        None => false,
    }
}

/// The waits that form cycles.
fn cycle(edges: &[VcpuSet]) -> Option<Root> {
    let reach = reachable(edges);
    let at: VcpuSet = (0..edges.len()).filter(|&vcpu| reach[vcpu].contains(vcpu)).collect();
    (!at.is_empty()).then_some(Root { kind: StallKind::Deadlock, at })
}

/// vCPUs that are held for ever, and for whom nobody waits.
fn held(analysis: &Analysis<'_>) -> Option<Root> {
    let at: VcpuSet = analysis.closure.stuck.iter().filter(|&vcpu| analysis.is_held(vcpu)).collect();
    (!at.is_empty()).then_some(Root { kind: StallKind::AbsentMember, at })
}

/// The awaited vCPUs that are held, or that wait for nothing, and never act.
fn motionless(analysis: &Analysis<'_>, edges: &[VcpuSet], history: &History<'_>) -> Option<Root> {
    let awaited = edges.iter().fold(VcpuSet::EMPTY, |all, awaited| all.or(*awaited));
    let those = |is: &dyn Fn(usize) -> bool| awaited.iter().filter(|&vcpu| is(vcpu)).collect::<VcpuSet>();
    let activity = |vcpu: usize| &analysis.vcpus[vcpu].activity;

    let held = those(&|vcpu| analysis.is_held(vcpu));
    let without_init = analysis.view.declared.init_lost;
    let absent = those(&|vcpu| matches!(activity(vcpu), Activity::Absent(_)) || without_init.contains(vcpu));
    let not_woken = those(&|vcpu| matches!(activity(vcpu), Activity::KeptOut(_)));
    let refusing = those(&|vcpu| analysis.held_back(vcpu).is_some());
    let halted = those(&|vcpu| matches!(activity(vcpu), Activity::Halted));
    let forgotten = those(&|vcpu| matches!(activity(vcpu), Activity::Idle) && history.unhandled(vcpu).is_some());
    let unreached = those(&|vcpu| matches!(activity(vcpu), Activity::Idle) && history.dropped(vcpu).is_some());
    let idle = those(&|vcpu| matches!(activity(vcpu), Activity::Idle));
    let roots = [
        (StallKind::AbsentMember, held),
        (StallKind::AbsentMember, absent),
        (StallKind::LostInterrupt, not_woken),
        (StallKind::NotAccepting, refusing),
        (StallKind::AbsentMember, halted),
        (StallKind::LostInterrupt, forgotten),
        (StallKind::LostInterrupt, unreached),
        (StallKind::AbsentMember, idle),
    ];
    roots.into_iter().find(|(_, at)| !at.is_empty()).map(|(kind, at)| Root { kind, at })
}
