//! What an analysis says: the words of a stall, plain data for reports.
//!
//! Owns no decision. The words of kinds and strengths are those of design.md and do not change.

use core::fmt;

use serde::{Serialize, Serializer};

/// What kind of stall it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallKind {
    /// Waits that form a cycle.
    Deadlock,
    /// A member that never comes: not up, dead, or done with its part.
    AbsentMember,
    /// Work was left for a vCPU that takes interrupts, and none is on its way.
    LostInterrupt,
    /// An interrupt is pending at a vCPU that does not take it.
    NotAccepting,
    /// A closed set of states that keeps changing.
    Livelock,
    /// The memory of what is waited for ended its life.
    Lifetime,
}

impl StallKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Deadlock, Self::AbsentMember, Self::LostInterrupt, Self::NotAccepting, Self::Livelock, Self::Lifetime];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Deadlock => "deadlock",
            Self::AbsentMember => "absent-member",
            Self::LostInterrupt => "lost-interrupt",
            Self::NotAccepting => "not-accepting",
            Self::Livelock => "livelock",
            Self::Lifetime => "lifetime",
        }
    }
}

impl fmt::Display for StallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// How certain a verdict is. Ordered: a later one says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strength {
    /// A closed waits-for set, confirmed by the machine in two captures between which every waiting vCPU ran.
    Observed,
    /// A certificate: a finite set of states, closed under every transition, without progress.
    Proved,
    /// For every schedule up to the stated bound.
    Complete,
}

impl Strength {
    /// Every strength, the weakest first.
    pub const ALL: [Self; 3] = [Self::Observed, Self::Proved, Self::Complete];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Proved => "proved",
            Self::Complete => "complete",
        }
    }
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A guest-physical address; in JSON a string, since a number there may lose bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The wait, or the vCPU, at the root of a stall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Culprit {
    /// The vCPU.
    pub vcpu: usize,
    /// The function of the protocol that it is in, or what it does instead of what it owes.
    pub site: String,
    /// Which contract it breaks, and how it came to that.
    pub reason: String,
}

/// A vCPU at the root of a stall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The vCPU.
    pub vcpu: usize,
    /// What it does, a fragment.
    pub doing: String,
}

/// A confirmed wait of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitReport {
    /// The vCPU that waits.
    pub vcpu: usize,
    /// The function of the protocol that waits.
    pub site: String,
    /// Its step, where the protocol numbers them; else empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub step: String,
    /// What the waited word is.
    pub word: String,
    /// Where it lies.
    pub address: Address,
    /// The record that it belongs to, where it is part of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<Address>,
    /// The object that the word was part of, where its life is over: `set_mtrr@0x4000e0, whose life vcpu0 ended`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<String>,
    /// What lay there, masked, in the last capture.
    pub value: u32,
    /// What ends the wait: `to clear`, `to become 1`.
    pub until: String,
    /// The vCPUs that must act before it can end.
    pub awaits: Vec<usize>,
    /// What they do, where one of them is in no position to act; else empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub awaited_do: String,
    /// Kind of the context that waits: `task`, `irq`, `nmi`.
    pub context: String,
    /// Nesting depth of that context.
    pub depth: usize,
    /// RFLAGS.IF of the waiting context.
    pub interrupts_enabled: bool,
    /// Whether the wait belongs to the closed set; an outer context's does not.
    pub closed: bool,
}

/// A stall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// What kind it is.
    pub kind: StallKind,
    /// How certain it is.
    pub strength: Strength,
    /// Who is to blame; `None` where no wait breaks its own contract.
    pub culprit: Option<Culprit>,
    /// What the closed set hangs on: the members of a cycle, or the vCPUs that never do what others wait for.
    pub root: Vec<Member>,
    /// Every confirmed wait, by vCPU, innermost context first.
    pub waits: Vec<WaitReport>,
}

/// Something that a vCPU published and the machine denies. Reported always, counted never.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Contradiction {
    /// The vCPU.
    pub vcpu: usize,
    /// What it published.
    pub claim: String,
    /// What the machine says.
    pub denied_by: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu{} published {}, but {}", self.vcpu, self.claim, self.denied_by)
    }
}
