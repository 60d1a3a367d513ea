//! The captured state of a machine's vCPUs.
//!
//! Each group of registers is read on its own: one that cannot be read costs no other. Whoever draws conclusions from a group
//! has to look at its [`Unread`] first; [`VcpuState::deliverable`] does.

use std::borrow::Cow;
use std::time::Duration;

use thiserror::Error;

use crate::apic::LocalApic;
use crate::mtrr::MtrrState;

/// RFLAGS.IF (SDM 1 3.4.3.3).
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.DF: string instructions go down.
pub const RFLAGS_DF: u64 = 1 << 10;

/// A group of registers, or why it could not be read.
pub type Group<T> = Result<T, Unread>;

/// A group of registers that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what} could not be read: {reason}")]
pub struct Unread {
    /// The group.
    pub what: Cow<'static, str>,
    /// What the kernel said.
    pub reason: String,
}

/// A machine, all of its vCPUs stopped at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineState {
    /// The vCPUs, by index.
    pub vcpus: Vec<VcpuState>,
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// Its number, which is its initial APIC id too.
    pub index: usize,
    /// General registers.
    pub registers: Group<Registers>,
    /// Control registers, segments and descriptor tables.
    pub system: Group<SystemRegisters>,
    /// Local APIC.
    pub apic: Group<LocalApic>,
    /// Interrupts and exceptions on their way.
    pub events: Group<Events>,
    /// Whether it runs, halts, or was never started.
    pub mp_state: Group<MpState>,
    /// Memory type range registers; only in a full capture.
    pub mtrr: Option<Group<MtrrState>>,
    /// Model-specific registers, by ascending index, those of [`MSRS`](crate::msr::MSRS) that the host has; only in a full capture.
    pub msrs: Option<Group<Vec<(u32, u64)>>>,
    /// CPU time that its thread has had since it was created.
    pub ran: Duration,
}

/// General registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Registers {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RSP.
    pub rsp: u64,
    /// RBP.
    pub rbp: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
    /// R11.
    pub r11: u64,
    /// R12.
    pub r12: u64,
    /// R13.
    pub r13: u64,
    /// R14.
    pub r14: u64,
    /// R15.
    pub r15: u64,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

impl Registers {
    /// Whether RFLAGS.IF lets maskable interrupts in.
    pub fn interrupts_enabled(&self) -> bool {
        self.rflags & RFLAGS_IF != 0
    }
}

/// A segment register with its hidden part (SDM 3A 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Access rights, laid out as in a descriptor: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15; unusable 16.
    pub access: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Control registers, segments and descriptor tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8, the task priority class.
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// CS.
    pub cs: Segment,
    /// DS.
    pub ds: Segment,
    /// ES.
    pub es: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// SS.
    pub ss: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldt: Segment,
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR.
    pub idt: DescriptorTable,
}

impl SystemRegisters {
    /// IA32_APIC_BASE.EXTD: the local APIC is in x2APIC mode (SDM 3A 11.12.1).
    pub fn is_x2apic(&self) -> bool {
        self.apic_base & 1 << 10 != 0
    }
}

/// Interrupts and exceptions that the vCPU has accepted and not yet taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// NMIs that wait to be taken.
    pub nmi_pending: u8,
    /// An NMI is being taken.
    pub nmi_injected: bool,
    /// NMIs are held back until the next IRET.
    pub nmi_masked: bool,
    /// The interrupt that is being taken: it has left the IRR.
    pub interrupt_injected: Option<u8>,
    /// The instruction behind `sti` or `mov ss`: interrupts wait for its end.
    pub interrupt_shadow: bool,
    /// The exception that is about to be taken.
    pub exception: Option<Exception>,
    /// A triple fault is about to be reported.
    pub triple_fault_pending: bool,
    /// An SMI is pending, or being handled: what comes of it is a matter of a mode that no capture shows.
    pub system_management: bool,
}

/// An exception on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, where it has one.
    pub error: Option<u32>,
}

/// What a vCPU does, as KVM sees it (KVM api.rst 4.38).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MpState {
    /// It executes instructions.
    Runnable,
    /// An application processor that nobody has sent an INIT to.
    Uninitialized,
    /// It has had an INIT and waits for a SIPI.
    InitReceived,
    /// It has executed `hlt` and waits for an interrupt.
    Halted,
    /// It has had a SIPI and is about to start.
    SipiReceived,
    /// Another number.
    Other(u32),
}

impl MpState {
    /// Whether the vCPU has been started: it executes instructions, or halts after some.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Runnable | Self::Halted | Self::SipiReceived)
    }
}

/// What makes a vCPU leave the instruction it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deliverable {
    /// An NMI.
    Nmi,
    /// A maskable interrupt.
    Vector(u8),
    /// An exception that is already on its way.
    Exception(u8),
    /// An SMI, or what its handler leads to.
    Smi,
    /// A register group that decides it could not be read: nothing may be concluded.
    Unknown,
}

impl core::fmt::Display for Deliverable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Nmi => f.write_str("an NMI"),
            Self::Vector(vector) => write!(f, "vector {vector:#x}"),
            Self::Exception(vector) => write!(f, "exception {vector}"),
            Self::Smi => f.write_str("an SMI"),
            Self::Unknown => f.write_str("what could not be read"),
        }
    }
}

impl VcpuState {
    /// What the vCPU would take next if it ran on, if anything.
    ///
    /// An interrupt shadow only puts it off by an instruction, so it does not count. In service: kvm_pvm keeps neither ISR nor
    /// PPR (both read 0 in a handler), other hosts do; they count where they are there.
    pub fn deliverable(&self) -> Option<Deliverable> {
        let (Ok(registers), Ok(apic), Ok(events)) = (&self.registers, &self.apic, &self.events) else {
            return Some(Deliverable::Unknown);
        };
        events.deliverable().or_else(|| {
            let vector = apic.deliverable().filter(|_| registers.interrupts_enabled());
            vector.map(Deliverable::Vector)
        })
    }
}

impl Events {
    /// What the vCPU takes next whatever RFLAGS.IF and its local APIC say.
    fn deliverable(&self) -> Option<Deliverable> {
        if let Some(exception) = self.exception {
            return Some(Deliverable::Exception(exception.vector));
        }
        if self.system_management {
            return Some(Deliverable::Smi);
        }
        if self.nmi_injected || (self.nmi_pending > 0 && !self.nmi_masked) {
            return Some(Deliverable::Nmi);
        }
        self.interrupt_injected.map(Deliverable::Vector)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn vcpu() -> VcpuState {
        VcpuState {
            index: 0,
            registers: Ok(Registers { rflags: RFLAGS_IF, ..Registers::default() }),
            system: Ok(SystemRegisters::default()),
            apic: Ok(LocalApic { svr: 0x1ff, ..LocalApic::default() }),
            events: Ok(Events::default()),
            mp_state: Ok(MpState::Runnable),
            mtrr: None,
            msrs: None,
            ran: Duration::ZERO,
        }
    }

    fn request(vcpu: &mut VcpuState, vector: u8) {
        let apic = vcpu.apic.as_mut().expect("made above");
        apic.irr[usize::from(vector / 32)] |= 1 << (vector % 32);
    }

    #[test]
    fn requested_vector_with_interrupts_enabled_is_deliverable() {
        let mut vcpu = vcpu();
        assert_eq!(vcpu.deliverable(), None);
        request(&mut vcpu, 0xfb);
        assert_eq!(vcpu.deliverable(), Some(Deliverable::Vector(0xfb)));
    }

    #[test]
    fn requested_vector_with_interrupts_disabled_is_held() {
        let mut vcpu = vcpu();
        request(&mut vcpu, 0xfb);
        vcpu.registers = Ok(Registers::default());
        assert_eq!(vcpu.deliverable(), None);
    }

    #[test]
    fn nmi_masked_until_iret_is_held() {
        let mut vcpu = vcpu();
        vcpu.events = Ok(Events { nmi_pending: 1, nmi_masked: true, ..Events::default() });
        assert_eq!(vcpu.deliverable(), None);
        vcpu.events = Ok(Events { nmi_pending: 1, ..Events::default() });
        assert_eq!(vcpu.deliverable(), Some(Deliverable::Nmi));
    }

    #[test]
    fn smi_waits_for_nothing() {
        let mut vcpu = vcpu();
        vcpu.registers = Ok(Registers::default());
        vcpu.events = Ok(Events { system_management: true, ..Events::default() });
        assert_eq!(vcpu.deliverable(), Some(Deliverable::Smi));
    }

    #[test]
    fn interrupt_being_taken_needs_no_flag() {
        let mut vcpu = vcpu();
        vcpu.registers = Ok(Registers::default());
        vcpu.events = Ok(Events { interrupt_injected: Some(0x40), ..Events::default() });
        assert_eq!(vcpu.deliverable(), Some(Deliverable::Vector(0x40)));
    }

    #[test]
    fn group_not_read_leaves_it_unknown() {
        let mut vcpu = vcpu();
        vcpu.apic = Err(Unread { what: "the local apic".into(), reason: "EIO".into() });
        assert_eq!(vcpu.deliverable(), Some(Deliverable::Unknown));
    }
}
