//! One captured machine: what each vCPU does, which waits the machine confirms, and which of them can never end.
//!
//! It decides nothing yet: [`conclude`](crate::conclude::conclude) wants two of them.

use core::fmt;
use core::mem::offset_of;

use stallbench_abi::boot::BootBlock;
use stallbench_abi::image::SiteKind;
use stallbench_abi::layout::{BOOT_BLOCK, PAUSE};
use stallbench_abi::pause::{HoldState, PausePage, Point};
use stallbench_abi::text;
use stallbench_abi::vcpu::{Phase, VcpuPage};
use stallbench_state::machine::{MachineState, MpState, VcpuState};
use stallbench_state::memory::{Memory, read_plain};
use stallbench_state::published::Published;

use crate::activity::{Activity, HeldBack};
use crate::claim::{Claim, Claims, VcpuClaims, Wait};
use crate::code::{Code, place};
use crate::graph::{Closure, Node};
use crate::lifetime::Object;
use crate::report::Contradiction;
use crate::set::VcpuSet;

/// A machine that stands still: what was captured of it, and its memory.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The code that it runs.
    pub code: &'a dyn Code,
    /// The vCPUs.
    pub machine: &'a MachineState,
    /// Guest memory.
    pub memory: &'a dyn Memory,
    /// What the vCPUs publish, read from that memory while it stood still.
    pub published: &'a Published,
    /// What the host does to vCPUs.
    pub declared: Declared,
}

/// What the host does to vCPUs because the scenario says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// They are not let into the guest: whatever is on its way to them stays there.
    pub kept_out: VcpuSet,
    /// An INIT was taken away from them.
    pub init_lost: VcpuSet,
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("vcpus", &self.machine.vcpus.len()).finish_non_exhaustive()
    }
}

/// What a captured machine says.
#[derive(Debug)]
pub struct Analysis<'a> {
    pub(crate) view: View<'a>,
    /// The vCPUs, by index.
    pub vcpus: Vec<VcpuAnalysis<'a>>,
    /// Who can act, and whose wait can never end.
    pub closure: Closure,
}

/// What a vCPU does.
#[derive(Clone, Debug)]
pub struct VcpuAnalysis<'a> {
    /// What its innermost context does.
    pub activity: Activity<'a>,
    /// Nesting depth of that context.
    pub depth: usize,
    /// Confirmed waits of the contexts below it, innermost first.
    pub outer: Vec<Wait<'a>>,
    /// What it published and the machine denies.
    pub contradictions: Vec<Contradiction>,
    /// Where it is in its life, as it publishes.
    pub phase: Phase,
}

impl<'a> Analysis<'a> {
    /// Looks at a machine.
    pub fn of(view: View<'a>) -> Self {
        let vcpus: Vec<_> = (0..view.machine.vcpus.len()).map(|vcpu| vcpu_analysis(view, vcpu)).collect();
        let states = &view.machine.vcpus;
        let node = |(vcpu, state): (&VcpuAnalysis<'_>, &VcpuState)| {
            // Nothing moves it and nothing reaches it.
            if view.declared.kept_out.contains(state.index) { Node::default() } else { vcpu.activity.node(state) }
        };
        let nodes: Vec<Node> = vcpus.iter().zip(states).map(node).collect();
        Self { view, vcpus, closure: Closure::of(&nodes) }
    }

    /// The captured state of a vCPU.
    pub(crate) fn state(&self, vcpu: usize) -> &'a VcpuState {
        &self.view.machine.vcpus[vcpu]
    }

    /// The confirmed wait of a vCPU's innermost context.
    pub fn wait(&self, vcpu: usize) -> Option<&Wait<'a>> {
        self.vcpus.get(vcpu)?.activity.wait()
    }

    /// The object that a vCPU waits on, where its life is over.
    pub(crate) fn gone(&self, vcpu: usize) -> Option<Object> {
        Object::gone_of_wait(self.view.memory, &self.wait(vcpu)?.claim)
    }

    /// Whether a vCPU is held at a pause point.
    pub(crate) fn is_held(&self, vcpu: usize) -> bool {
        self.wait(vcpu).is_some_and(|wait| wait.site.kind == SiteKind::HOLD)
    }

    /// What a vCPU holds back, if anything.
    pub(crate) fn held_back(&self, vcpu: usize) -> Option<HeldBack> {
        HeldBack::of(self.state(vcpu))
    }

    /// Whether the run is over: every vCPU that came up has done its part and halts, with nothing on its way.
    ///
    /// What is published beside that is a claim that changes nothing.
    pub fn is_quiescent(&self) -> bool {
        let came_up = |vcpu: &&VcpuAnalysis<'_>| !matches!(vcpu.activity, Activity::Absent(_));
        self.vcpus.iter().any(|vcpu| came_up(&vcpu)) && self.vcpus.iter().filter(came_up).all(VcpuAnalysis::is_at_rest)
    }

    /// Everything that was published and that the machine denies.
    pub fn contradictions(&self) -> impl Iterator<Item = &Contradiction> {
        self.vcpus.iter().flat_map(|vcpu| &vcpu.contradictions)
    }

    /// What a vCPU does, a fragment.
    pub fn doing(&self, vcpu: usize) -> String {
        let held = self.held_back(vcpu).map(|held| format!(", {held}")).unwrap_or_default();
        let doing = match self.held_at(vcpu) {
            Some(point) => format!("is held at {point}"),
            None => describe(&self.vcpus[vcpu].activity, self.view.code),
        };
        format!("{doing}{held}")
    }

    /// The pause point at which a vCPU is held, by the hold whose word it waits for.
    fn held_at(&self, vcpu: usize) -> Option<String> {
        let wait = self.wait(vcpu).filter(|wait| wait.site.kind == SiteKind::HOLD)?;
        let offset = wait.claim.address.checked_sub(PAUSE + offset_of!(PausePage, holds) as u64)?;
        let block: BootBlock = read_plain(self.view.memory, BOOT_BLOCK)?;
        let hold = block.holds.get(usize::try_from(offset).ok()? / size_of::<HoldState>())?;
        let point: Point = read_plain(self.view.memory, hold.at.point)?;
        Some(text::of(&point.name).to_owned()).filter(|name| !name.is_empty())
    }

    /// Where a vCPU is in its protocol: the pause point at which it is held, the site of its wait, or the function that it runs.
    pub fn site(&self, vcpu: usize) -> String {
        match &self.vcpus[vcpu].activity {
            Activity::Waiting(wait) => self.held_at(vcpu).unwrap_or_else(|| site_name(wait)),
            Activity::Running { rip } => function(self.view.code, *rip),
            _ => self.doing(vcpu),
        }
    }
}

/// The function at an address, without the path to it.
fn function(code: &dyn Code, address: u64) -> String {
    let path = code.symbol(address).map(|(name, _)| name);
    let name = path.as_deref().and_then(|path| path.rsplit("::").find(|part| !part.starts_with('{')));
    name.map_or_else(|| place(code, address), str::to_owned)
}

impl VcpuAnalysis<'_> {
    fn is_at_rest(&self) -> bool {
        matches!(self.activity, Activity::Idle) && self.depth == 0 && self.phase == Phase::FINISHED
    }
}

fn vcpu_analysis<'a>(view: View<'a>, vcpu: usize) -> VcpuAnalysis<'a> {
    let state = &view.machine.vcpus[vcpu];
    let unpublished = VcpuPage::default();
    let page = view.published.vcpus.get(vcpu).unwrap_or(&unpublished);
    let claims = Claims { code: view.code, memory: view.memory, vcpus: view.machine.vcpus.len() };
    let claims = state.registers.as_ref().ok().map(|registers| claims.of(vcpu, page, registers));
    let activity = Activity::of(state, claims.as_ref()).kept_out(view.declared.kept_out.contains(vcpu));
    let (depth, outer, contradictions) = claims.map(sort).unwrap_or_default();
    VcpuAnalysis { activity, depth, outer, contradictions, phase: page.phase }
}

/// Depth, confirmed waits of outer contexts, contradictions.
fn sort(claims: VcpuClaims<'_>) -> (usize, Vec<Wait<'_>>, Vec<Contradiction>) {
    let (mut outer, mut contradictions) = (Vec::new(), Vec::new());
    if let Claim::Denied(contradiction) = claims.innermost {
        contradictions.push(contradiction);
    }
    for claim in claims.outer {
        match claim {
            Claim::Confirmed(wait) => outer.push(wait),
            Claim::Denied(contradiction) => contradictions.push(contradiction),
            Claim::None | Claim::Ending => {}
        }
    }
    (claims.depth, outer, contradictions)
}

fn describe(activity: &Activity<'_>, code: &dyn Code) -> String {
    match activity {
        Activity::Waiting(wait) => format!("waits in {} for {}", site_name(wait), wait.site.word),
        Activity::Idle => "idle".into(),
        Activity::Halted => "halted with interrupts off".into(),
        Activity::Interrupting(deliverable) => format!("is about to take {deliverable}"),
        Activity::KeptOut(deliverable) => format!("halted with {deliverable} deliverable, not woken (host-injected)"),
        Activity::Timer => "its APIC timer is not masked".into(),
        Activity::Absent(MpState::InitReceived) => "not started (waits for SIPI)".into(),
        Activity::Absent(_) => "not started".into(),
        Activity::Running { rip } => format!("runs at {}", place(code, *rip)),
        Activity::Unread(unread) => unread.to_string(),
    }
}

/// Function and step of a wait.
pub(crate) fn site_name(wait: &Wait<'_>) -> String {
    match wait.site.step.as_str() {
        "" => wait.site.function.clone(),
        step => format!("{} {step}", wait.site.function),
    }
}
