//! Waits that can still end, and the busy vCPU that they hang on: slow, not stuck.
//!
//! Who waits is never what holds things up. It names the root of the waits, however long the chain to it, and decides nothing.

use stallbench_abi::vcpu::Need as NeedKind;

use crate::activity::Activity;
use crate::analysis::Analysis;
use crate::graph::reachable;
use crate::set::VcpuSet;

/// A vCPU that is busy while others wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slow {
    /// The busy vCPU.
    pub vcpu: usize,
    /// What it does, a fragment.
    pub doing: String,
    /// Who waits for it, by whatever chain.
    pub waiting: VcpuSet,
}

/// The busy vCPU that most wait for, the lowest of several; `None` where nobody waits for one.
pub fn slow(analysis: &Analysis<'_>) -> Option<Slow> {
    let vcpus = 0..analysis.vcpus.len();
    let reach = reachable(&vcpus.clone().map(|vcpu| hangs_on(analysis, vcpu)).collect::<Vec<_>>());
    let busy = vcpus.clone().filter(|&vcpu| is_busy(analysis, vcpu));
    let waiting = |root: usize| vcpus.clone().filter(|&vcpu| vcpu != root && reach[vcpu].contains(root)).collect();
    let roots = busy.map(|root| (root, waiting(root))).filter(|(_, waiting): &(usize, VcpuSet)| !waiting.is_empty());
    let (vcpu, waiting) = roots.max_by_key(|(vcpu, waiting)| (waiting.len(), usize::MAX - vcpu))?;
    Some(Slow { vcpu, doing: analysis.doing(vcpu), waiting })
}

fn is_busy(analysis: &Analysis<'_>, vcpu: usize) -> bool {
    matches!(
        analysis.vcpus[vcpu].activity,
        Activity::Running { .. } | Activity::Interrupting(_) | Activity::Timer | Activity::Unread(_)
    )
}

/// Whom a wait that can end hangs on. A count does not say who has been counted: those that wait have, where others do not.
fn hangs_on(analysis: &Analysis<'_>, vcpu: usize) -> VcpuSet {
    let Some(wait) = analysis.wait(vcpu).filter(|_| !analysis.closure.stuck.contains(vcpu)) else {
        return VcpuSet::EMPTY;
    };
    let awaited = wait.need.awaits.without(vcpu);
    let busy: VcpuSet = awaited.iter().filter(|&vcpu| is_busy(analysis, vcpu)).collect();
    if wait.claim.need == NeedKind::COUNT && !busy.is_empty() { busy } else { awaited }
}

impl core::fmt::Display for Slow {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let verb = if self.waiting.single().is_some() { "waits" } else { "wait" };
        write!(f, "{} {verb} for vcpu{}, which {}", self.waiting, self.vcpu, self.doing)
    }
}
