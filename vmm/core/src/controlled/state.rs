//! What of a processor differs from one moment of a controlled run to another.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, kvm_regs, kvm_segment,
    kvm_sregs, kvm_sync_regs, kvm_vcpu_events,
};
use stallbench_state::machine::Registers;
use thiserror::Error;

use crate::boot::moment::general;
use crate::vcpu::capture;

/// RFLAGS.TF: a debugger's, never the guest's.
const TF: u64 = 1 << 8;
/// RFLAGS.RF: whether a breakpoint at this instruction was met already.
const RF: u64 = 1 << 16;

/// The registers of a processor that a guest of the contract changes once it is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProcessorState {
    /// General registers; TF and RF are clear.
    pub general: Registers,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR4.
    pub cr4: u64,
    /// An NMI is being handled: the next is held until IRET (SDM 3A 7.7.1).
    pub nmi_masked: bool,
    /// The instruction before this one was STI: no interrupt comes in between (SDM 3A 7.8.3).
    pub shadow: bool,
}

/// CR0.CD and CR0.NW.
const CACHE_CONTROL: u64 = 0b11 << 29;

/// The registers of a processor that was reset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reset {
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
}

/// What is delivered before the next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inject {
    /// An external interrupt.
    Vector(u8),
    /// An NMI.
    Nmi,
    /// An INIT: there is no next instruction until a start-up interrupt comes.
    Init,
    /// A start-up interrupt of this vector, to a processor that waits for one.
    StartUp(u8),
}

/// A register has changed that no guest of the contract changes once it is up.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0} of a vcpu changed behind the start line")]
pub struct Moved(pub &'static str);

impl ProcessorState {
    /// Of what `KVM_RUN` brought, against what was kept.
    pub(super) fn of(sync: &kvm_sync_regs, kept: Option<&kvm_sregs>) -> Result<Self, Moved> {
        if let Some(kept) = kept {
            same_tables(kept, &sync.sregs)?;
        }
        let mut general = capture::general(&sync.regs);
        general.rflags &= !(TF | RF);
        Ok(Self {
            general,
            cr0: sync.sregs.cr0,
            cr2: sync.sregs.cr2,
            cr4: sync.sregs.cr4,
            nmi_masked: sync.events.nmi.masked != 0,
            shadow: sync.events.interrupt.shadow != 0,
        })
    }

    /// As `KVM_RUN` takes it: hidden parts of segments are as they were kept, whatever a delivery made of them.
    pub(super) fn into_sync(self, kept: &kvm_sregs, inject: Option<Inject>) -> kvm_sync_regs {
        let sregs = kvm_sregs { cr0: self.cr0, cr2: self.cr2, cr4: self.cr4, ..*kept };
        kvm_sync_regs { regs: general(&self.general), sregs, events: self.events(inject) }
    }

    fn events(&self, inject: Option<Inject>) -> kvm_vcpu_events {
        let mut events = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
            ..Default::default()
        };
        events.nmi.masked = self.nmi_masked.into();
        if self.shadow {
            // One bit of 8 (KVM api.rst 4.32).
            events.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
        }
        match inject {
            Some(Inject::Vector(vector)) => (events.interrupt.injected, events.interrupt.nr) = (1, vector),
            Some(Inject::Nmi) => events.nmi.injected = 1,
            Some(Inject::Init | Inject::StartUp(_)) | None => {}
        }
        events
    }
}

impl Reset {
    /// As an INIT leaves a processor in that state: as a reset does, but for CR0.CD and CR0.NW, which stay (SDM 3A table 10-1 and its
    /// note 2).
    pub(super) fn after_init(&self, state: &ProcessorState) -> ProcessorState {
        ProcessorState {
            general: capture::general(&self.regs),
            cr0: self.sregs.cr0 & !CACHE_CONTROL | state.cr0 & CACHE_CONTROL,
            cr2: self.sregs.cr2,
            cr4: self.sregs.cr4,
            nmi_masked: false,
            shadow: false,
        }
    }

    /// As a start-up interrupt has it begin (SDM 3A 9.4.4).
    pub(super) fn started(&self, vector: u8) -> Self {
        let mut started = *self;
        (started.sregs.cs.selector, started.sregs.cs.base) = (u16::from(vector) << 8, u64::from(vector) << 12);
        started.regs.rip = 0;
        started
    }
}

fn same_tables(kept: &kvm_sregs, now: &kvm_sregs) -> Result<(), Moved> {
    let segment =
        |of: fn(&kvm_sregs) -> &kvm_segment| (of(kept).selector, of(kept).base) == (of(now).selector, of(now).base);
    let checks = [
        ("cr3", kept.cr3 == now.cr3),
        // KVM tells nobody of a write where it has no local APIC.
        ("cr8", kept.cr8 == now.cr8),
        ("efer", kept.efer == now.efer),
        ("cs", segment(|sregs| &sregs.cs)),
        ("tr", segment(|sregs| &sregs.tr)),
        ("fs", segment(|sregs| &sregs.fs)),
        ("gs", segment(|sregs| &sregs.gs)),
        ("gdtr", kept.gdt.base == now.gdt.base),
        ("idtr", (kept.idt.base, kept.idt.limit) == (now.idt.base, now.idt.limit)),
    ];
    checks.into_iter().find(|(_, same)| !same).map_or(Ok(()), |(what, _)| Err(Moved(what)))
}
