//! A vCPU in a state that another machine was in.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI,
    Msrs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use stallbench_state::machine::{
    DescriptorTable, Events, MpState, Registers, Segment, SystemRegisters, Unread, VcpuState,
};
use stallbench_state::mtrr::MtrrState;

use super::registers::{RegisterError, failed};

/// Why a vCPU cannot be put into a state.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Part of it is not known.
    #[error("put it into a state: {0}")]
    Unread(#[from] Unread),
    /// KVM refused.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// Puts a vCPU into a state. KVM takes the mode of the local APIC from IA32_APIC_BASE, so system registers come before it.
pub(crate) fn place(fd: &VcpuFd, state: &VcpuState) -> Result<(), PlaceError> {
    let mp_state = state.mp_state.clone()?;
    // One that has got an INIT keeps its MTRRs and the mode of its local APIC, and waits.
    if !mp_state.is_up() && mp_state != MpState::InitReceived {
        return Ok(());
    }
    let sregs = system(&state.system.clone()?);
    fd.set_sregs(&sregs).map_err(failed("set its system registers", "KVM_SET_SREGS"))?;
    if let Some(mtrr) = &state.mtrr {
        set_mtrrs(fd, &mtrr.clone()?)?;
    }
    let lapic = kvm_lapic_state { regs: state.apic.clone()?.to_registers().map(u8::cast_signed) };
    fd.set_lapic(&lapic).map_err(failed("set its local apic", "KVM_SET_LAPIC"))?;
    fd.set_regs(&general(&state.registers.clone()?)).map_err(failed("set its general registers", "KVM_SET_REGS"))?;
    fd.set_vcpu_events(&events(&state.events.clone()?)).map_err(failed("set its events", "KVM_SET_VCPU_EVENTS"))?;
    let number = kvm_mp_state { mp_state: number(mp_state) };
    Ok(fd.set_mp_state(number).map_err(failed("start it", "KVM_SET_MP_STATE"))?)
}

fn set_mtrrs(fd: &VcpuFd, state: &MtrrState) -> Result<(), RegisterError> {
    let failed = failed("set the mtrrs", "KVM_SET_MSRS");
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    let entries: Vec<_> = state.msrs().map(entry).collect();
    let msrs = Msrs::from_entries(&entries).expect("fewer entries than KVM takes in one call");
    match fd.set_msrs(&msrs).map_err(&failed)? {
        set if set == entries.len() => Ok(()),
        _ => Err(failed(kvm_ioctls::Error::new(libc::EINVAL))),
    }
}

/// General registers as KVM takes them.
pub(crate) fn general(registers: &Registers) -> kvm_regs {
    let &Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
        registers;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn system(registers: &SystemRegisters) -> kvm_sregs {
    let &SystemRegisters { cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = registers;
    kvm_sregs {
        cs: segment(&registers.cs),
        ds: segment(&registers.ds),
        es: segment(&registers.es),
        fs: segment(&registers.fs),
        gs: segment(&registers.gs),
        ss: segment(&registers.ss),
        tr: segment(&registers.tr),
        ldt: segment(&registers.ldt),
        gdt: table(&registers.gdt),
        idt: table(&registers.idt),
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        ..Default::default()
    }
}

/// The attributes lie where a descriptor has them (SDM 3A 3.4.5).
fn segment(segment: &Segment) -> kvm_segment {
    let bit = |at: u32| (segment.access >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        // 4 bits, and 2.
        type_: (segment.access & 0xf) as u8,
        dpl: (segment.access >> 5 & 3) as u8,
        s: bit(4),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: bit(16),
        ..Default::default()
    }
}

fn table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}

fn events(events: &Events) -> kvm_vcpu_events {
    let mut kvm =
        kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
    kvm.nmi.pending = events.nmi_pending;
    kvm.nmi.masked = events.nmi_masked.into();
    // One bit of 8 (KVM api.rst 4.32).
    kvm.interrupt.shadow = if events.interrupt_shadow { KVM_X86_SHADOW_INT_STI as u8 } else { 0 };
    kvm
}

fn number(state: MpState) -> u32 {
    match state {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
        MpState::Other(other) => other,
    }
}
