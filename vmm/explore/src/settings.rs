//! What a search explores: given once, with its machine.

use std::fmt;
use std::str::FromStr;

/// Stores that a buffer holds, if nothing else is said: more than the payload does between two of its drains. What clears or copies an
/// object of 0x88 bytes makes one a byte.
const BUFFER: usize = 256;

/// Behind a model, where interrupts come at every instruction.
const EVERY_INSN: &str = " irq=every-insn";

/// What a search explores.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// In which order others see what a vCPU does.
    pub model: Model,
    /// How KVM is asked what a vCPU does from one stop to the next.
    pub passages: Passages,
    /// Where interrupts and NMIs are delivered.
    pub irq: Irq,
    /// What is done otherwise than a search does it that says something: for tests alone.
    pub varied: Varied,
}

/// What a test has done otherwise, to see that it makes a difference, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Varied {
    /// Nothing: all schedules.
    #[default]
    Nothing,
    /// A store that is held back comes to memory at any time, not just when somebody is about to meet it there: what is found is the same.
    FlushesAnyTime,
    /// No store is held back, whatever the model says: not all schedules.
    NoFlush,
    /// No step is one with the step before: what is found is the same.
    FusesNothing,
    /// Interrupts come to vCPUs that halt, and to no others: not all schedules.
    OnlyHaltedTakeInterrupts,
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
    /// Before all that its vCPU does in front of it, up to a serialising instruction, or MFENCE with LFENCE.
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
            Irq::EveryInsn => write!(f, "{}{EVERY_INSN}", self.model),
        }
    }
}

impl FromStr for Settings {
    type Err = &'static str;

    /// Reads what its [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (model, irq) = match text.strip_suffix(EVERY_INSN) {
            Some(model) => (model, Irq::EveryInsn),
            None => (text, Irq::Visible),
        };
        Ok(Self { model: model.parse()?, irq, ..Self::default() })
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

    /// Reads what its [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "expected sc, or tso icr=ordered|buffer|early buffer=N";
        if text == "sc" {
            return Ok(Self::Sc);
        }
        let (icr, buffer) = text.strip_prefix("tso icr=").and_then(|rest| rest.split_once(" buffer=")).ok_or(wrong)?;
        let icr = [Icr::Ordered, Icr::Buffer, Icr::Early].into_iter().find(|one| one.to_string() == icr);
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
    fn settings_are_read_as_they_are_written() {
        for irq in [Irq::Visible, Irq::EveryInsn] {
            let settings = Settings { irq, ..Settings::under(Model::Sc) };
            let read: Settings = settings.to_string().parse().expect("what was written");
            assert_eq!((read.model, read.irq), (Model::Sc, irq));
        }
        assert!("sc irq=always".parse::<Settings>().is_err());
    }

    #[test]
    fn model_is_read_as_it_is_written_and_nothing_else_is() {
        let of = |icr| Model::Tso { icr, buffer: 3 };
        for model in [Model::Sc, Model::tso(), of(Icr::Ordered), of(Icr::Early)] {
            assert_eq!(model.to_string().parse(), Ok(model));
        }
        for wrong in ["", "tso", "tso icr=late buffer=3", "tso icr=buffer buffer=0", "tso icr=buffer buffer=+3"] {
            assert!(wrong.parse::<Model>().is_err(), "{wrong}");
        }
    }
}
