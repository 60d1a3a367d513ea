//! The note of a vCPU: everything that was captured of it, as JSON.
//!
//! The structures here mirror those of [`crate::machine`], so that the layout of files does not change with them. Numbers that
//! are bits or addresses are strings of hexadecimal digits. A group that could not be read is kept with its reason.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::malformed;
use super::{DumpError, Part};
use crate::apic::LocalApic;
use crate::certificate::Word;
use crate::machine::{
    DescriptorTable, Events, Exception, Group, MpState, Registers, Segment, SystemRegisters, Unread, VcpuState,
};
use crate::mtrr::MtrrState;

/// A vCPU as a note.
pub(super) fn to_note(vcpu: &VcpuState) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Vcpu {
        index: vcpu.index,
        registers: Read::of(&vcpu.registers),
        system: Read::of(&vcpu.system),
        apic: Read::of(&vcpu.apic),
        events: Read::of(&vcpu.events),
        mp_state: Read::of(&vcpu.mp_state),
        mtrr: vcpu.mtrr.as_ref().map(Read::of),
        msrs: vcpu.msrs.as_ref().map(Read::of),
        ran_ns: u64::try_from(vcpu.ran.as_nanos()).unwrap_or(u64::MAX),
    })
}

/// The vCPU of that index as a note has it.
pub(super) fn read(note: &[u8], index: usize) -> Result<VcpuState, DumpError> {
    let vcpu: Vcpu = serde_json::from_slice(note).map_err(|error| malformed(Part::Vcpu(index), error))?;
    if vcpu.index != index {
        return Err(malformed(Part::Vcpu(index), format!("it is that of vcpu{}", vcpu.index)));
    }
    Ok(VcpuState {
        index,
        registers: vcpu.registers.into_group(),
        system: vcpu.system.into_group(),
        apic: vcpu.apic.into_group(),
        events: vcpu.events.into_group(),
        mp_state: vcpu.mp_state.into_group(),
        mtrr: vcpu.mtrr.map(Read::into_group),
        msrs: vcpu.msrs.map(Read::into_group),
        ran: Duration::from_nanos(vcpu.ran_ns),
    })
}

#[derive(Serialize, Deserialize)]
struct Vcpu {
    index: usize,
    registers: Read<RegistersNote>,
    system: Read<SystemNote>,
    apic: Read<ApicNote>,
    events: Read<EventsNote>,
    mp_state: Read<MpStateNote>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtrr: Option<Read<MtrrNote>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    msrs: Option<Read<MsrsNote>>,
    ran_ns: u64,
}

/// A group, or why it could not be read.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Read<T> {
    Ok(T),
    Unread { what: String, reason: String },
}

impl<T> Read<T> {
    fn of<S>(group: &Group<S>) -> Self
    where
        for<'s> T: From<&'s S>,
    {
        match group {
            Ok(state) => Self::Ok(T::from(state)),
            Err(Unread { what, reason }) => Self::Unread { what: what.to_string(), reason: reason.clone() },
        }
    }

    fn into_group<S: From<T>>(self) -> Group<S> {
        match self {
            Self::Ok(note) => Ok(S::from(note)),
            Self::Unread { what, reason } => Err(Unread { what: what.into(), reason }),
        }
    }
}

/// A structure of the same fields as `$state`, each converted.
macro_rules! mirror {
    ($note:ident of $state:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[derive(Serialize, Deserialize)]
        struct $note { $($field: $type),* }

        impl From<&$state> for $note {
            fn from(state: &$state) -> Self {
                Self { $($field: Convert::convert(state.$field)),* }
            }
        }

        impl From<$note> for $state {
            fn from(note: $note) -> Self {
                Self { $($field: Convert::convert(note.$field)),* }
            }
        }

        impl Convert<$state> for $note {
            fn convert(self) -> $state {
                $state::from(self)
            }
        }

        impl Convert<$note> for $state {
            fn convert(self) -> $note {
                $note::from(&self)
            }
        }
    };
}

/// From a field of the one to that of the other.
trait Convert<T> {
    fn convert(self) -> T;
}

impl<T> Convert<T> for T {
    fn convert(self) -> T {
        self
    }
}

impl Convert<Word> for u64 {
    fn convert(self) -> Word {
        Word(self)
    }
}

impl Convert<u64> for Word {
    fn convert(self) -> u64 {
        self.0
    }
}

/// Fields one after the other, each on its own.
macro_rules! each {
    ($from:ty => $to:ty) => {
        impl<const N: usize> Convert<[$to; N]> for [$from; N] {
            fn convert(self) -> [$to; N] {
                self.map(Convert::convert)
            }
        }
    };
}

each!(u64 => Word);
each!(Word => u64);
each!((u64, u64) => (Word, Word));
each!((Word, Word) => (u64, u64));

impl Convert<(Word, Word)> for (u64, u64) {
    fn convert(self) -> (Word, Word) {
        (Word(self.0), Word(self.1))
    }
}

impl Convert<(u64, u64)> for (Word, Word) {
    fn convert(self) -> (u64, u64) {
        (self.0.0, self.1.0)
    }
}

mirror!(RegistersNote of Registers {
    rax: Word, rbx: Word, rcx: Word, rdx: Word, rsi: Word, rdi: Word, rsp: Word, rbp: Word, r8: Word, r9: Word, r10: Word,
    r11: Word, r12: Word, r13: Word, r14: Word, r15: Word, rip: Word, rflags: Word,
});
mirror!(SegmentNote of Segment { selector: u16, base: Word, limit: u32, access: u32 });
mirror!(TableNote of DescriptorTable { base: Word, limit: u16 });
mirror!(SystemNote of SystemRegisters {
    cr0: Word, cr2: Word, cr3: Word, cr4: Word, cr8: Word, efer: Word, apic_base: Word, cs: SegmentNote, ds: SegmentNote,
    es: SegmentNote, fs: SegmentNote, gs: SegmentNote, ss: SegmentNote, tr: SegmentNote, ldt: SegmentNote, gdt: TableNote,
    idt: TableNote,
});
mirror!(ApicNote of LocalApic {
    x2apic: bool, id: u32, tpr: u32, ppr: u32, ldr: u32, dfr: u32, svr: u32, esr: u32, icr: Word, irr: [u32; 8], isr: [u32; 8],
    tmr: [u32; 8], lvt_timer: u32, lvt_lint0: u32, lvt_lint1: u32, lvt_error: u32,
});
mirror!(ExceptionNote of Exception { vector: u8, error: Option<u32> });
mirror!(EventsNote of Events {
    nmi_pending: u8, nmi_injected: bool, nmi_masked: bool, interrupt_injected: Option<u8>, interrupt_shadow: bool,
    exception: Option<ExceptionNote>, triple_fault_pending: bool, system_management: bool,
});
mirror!(MtrrNote of MtrrState { default_type: Word, ranges: [(Word, Word); 8], fixed: [Word; 11], pat: Word });

impl Convert<Option<ExceptionNote>> for Option<Exception> {
    fn convert(self) -> Option<ExceptionNote> {
        self.map(Convert::convert)
    }
}

impl Convert<Option<Exception>> for Option<ExceptionNote> {
    fn convert(self) -> Option<Exception> {
        self.map(Convert::convert)
    }
}

/// Indices and values.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Vec<(Word, Word)>", into = "Vec<(Word, Word)>")]
struct MsrsNote(Vec<(u32, u64)>);

impl From<MsrsNote> for Vec<(Word, Word)> {
    fn from(note: MsrsNote) -> Self {
        note.0.into_iter().map(|(index, value)| (Word(index.into()), Word(value))).collect()
    }
}

impl TryFrom<Vec<(Word, Word)>> for MsrsNote {
    type Error = &'static str;

    fn try_from(note: Vec<(Word, Word)>) -> Result<Self, Self::Error> {
        let msr = |(index, value): (Word, Word)| Some((u32::try_from(index.0).ok()?, value.0));
        let msrs: Option<_> = note.into_iter().map(msr).collect();
        msrs.map(Self).ok_or("the index of an MSR has more than 32 bits")
    }
}

impl From<&Vec<(u32, u64)>> for MsrsNote {
    fn from(msrs: &Vec<(u32, u64)>) -> Self {
        Self(msrs.clone())
    }
}

impl From<MsrsNote> for Vec<(u32, u64)> {
    fn from(note: MsrsNote) -> Self {
        note.0
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MpStateNote {
    Runnable,
    Uninitialized,
    InitReceived,
    Halted,
    SipiReceived,
    Other(u32),
}

impl From<&MpState> for MpStateNote {
    fn from(state: &MpState) -> Self {
        match *state {
            MpState::Runnable => Self::Runnable,
            MpState::Uninitialized => Self::Uninitialized,
            MpState::InitReceived => Self::InitReceived,
            MpState::Halted => Self::Halted,
            MpState::SipiReceived => Self::SipiReceived,
            MpState::Other(number) => Self::Other(number),
        }
    }
}

impl From<MpStateNote> for MpState {
    fn from(note: MpStateNote) -> Self {
        match note {
            MpStateNote::Runnable => Self::Runnable,
            MpStateNote::Uninitialized => Self::Uninitialized,
            MpStateNote::InitReceived => Self::InitReceived,
            MpStateNote::Halted => Self::Halted,
            MpStateNote::SipiReceived => Self::SipiReceived,
            MpStateNote::Other(number) => Self::Other(number),
        }
    }
}
