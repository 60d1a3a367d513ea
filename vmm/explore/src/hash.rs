//! A name of 128 bits for a state of the machine: the same in every search, on every host, whatever numbers its parts have there.
//!
//! It is made of what tells states apart: of each vCPU what it is parked at, its registers, devices and memory that is not as it was
//! at the start line; its local APIC; the words of the arena that are not as they were then. States are still compared in full: a
//! hash is what traces check themselves by, and decides nothing.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use stallbench_core::controlled::ProcessorState;
use stallbench_state::machine::Registers;

use crate::apic::Apic;
use crate::devices::Devices;
use crate::local::{Identity, Parked};

/// The first 128 bits of a SHA-256, written in 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateHash(u128);

/// Digits of a hash.
const DIGITS: usize = 32;

impl StateHash {
    /// The hash of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut content = Content::default();
        content.bytes(bytes);
        content.end()
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for StateHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex =
            text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or("expected 32 hexadecimal digits")
    }
}

/// Content on its way into a hash. Each piece has a length of its own or goes with it, so that no two contents look alike.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content(Sha256);

impl Content {
    pub(crate) fn word(&mut self, word: u64) -> &mut Self {
        self.0.update(word.to_le_bytes());
        self
    }

    pub(crate) fn words(&mut self, words: impl IntoIterator<Item = u64>) -> &mut Self {
        words.into_iter().for_each(|word| _ = self.word(word));
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.word(bytes.len() as u64).0.update(bytes);
        self
    }

    pub(crate) fn hash(&mut self, hash: StateHash) -> &mut Self {
        self.0.update(hash.0.to_be_bytes());
        self
    }

    pub(crate) fn end(self) -> StateHash {
        let digest = self.0.finalize();
        StateHash(digest.iter().take(DIGITS / 2).fold(0, |hash, byte| hash << 8 | u128::from(*byte)))
    }
}

/// The hash of the state of one vCPU.
pub(crate) fn of_vcpu(identity: &Identity) -> StateHash {
    let Identity { parked, processor, devices, memory } = identity;
    let mut content = Content::default();
    feed_parked(&mut content, parked);
    feed_processor(&mut content, processor);
    feed_devices(&mut content, devices);
    content.bytes(memory);
    content.end()
}

/// What a local APIC adds.
pub(crate) fn feed_apic(content: &mut Content, apic: &Apic) {
    let Apic { irr, isr, nmi, init, start_up } = apic;
    content.words(irr.iter().chain(isr).map(|word| u64::from(*word))).word((*nmi).into());
    // Nothing where none is pending: so it was before there was any, and traces of that time are followed.
    if *init || start_up.is_some() {
        content.words([(*init).into(), start_up.map_or(u64::MAX, u64::from)]).bytes(b"init");
    }
}

fn feed_parked(content: &mut Content, parked: &Parked) {
    match parked {
        Parked::Read { address, size, update } => content.words([1, *address, (*size).into(), (*update).into()]),
        Parked::Write { address, size, value, before } => {
            // No instruction lies at the last byte.
            content.words([2, *address, (*size).into(), *value, before.unwrap_or(u64::MAX)])
        }
        Parked::Send { icr } => content.words([3, *icr]),
        Parked::Open => content.word(4),
        Parked::Halting => content.word(5),
        Parked::Halted => content.word(6),
        Parked::Off => content.word(7),
        Parked::Dead(why) => content.word(8).bytes(why.as_bytes()),
        Parked::Enable { svr } => content.words([10, (*svr).into()]),
        Parked::Waits => content.word(11),
        Parked::Drain { all } => content.words([9, (*all).into()]),
    };
}

fn feed_processor(content: &mut Content, processor: &ProcessorState) {
    let ProcessorState { general, cr0, cr2, cr4, nmi_masked, shadow } = *processor;
    let Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
        general;
    content.words([rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]);
    content.words([cr0, cr2, cr4, nmi_masked.into(), shadow.into()]);
}

fn feed_devices(content: &mut Content, devices: &Devices) {
    let Devices { apic_base, icr_high, svr, tpr, msrs, calls } = devices;
    content.words([*apic_base, (*icr_high).into(), (*svr).into(), (*tpr).into(), *calls, msrs.len() as u64]);
    content.words(msrs.iter().flat_map(|(index, value)| [u64::from(*index), *value]));
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hash_is_read_as_it_is_written_and_nothing_else_is() {
        let hash = StateHash::of(b"state");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let text = hash.to_string();
        for wrong in [&text[1..], "", "x", &format!("{text}0"), &text.replace(|c: char| c.is_ascii_digit(), "+")] {
            assert!(wrong.parse::<StateHash>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hash_of_known_content_is_known() {
        // SHA-256 of the length in 8 bytes, little-endian, and the bytes: traces of other versions rest on it.
        assert_eq!(StateHash::of(b"").to_string(), "af5570f5a1810b7af78caf4bc70a660f");
    }

    #[test]
    fn pieces_do_not_run_into_each_other() {
        let of = |one: &[u8], other: &[u8]| {
            let mut content = Content::default();
            content.bytes(one).bytes(other);
            content.end()
        };
        assert_ne!(of(b"ab", b"c"), of(b"a", b"bc"));
    }
}
