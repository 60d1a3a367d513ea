//! What a user asks for beside a plain guest: memory, who starts, what ends it, what the host does to it.
//!
//! Plain data with the texts of the command line; docs/plain-guests.md tells what each does.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use stallbench_core::{MOST_MEMORY, taken};
use stallbench_state::program::{PlainProgram, ProgramError};
use thiserror::Error;

use crate::nearest::did_you_mean;

/// Bytes of the unit in which memory is asked for.
const MEBIBYTE: u64 = 1 << 20;
/// Memory where nothing else is asked for, in that unit.
pub const USUAL_MEMORY: u64 = 64;
/// The least and the most memory, in that unit.
pub const MEMORY: std::ops::RangeInclusive<u64> = 2..=MOST_MEMORY / MEBIBYTE;

/// Who starts application processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aps {
    /// The guest, by INIT and SIPI.
    #[default]
    Parked,
    /// The host: they start where vCPU 0 does.
    Started,
}

/// What ends a guest well, beside status 0 at the exit port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestEnd {
    /// Nothing else.
    #[default]
    ExitPort,
    /// A triple fault.
    Shutdown,
    /// That all vCPUs that came up halt with interrupts off.
    Halted,
}

/// A word on the command line that is none of those expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected {expected}{nearest}")]
pub struct NoSuchWord {
    expected: String,
    nearest: String,
}

impl Aps {
    const WORDS: [(&'static str, Self); 2] = [("parked", Self::Parked), ("started", Self::Started)];
}

impl GuestEnd {
    const WORDS: [(&'static str, Self); 3] =
        [("exit-port", Self::ExitPort), ("shutdown", Self::Shutdown), ("halted", Self::Halted)];
}

impl FromStr for Aps {
    type Err = NoSuchWord;

    fn from_str(text: &str) -> Result<Self, NoSuchWord> {
        word(&Self::WORDS, text)
    }
}

impl FromStr for GuestEnd {
    type Err = NoSuchWord;

    fn from_str(text: &str) -> Result<Self, NoSuchWord> {
        word(&Self::WORDS, text)
    }
}

impl fmt::Display for Aps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(&Self::WORDS, self))
    }
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(&Self::WORDS, self))
    }
}

fn name<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words.iter().find(|(_, other)| other == value).map_or("", |(word, _)| word)
}

fn word<T: Copy>(words: &[(&str, T)], text: &str) -> Result<T, NoSuchWord> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        NoSuchWord { expected: words.join(" or "), nearest: did_you_mean(text, words.iter().copied()) }
    })
}

/// Memory that the user declares to be ghost: written by the guest, read by no decision of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GhostSpan {
    /// Its first byte.
    pub address: u64,
    /// How many bytes, at least one.
    pub size: u64,
}

/// An NMI that the host sends once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostNmi {
    /// To which vCPU.
    pub vcpu: usize,
    /// How long after the start.
    pub after: Duration,
}

/// Why a text names no memory, or no NMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SyntaxError {
    /// A ghost span.
    #[error("expected ADDRESS+SIZE, as in 0x400000+64: numbers in decimal or with 0x, and a size of at least 1")]
    Ghost,
    /// An NMI.
    #[error("expected VCPU@MS, as in 1@250: a vcpu and milliseconds after the start, at most 86400000")]
    Nmi,
}

impl FromStr for GhostSpan {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let (address, size) = text.split_once('+').ok_or(SyntaxError::Ghost)?;
        let span = number(address)
            .zip(number(size))
            .filter(|(address, size)| *size > 0 && address.checked_add(*size).is_some());
        span.map(|(address, size)| Self { address, size }).ok_or(SyntaxError::Ghost)
    }
}

impl fmt::Display for GhostSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{}", self.address, self.size)
    }
}

impl FromStr for HostNmi {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let (vcpu, after) = text.split_once('@').ok_or(SyntaxError::Nmi)?;
        let after: u64 = after.parse().ok().filter(|ms| *ms <= 86_400_000).ok_or(SyntaxError::Nmi)?;
        let vcpu = vcpu.parse().map_err(|_| SyntaxError::Nmi)?;
        Ok(Self { vcpu, after: Duration::from_millis(after) })
    }
}

impl fmt::Display for HostNmi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.vcpu, self.after.as_millis())
    }
}

/// A number in decimal, or in hexadecimal with `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// All that is asked for beside the guest itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainOptions {
    /// Bytes of memory.
    pub memory: u64,
    /// Who starts application processors.
    pub aps: Aps,
    /// What ends it well.
    pub end: GuestEnd,
    /// Memory that decides nothing.
    pub ghost: Vec<GhostSpan>,
    /// What the host will do to it.
    pub nmis: Vec<HostNmi>,
    /// An attempt at a proof at this interval, instead of ever less often.
    pub suspect_every: Option<Duration>,
}

impl Default for PlainOptions {
    fn default() -> Self {
        Self {
            memory: USUAL_MEMORY * MEBIBYTE,
            aps: Aps::default(),
            end: GuestEnd::default(),
            ghost: Vec::new(),
            nmis: Vec::new(),
            suspect_every: None,
        }
    }
}

/// Why a guest cannot be run as asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Its memory is too small for the stacks.
    #[error("--memory {}: no room for the stacks of {vcpus} vCPUs, 16 KiB each", .memory / MEBIBYTE)]
    Stacks {
        /// Bytes of memory.
        memory: u64,
        /// Number of vCPUs.
        vcpus: usize,
    },
    /// It does not fit.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Ghost memory beyond its memory.
    #[error("--ghost {span}: not in the {memory:#x} bytes of memory")]
    Ghost {
        /// As asked for.
        span: GhostSpan,
        /// Bytes of memory.
        memory: u64,
    },
    /// An NMI to a vCPU that it does not have.
    #[error("--nmi {nmi}: there are {vcpus} vCPUs, numbered from 0")]
    Nmi {
        /// As asked for.
        nmi: HostNmi,
        /// Number of vCPUs.
        vcpus: usize,
    },
}

impl PlainOptions {
    /// With that many MiB of memory.
    pub fn with_memory(self, mebibytes: u64) -> Self {
        Self { memory: mebibytes * MEBIBYTE, ..self }
    }

    /// Refuses what cannot be run on that many vCPUs.
    pub fn check(&self, program: &PlainProgram, vcpus: usize) -> Result<(), OptionsError> {
        let memory = self.memory;
        let taken = taken(memory, vcpus).ok_or(OptionsError::Stacks { memory, vcpus })?;
        program.check_room(memory, &taken)?;
        if let Some(&span) = self.ghost.iter().find(|span| span.address + span.size > memory) {
            return Err(OptionsError::Ghost { span, memory });
        }
        match self.nmis.iter().find(|nmi| nmi.vcpu >= vcpus) {
            Some(&nmi) => Err(OptionsError::Nmi { nmi, vcpus }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words_are_those_of_the_command_line() {
        assert_eq!("started".parse(), Ok(Aps::Started));
        assert_eq!("halted".parse(), Ok(GuestEnd::Halted));
        let error = "exitport".parse::<GuestEnd>().expect_err("no such word").to_string();
        assert!(
            error.starts_with("expected exit-port or shutdown or halted") && error.contains("exit-port"),
            "{error}"
        );
    }

    #[test]
    fn spans_and_nmis_are_what_they_print_as() {
        for text in ["0x400000+64", "0x0+1"] {
            assert_eq!(text.parse::<GhostSpan>().map(|span| span.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("16+0x10".parse(), Ok(GhostSpan { address: 16, size: 16 }));
        assert_eq!("3@250".parse::<HostNmi>().map(|nmi| nmi.to_string()), Ok("3@250".to_owned()));
    }

    #[test]
    fn spans_and_nmis_that_are_none_are_refused() {
        for text in ["", "5", "5+", "+5", "5+0", "0xffffffffffffffff+1", "-1+1", "1+2+3"] {
            assert_eq!(text.parse::<GhostSpan>(), Err(SyntaxError::Ghost), "{text}");
        }
        for text in ["", "1", "1@", "@1", "x@1", "1@-1", "1@86400001", "-1@1"] {
            assert_eq!(text.parse::<HostNmi>(), Err(SyntaxError::Nmi), "{text}");
        }
    }
}
