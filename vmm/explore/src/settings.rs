//! What a search explores: given once, with its machine.

use std::fmt;
use std::str::FromStr;

/// Stores that a buffer holds, if nothing else is said: more than the payload does between two of its drains. What clears or copies an
/// object of 0x88 bytes makes one a byte.
const BUFFER: usize = 256;

/// What a search explores.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// In which order others see what a vCPU does.
    pub model: Model,
    /// How KVM is asked what a vCPU does from one stop to the next.
    pub passages: Passages,
    /// Where interrupts and NMIs are delivered.
    pub irq: Irq,
    /// A store that is held back comes to memory at any time, not just when somebody is about to meet it there. What is found is the
    /// same; a test compares the two.
    pub flushes_any_time: bool,
    /// Interrupts come to vCPUs that halt, and to no others: not all schedules. For a test that sees what is missing then.
    pub only_halted_take_interrupts: bool,
}

/// Where interrupts and NMIs are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irq {
    /// At the stops of their vCPU, and where it can take one between two stops at which it cannot. That is all there is to their place
    /// as long as a handler and what it interrupts share no private memory and no register, which is checked.
    #[default]
    Visible,
    /// In front of every instruction where the processor takes them.
    EveryInsn,
}

/// How KVM is asked what a vCPU does from one stop to the next: all come to the same, which tests see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passages {
    /// It runs until it stops.
    #[default]
    Free,
    /// It executes one instruction at a time.
    Stepped,
    /// It does both; where they differ nothing is explored.
    Compared,
}

/// A memory model: in which order others see what a vCPU does. As text: `sc`, or `tso icr=buffer buffer=256`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// Sequential consistency: in the order in which it does it.
    #[default]
    Sc,
    /// x86-TSO: a store can come later than what its vCPU does next.
    Tso {
        /// When a write to the x2APIC's interrupt command register is seen.
        icr: Icr,
        /// Stores that a vCPU holds back at most.
        buffer: usize,
    },
}

/// When others see a write to the interrupt command register of an x2APIC, of which the manual says that it may complete before the
/// stores in front of it are visible (SDM 3A 11.12.3). That of an xAPIC is a store to memory that is not cached: it comes behind them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Icr {
    /// Behind all stores in front of it.
    Ordered,
    /// Before stores that are still held back.
    #[default]
    Buffer,
    /// Before all that its vCPU does in front of it, but for a serialising instruction, or MFENCE with LFENCE. No search follows that.
    Early,
}

impl Settings {
    /// A model, and all else as it is if nothing is said.
    pub fn under(model: Model) -> Self {
        Self { model, ..Self::default() }
    }
}

impl Model {
    /// x86-TSO as it is explored if nothing else is said.
    pub fn tso() -> Self {
        Self::Tso { icr: Icr::default(), buffer: BUFFER }
    }
}

/// As reports have it: the model, and where interrupts come if that is not at stops.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.irq {
            Irq::Visible => self.model.fmt(f),
            Irq::EveryInsn => write!(f, "{} irq=every-insn", self.model),
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sc => f.write_str("sc"),
            Self::Tso { icr, buffer } => write!(f, "tso icr={icr} buffer={buffer}"),
        }
    }
}

impl FromStr for Model {
    type Err = &'static str;

    /// Reads what its [`Display`](fmt::Display) writes, of models that are explored: `early` is none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "expected sc, or tso icr=ordered|buffer buffer=N";
        if text == "sc" {
            return Ok(Self::Sc);
        }
        let (icr, buffer) = text.strip_prefix("tso icr=").and_then(|rest| rest.split_once(" buffer=")).ok_or(wrong)?;
        let icr = [Icr::Ordered, Icr::Buffer].into_iter().find(|one| one.to_string() == icr);
        let buffer = buffer.bytes().all(|byte| byte.is_ascii_digit()).then(|| buffer.parse().ok()).flatten();
        Ok(Self::Tso { icr: icr.ok_or(wrong)?, buffer: buffer.filter(|buffer| *buffer > 0).ok_or(wrong)? })
    }
}

impl fmt::Display for Icr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ordered => "ordered",
            Self::Buffer => "buffer",
            Self::Early => "early",
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn model_is_read_as_it_is_written_and_nothing_else_is() {
        for model in [Model::Sc, Model::tso(), Model::Tso { icr: Icr::Ordered, buffer: 3 }] {
            assert_eq!(model.to_string().parse(), Ok(model));
        }
        for wrong in ["", "tso", "tso icr=early buffer=3", "tso icr=buffer buffer=0", "tso icr=buffer buffer=+3"] {
            assert!(wrong.parse::<Model>().is_err(), "{wrong}");
        }
    }
}
