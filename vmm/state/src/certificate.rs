//! Certificates: a finite set of states of a machine, closed under every transition, without progress.
//!
//! A machine that is in one of these states stays in them for ever, whatever the order in which its vCPUs run. The set is given
//! in parts. A [`Component`] is a vCPU, or some that pass changing memory to one another, with all the states that they can be
//! in; no component changes a byte that another one reads, so the states of the machine are all combinations of theirs. What
//! the states do not list is the same in all of them: [`Certificate::vcpus`] and [`Certificate::memory`].
//!
//! The file is JSON; numbers that may need 64 bits are strings (`"0x1f"`). Plain data: who makes a certificate and who checks it
//! share these types and nothing else.

mod bytes;
mod word;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use bytes::Bytes;
pub use word::Word;

use crate::machine::{DescriptorTable, Registers, Segment, SystemRegisters};

/// The version of the format that is written.
pub const VERSION: u32 = 1;
/// Bytes of a page, as [`Memory::pages`] counts.
pub const PAGE: u64 = 4096;

/// A proof that a machine makes no progress any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Version of the format.
    pub stallbench_certificate: u32,
    /// SHA-256 of the payload's ELF file, in hexadecimal digits.
    pub payload: String,
    /// The run that it is about; decides nothing.
    pub run: String,
    /// What does not change of each vCPU, by number.
    pub vcpus: Vec<Processor>,
    /// The states. Each vCPU is in exactly one component.
    pub components: Vec<Component>,
    /// Memory that is set aside: it may hold anything in all states, and anybody may change it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aside: Vec<Span>,
    /// The memory that the vCPUs read, as it is in all states but for the cells of components.
    pub memory: Memory,
}

/// What is the same of a vCPU in all states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// CR0.
    pub cr0: Word,
    /// CR3.
    pub cr3: Word,
    /// CR4.
    pub cr4: Word,
    /// EFER.
    pub efer: Word,
    /// IA32_APIC_BASE.
    pub apic_base: Word,
    /// CS, DS, ES, FS, GS, SS, TR and LDT.
    pub segments: [SegmentRegister; 8],
    /// GDTR: base and limit.
    pub gdt: (Word, u16),
    /// IDTR: base and limit.
    pub idt: (Word, u16),
    /// Task priority of its local APIC.
    pub tpr: Word,
    /// Spurious interrupt vector register of its local APIC, with the software enable bit.
    pub svr: Word,
    /// Vectors that are requested, 32 a word.
    pub irr: [Word; 8],
    /// Vectors that are in service.
    pub isr: [Word; 8],
    /// Local vector table entry of its timer.
    pub lvt_timer: Word,
    /// NMIs that are pending.
    pub nmi_pending: u8,
    /// NMIs are held back.
    pub nmi_masked: bool,
}

/// A segment register: selector, base, limit, and access rights as [`Segment::access`] has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRegister(pub u16, pub Word, pub Word, pub Word);

/// Some vCPUs, and all states that they can be in together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Their numbers.
    pub vcpus: Vec<usize>,
    /// Memory that differs between states. Nobody outside reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<Span>,
    /// The states.
    pub states: Vec<State>,
    /// What leads from a state to a state: one edge for each state and each vCPU that runs in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<Edge>,
}

/// Guest-physical bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The first.
    pub address: Word,
    /// How many.
    pub size: u64,
}

/// A state of a component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    /// Its vCPUs, in the order of [`Component::vcpus`].
    pub vcpus: Vec<VcpuState>,
    /// What its cells hold, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<Bytes>,
}

/// What a vCPU does in a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Does {
    /// It executes the instruction at RIP next.
    #[default]
    Runs,
    /// It has executed `hlt`, and waits for an interrupt.
    Halts,
    /// It was never started.
    Absent,
}

/// A vCPU in a state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VcpuState {
    /// What it does.
    pub does: Does,
    /// Its general registers: RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS.
    pub registers: [Word; 18],
    /// Registers that are set aside: the state stands for all of their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aside: Vec<Aside>,
}

/// A register that may hold anything, within its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Aside {
    /// Its place in [`VcpuState::registers`]: a general register but RSP, or RFLAGS.
    pub register: usize,
    /// Its least value. Of RFLAGS: 0.
    pub least: Word,
    /// Its greatest value. Of RFLAGS: the flags that are set aside; the others are as they stand.
    pub most: Word,
}

/// Place of RIP in [`VcpuState::registers`].
pub const RIP: usize = 16;
/// Place of RFLAGS in [`VcpuState::registers`].
pub const RFLAGS: usize = 17;

/// A transition: the vCPU executes one instruction. A `rep` instruction is one, whatever its number of turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// Index of the state that it leaves.
    pub from: usize,
    /// Number of the vCPU.
    pub vcpu: usize,
    /// Index of the state that it leads to.
    pub to: usize,
}

/// Memory that is read: code, data and page tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Addresses of its pages, ascending.
    pub pages: Vec<Word>,
    /// What is not zero in them.
    pub runs: Vec<Run>,
}

/// Bytes of memory, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Address of the first.
    pub address: Word,
    /// The bytes.
    pub bytes: Bytes,
}

/// Why a file is no certificate that can be checked. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// It is no JSON, ends early, or lacks something.
    #[error("read it: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It is of another version.
    #[error("read version {found} of the format: this is version {VERSION}")]
    Version {
        /// The version that it has.
        found: u64,
    },
}

/// No more than the version.
#[derive(Deserialize)]
struct Versioned {
    stallbench_certificate: u64,
}

impl Certificate {
    /// Reads a certificate, whose contents are not looked at: a version that is not known is refused before its contents are.
    pub fn parse(text: &[u8]) -> Result<Self, CertificateError> {
        let Versioned { stallbench_certificate: found } = serde_json::from_slice(text)?;
        if found != u64::from(VERSION) {
            return Err(CertificateError::Version { found });
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// What [`Self::payload`] says of a payload that is this file.
    pub fn digest(payload: &[u8]) -> String {
        Sha256::digest(payload).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The file.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string(self).expect("strings, numbers and lists of them");
        json.push('\n');
        json
    }

    /// The number of states of the machine: all combinations of those of its components.
    pub fn states(&self) -> u128 {
        self.components.iter().fold(1, |states, component| states.saturating_mul(component.states.len() as u128))
    }
}

impl Memory {
    /// Takes pages out of memory by `read`, which fills a page; `None` where it cannot.
    pub fn take(
        pages: impl IntoIterator<Item = u64>,
        read: impl Fn(u64, &mut [u8; PAGE as usize]) -> bool,
    ) -> Option<Self> {
        let mut memory = Self::default();
        for page in pages {
            let mut bytes = [0; PAGE as usize];
            if !read(page, &mut bytes) {
                return None;
            }
            memory.pages.push(Word(page));
            memory.runs.extend(runs(page, &bytes));
        }
        Some(memory)
    }
}

/// What is not zero in a page, by groups of eight bytes.
fn runs(page: u64, bytes: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut end = 0;
    for (at, group) in (0..).step_by(8).zip(bytes.chunks(8)).filter(|(_, group)| group.iter().any(|byte| *byte != 0)) {
        match runs.last_mut().filter(|_| end == at) {
            Some(run) => run.bytes.0.extend(group),
            None => runs.push(Run { address: Word(page + at), bytes: Bytes(group.to_vec()) }),
        }
        end = at + 8;
    }
    runs
}

impl From<&Registers> for [Word; 18] {
    fn from(r: &Registers) -> Self {
        let Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
            *r;
        [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags].map(Word)
    }
}

impl From<&[Word; 18]> for Registers {
    fn from(words: &[Word; 18]) -> Self {
        let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] =
            words.map(|word| word.0);
        Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }
}

impl From<&Segment> for SegmentRegister {
    fn from(segment: &Segment) -> Self {
        let Segment { selector, base, limit, access } = *segment;
        Self(selector, Word(base), Word(limit.into()), Word(access.into()))
    }
}

impl Processor {
    /// With these system registers; its local APIC is that of a reset.
    pub fn with_system(system: &SystemRegisters) -> Self {
        let table = |table: &DescriptorTable| (Word(table.base), table.limit);
        let s = system;
        let segments = [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt].map(SegmentRegister::from);
        Self {
            cr0: Word(s.cr0),
            cr3: Word(s.cr3),
            cr4: Word(s.cr4),
            efer: Word(s.efer),
            apic_base: Word(s.apic_base),
            segments,
            gdt: table(&s.gdt),
            idt: table(&s.idt),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn certificate() -> Certificate {
        let state = State { vcpus: vec![VcpuState::default()], cells: vec![Bytes(vec![1, 0xff])] };
        Certificate {
            stallbench_certificate: VERSION,
            payload: "00".into(),
            run: "call/seed".into(),
            vcpus: vec![Processor::default()],
            components: vec![Component {
                vcpus: vec![0],
                cells: vec![Span { address: Word(0x40_0000), size: 2 }],
                states: vec![state],
                edges: vec![Edge { from: 0, vcpu: 0, to: 0 }],
            }],
            aside: vec![Span { address: Word(0x40_0010), size: 8 }],
            memory: Memory::default(),
        }
    }

    #[test]
    fn certificate_is_what_it_was_written_as() {
        let written = certificate();
        assert_eq!(Certificate::parse(written.to_json().as_bytes()).expect("its own file"), written);
    }

    #[test]
    fn file_that_ends_early_is_malformed_wherever_it_ends() {
        let json = certificate().to_json();
        for end in 0..json.len() - 2 {
            let cut = Certificate::parse(&json.as_bytes()[..end]);
            assert!(matches!(cut, Err(CertificateError::Malformed(_))), "{end}");
        }
    }

    #[test]
    fn other_version_is_refused_whatever_it_holds() {
        let refused = Certificate::parse(br#"{"stallbench_certificate": 2, "new": []}"#);
        assert!(matches!(refused, Err(CertificateError::Version { found: 2 })));
    }

    /// FIPS 180-4, example of one block.
    #[test]
    fn digest_is_that_of_the_standard() {
        let digest = Certificate::digest(b"abc");
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn memory_keeps_pages_and_what_is_not_zero_in_them() {
        let memory = Memory::take([0x1000, 0x3000], |page, bytes| {
            if page == 0x3000 {
                bytes[9] = 7;
                bytes[16] = 8;
                bytes[4095] = 9;
            }
            true
        });
        let memory = memory.expect("it can be read");
        assert_eq!(memory.pages, [Word(0x1000), Word(0x3000)]);
        let runs: Vec<_> = memory.runs.iter().map(|run| (run.address.0, run.bytes.0.len())).collect();
        assert_eq!(runs, [(0x3008, 16), (0x3ff8, 8)]);
        assert!(Memory::take([0x5000], |_, _| false).is_none());
    }
}
