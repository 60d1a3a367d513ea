//! The steps of the manual's procedure, by their numbers there.

use serde::Serialize;

use crate::outcome::BreachKind;

/// A step of SDM 3A 12.11.8. The first, the broadcast, is what brings a vCPU here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// 2: interrupts off.
    InterruptsOff = 2,
    /// 3: wait for all processors.
    Barrier = 3,
    /// 4: CR0.CD=1, NW=0.
    NoFill = 4,
    /// 5: WBINVD.
    FlushCaches = 5,
    /// 6: CR4.PGE=0.
    GlobalPagesOff = 6,
    /// 7: translations flushed.
    FlushTranslations = 7,
    /// 8: MTRRs off, or those that change.
    Disable = 8,
    /// 9: update.
    Update = 9,
    /// 10: MTRRs on.
    Enable = 10,
    /// 11: translations flushed again.
    FlushAgain = 11,
    /// 12: CR0.CD=0.
    CachesOn = 12,
    /// 13: CR4.PGE as it was.
    GlobalPagesOn = 13,
    /// 14: wait for all processors.
    LastBarrier = 14,
    /// 15: interrupts on.
    InterruptsOn = 15,
}

impl Step {
    /// Every step that is checked, in order.
    pub const ALL: [Self; 14] = [
        Self::InterruptsOff,
        Self::Barrier,
        Self::NoFill,
        Self::FlushCaches,
        Self::GlobalPagesOff,
        Self::FlushTranslations,
        Self::Disable,
        Self::Update,
        Self::Enable,
        Self::FlushAgain,
        Self::CachesOn,
        Self::GlobalPagesOn,
        Self::LastBarrier,
        Self::InterruptsOn,
    ];

    /// Its number in the manual.
    pub const fn number(self) -> usize {
        self as usize
    }

    /// Its number and name: the key in machine-readable reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InterruptsOff => "2-irq-off",
            Self::Barrier => "3-barrier",
            Self::NoFill => "4-cd",
            Self::FlushCaches => "5-wbinvd",
            Self::GlobalPagesOff => "6-pge",
            Self::FlushTranslations => "7-cr3",
            Self::Disable => "8-disable",
            Self::Update => "9-update",
            Self::Enable => "10-enable",
            Self::FlushAgain => "11-flush",
            Self::CachesOn => "12-cd-back",
            Self::GlobalPagesOn => "13-pge-back",
            Self::LastBarrier => "14-barrier",
            Self::InterruptsOn => "15-irq-on",
        }
    }

    /// Whether it has a trace at an access to an MTRR.
    pub const fn is_visible(self) -> bool {
        use Step::{Barrier, Disable, Enable, GlobalPagesOff, InterruptsOff, NoFill, Update};
        matches!(self, InterruptsOff | Barrier | NoFill | GlobalPagesOff | Disable | Update | Enable)
    }

    /// The kind of breach that leaving it out is; `None`: it is an inconsistency.
    ///
    /// A vCPU whose caches and those of the others are not off at the same time, or were not flushed, breaks what `cache-off` is about;
    /// one that lets interrupts in too early, or keeps them out too late, what `irq-off` is about. Translations and the enable
    /// bit have no kind of their own.
    pub const fn breach(self) -> Option<BreachKind> {
        match self {
            Self::Barrier | Self::NoFill | Self::FlushCaches | Self::CachesOn | Self::LastBarrier => {
                Some(BreachKind::CacheOff)
            }
            Self::InterruptsOff | Self::InterruptsOn => Some(BreachKind::IrqOff),
            _ => None,
        }
    }
}

/// What is known of a step, of all vCPUs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// Every vCPU that programmed an MTRR was seen to do it, each time.
    Ok,
    /// It cannot be known of at least one.
    NotObserved,
    /// At least one left it out, or did it at the wrong time.
    Violated,
}

impl Finding {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotObserved => "not-observed",
            Self::Violated => "violated",
        }
    }
}
