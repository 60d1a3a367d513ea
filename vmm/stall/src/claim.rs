//! Published waits, held against the machine.
//!
//! A vCPU's page says what it waits for; only what its registers and the waited word bear out is a [`Wait`]. What they deny is
//! a [`Contradiction`]. Between publishing a wait and spinning on it lie a few instructions in which the claim is ahead of the
//! machine, so that one capture alone does not make a liar: whoever reports contradictions asks for a second one.

use stallbench_abi::image::SiteKind;
use stallbench_abi::layout::MASK_WORDS;
use stallbench_abi::vcpu::{CONTEXTS, Context, ContextKind, Frame, Need as NeedKind, Until, VcpuPage};
use stallbench_state::machine::{RFLAGS_IF, Registers};
use stallbench_state::memory::{Memory, read_plain};
use stallbench_state::program::SiteInfo;

use crate::code::{Code, place};
use crate::graph::Need;
use crate::report::Contradiction;
use crate::set::VcpuSet;

/// A wait that the machine confirms.
#[derive(Clone, Debug)]
pub struct Wait<'a> {
    /// Nesting depth of the context that waits; 0 is the task.
    pub depth: usize,
    /// What kind of context.
    pub context: ContextKind,
    /// Where it waits.
    pub site: &'a SiteInfo,
    /// What it published.
    pub claim: stallbench_abi::vcpu::Wait,
    /// The waited word, masked.
    pub value: u32,
    /// What must happen before it can end.
    pub need: Need,
    /// RFLAGS.IF of the context.
    pub interrupts_enabled: bool,
}

impl Wait<'_> {
    /// Whether two captures show the same wait for the same value.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.depth, self.value) == (other.depth, other.value) && self.claim == other.claim
    }

    /// Whether it waits for what another vCPU does for one of its calls.
    pub fn is_for_call(&self) -> bool {
        matches!(self.site.kind, SiteKind::COMPLETION | SiteKind::ACCEPTANCE | SiteKind::RECORD)
    }
}

/// What became of a claim.
#[derive(Clone, Debug)]
pub enum Claim<'a> {
    /// No wait is published.
    None,
    /// The machine bears it out.
    Confirmed(Wait<'a>),
    /// It is borne out but for the word, which has the value that ends the wait.
    Ending,
    /// The machine denies it.
    Denied(Contradiction),
}

/// What holds claims against the machine.
#[derive(Clone, Copy)]
pub(crate) struct Claims<'a> {
    pub(crate) code: &'a dyn Code,
    pub(crate) memory: &'a dyn Memory,
    pub(crate) vcpus: usize,
}

/// The registers that a spin holds (see [`stallbench_abi::image::SiteRange`]).
#[derive(Clone, Copy)]
struct Spin {
    rip: u64,
    address: u64,
    mask: u32,
    value: u32,
    rflags: u64,
}

impl From<&Registers> for Spin {
    fn from(r: &Registers) -> Self {
        Self { rip: r.rip, address: r.rdi, mask: r.rsi as u32, value: r.r8 as u32, rflags: r.rflags }
    }
}

impl From<&Frame> for Spin {
    fn from(f: &Frame) -> Self {
        Self { rip: f.rip, address: f.rdi, mask: f.rsi as u32, value: f.r8 as u32, rflags: f.rflags }
    }
}

/// The claims of one vCPU.
#[derive(Clone, Debug)]
pub(crate) struct VcpuClaims<'a> {
    /// Depth of its innermost context, as far as there is one.
    pub(crate) depth: usize,
    /// The claim of the innermost context.
    pub(crate) innermost: Claim<'a>,
    /// The claims of the contexts below, the task last.
    pub(crate) outer: Vec<Claim<'a>>,
}

impl<'a> Claims<'a> {
    /// Holds all claims of a vCPU against its registers.
    pub(crate) fn of(self, vcpu: usize, page: &VcpuPage, registers: &Registers) -> VcpuClaims<'a> {
        let depth = page.depth as usize;
        if depth >= CONTEXTS {
            let denied_by = format!("there are {CONTEXTS} contexts");
            let denied = Contradiction { vcpu, claim: format!("depth {depth}"), denied_by };
            return VcpuClaims { depth: 0, innermost: Claim::Denied(denied), outer: Vec::new() };
        }
        let innermost = self.context(vcpu, page, depth, Some(registers.into()));
        let outer = (0..depth).rev().map(|below| self.context(vcpu, page, below, self.interrupted(page, below)));
        VcpuClaims { depth, innermost, outer: outer.collect() }
    }

    /// The registers of a context that was interrupted: its frame is kept by the context above.
    fn interrupted(self, page: &VcpuPage, below: usize) -> Option<Spin> {
        let frame: Frame = read_plain(self.memory, page.contexts.get(below + 1)?.frame)?;
        Some((&frame).into())
    }

    fn context(self, vcpu: usize, page: &VcpuPage, depth: usize, spin: Option<Spin>) -> Claim<'a> {
        let context = &page.contexts[depth];
        if context.wait.active == 0 {
            return Claim::None;
        }
        match self.confirm(vcpu, depth, context, spin) {
            Ok(claim) => claim,
            Err(denied_by) => {
                let claim = self.describe(context);
                Claim::Denied(Contradiction { vcpu, claim, denied_by })
            }
        }
    }

    fn confirm(self, vcpu: usize, depth: usize, context: &Context, spin: Option<Spin>) -> Result<Claim<'a>, String> {
        let claim = context.wait;
        let site =
            self.code.site_at(claim.site).ok_or_else(|| format!("there is no wait site at {:#x}", claim.site))?;
        let spin = spin.ok_or("the frame of what was interrupted cannot be read")?;
        self.check_spin(site, &claim, spin)?;
        let word = self.memory.read_u32(claim.address).ok_or("the word lies outside guest memory")?;
        let value = word & claim.mask;
        if is_over(claim.until, value, claim.value)? {
            return Ok(Claim::Ending);
        }
        let need = self.need(vcpu, &claim, value)?;
        let interrupts_enabled = spin.rflags & RFLAGS_IF != 0;
        Ok(Claim::Confirmed(Wait { depth, context: context.kind, site, claim, value, need, interrupts_enabled }))
    }

    fn check_spin(self, site: &SiteInfo, claim: &stallbench_abi::vcpu::Wait, spin: Spin) -> Result<(), String> {
        if self.code.site_of_rip(spin.rip).is_none_or(|at| at.address != site.address) {
            return Err(format!("it is at {}", place(self.code, spin.rip)));
        }
        if (spin.address, spin.mask, spin.value) != (claim.address, claim.mask, claim.value) {
            let Spin { address, mask, value, .. } = spin;
            return Err(format!("its registers compare {address:#x} & {mask:#x} with {value:#x}"));
        }
        Ok(())
    }

    fn need(self, vcpu: usize, claim: &stallbench_abi::vcpu::Wait, value: u32) -> Result<Need, String> {
        let awaits = self.awaits(claim).ok_or("the set of awaited vCPUs lies outside guest memory")?;
        // One that awaits itself stays in the set: it cannot act while it waits, and nobody else is to blame for that.
        let all = VcpuSet::all(self.vcpus);
        let others = all.without(vcpu);
        let need = match claim.need {
            NeedKind::HOLDER => holder(value, all, others),
            // What is left of a set that was narrowed to nothing: whoever narrowed it last must still write the word.
            _ if awaits.is_empty() => Need { awaits: others, enough: 1 },
            NeedKind::ALL => Need { awaits, enough: awaits.len() },
            NeedKind::ANY => Need { awaits, enough: 1 },
            NeedKind::COUNT => Need { awaits, enough: counted(claim, value).min(awaits.len()).max(1) },
            unknown => return Err(format!("a need {unknown} means nothing")),
        };
        Ok(need)
    }

    /// The awaited vCPUs: the set that is narrowed as they act, or the one that was published.
    fn awaits(self, claim: &stallbench_abi::vcpu::Wait) -> Option<VcpuSet> {
        let mask = match claim.awaits_at {
            0 => claim.awaits,
            live => read_plain::<[u64; MASK_WORDS]>(self.memory, live)?,
        };
        Some(VcpuSet::of_mask(mask, self.vcpus))
    }

    fn describe(self, context: &Context) -> String {
        let wait = &context.wait;
        match self.code.site_at(wait.site) {
            Some(site) => {
                let step = if site.step.is_empty() { String::new() } else { format!(" {}", site.step) };
                format!("a wait in {}{step} for {} at {:#x}", site.function, site.word, wait.address)
            }
            None => format!("a wait at site {:#x} for a word at {:#x}", wait.site, wait.address),
        }
    }
}

fn is_over(until: Until, value: u32, end: u32) -> Result<bool, String> {
    match until {
        Until::EQUAL => Ok(value == end),
        Until::DIFFERENT => Ok(value != end),
        unknown => Err(format!("an end {unknown} means nothing")),
    }
}

/// The holder of a lock is the vCPU whose number plus one lies in its word, be it the one that waits. A number that no vCPU has
/// awaits nobody.
fn holder(value: u32, all: VcpuSet, others: VcpuSet) -> Need {
    let awaits = match value.checked_sub(1) {
        Some(holder) => all.and([holder as usize].into_iter().collect()),
        None => others,
    };
    Need { awaits, enough: 1 }
}

/// How far the word is from the value that ends the wait: a counter goes by one for each vCPU.
fn counted(claim: &stallbench_abi::vcpu::Wait, value: u32) -> usize {
    match claim.until {
        Until::EQUAL => value.abs_diff(claim.value) as usize,
        _ => 1,
    }
}
