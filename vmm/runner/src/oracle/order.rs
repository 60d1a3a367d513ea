//! The order in which MTRRs are programmed, checked against the manual's procedure for several processors (SDM 3A 12.11.8).
//!
//! A [`Recorder`] is told by the vCPUs' own threads what they do ([`stallbench_core::observe`]); [`judge()`] goes through what it has
//! kept, vCPU by vCPU, once the run is over. Every access to an MTRR leaves a trace; what does not is seen by single steps alone,
//! and is not observed without them: never taken for granted. docs/order.md says what each step is checked by.

mod instruction;
mod judge;
mod record;
mod step;
#[cfg(test)]
mod test;

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use stallbench_core::observe::MsrRange;

pub use judge::{Judged, Run, Violation, judge};
pub use record::{Entry, Recorder, What};
pub use step::{Finding, Step};

/// The registers whose accesses are told: variable ranges, fixed ranges, PAT and the default type.
pub const MSRS: &[MsrRange] = &[
    MsrRange { first: 0x200, count: 16 },
    MsrRange { first: 0x250, count: 1 },
    MsrRange { first: 0x258, count: 2 },
    MsrRange { first: 0x268, count: 8 },
    MsrRange { first: 0x277, count: 1 },
    MsrRange { first: 0x2ff, count: 1 },
];

/// How the order is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Not at all.
    #[default]
    Off,
    /// Each access to an MTRR stops its vCPU.
    Filter,
    /// Beside that, the procedure is executed step by step.
    Step,
}

impl Mode {
    /// Every mode, that which shows least first.
    pub const ALL: [Self; 3] = [Self::Off, Self::Filter, Self::Step];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Filter => "filter",
            Self::Step => "step",
        }
    }

    /// Whether it can say that a step was done.
    pub fn shows(self, step: Step) -> bool {
        match self {
            Self::Off => false,
            Self::Filter => step.is_visible(),
            Self::Step => true,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|mode| mode.word() == text).ok_or("expected off, filter or step")
    }
}
