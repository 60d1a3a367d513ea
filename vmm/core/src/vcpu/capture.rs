//! The state of one vCPU, read by its own thread while it stands still.
//!
//! General and system registers come with `KVM_RUN` itself where the host has `KVM_CAP_SYNC_REGS`. The rest is asked for anew:
//! what other vCPUs sent this one after it had stopped (interrupts, an NMI, a SIPI) is only in the kernel.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use stallbench_state::apic::LocalApic;
use stallbench_state::machine::{
    DescriptorTable, Events, Exception, Group, MpState, Registers, Segment, SystemRegisters, Unread,
};
use stallbench_state::msr::MSRS;
use stallbench_state::mtrr::MtrrState;

/// General registers, by ioctl.
pub(super) fn registers(vcpu: &VcpuFd) -> Group<Registers> {
    vcpu.get_regs().map(|regs| general(&regs)).map_err(|e| unread("general registers (KVM_GET_REGS)", e))
}

/// System registers, by ioctl.
pub(super) fn system(vcpu: &VcpuFd) -> Group<SystemRegisters> {
    vcpu.get_sregs().map(|sregs| system_registers(&sregs)).map_err(|e| unread("system registers (KVM_GET_SREGS)", e))
}

/// Local APIC.
pub(super) fn apic(vcpu: &VcpuFd, x2apic: bool) -> Group<LocalApic> {
    let page = |state: kvm_lapic_state| state.regs.map(|byte| byte.cast_unsigned());
    let state = vcpu.get_lapic().map_err(|e| unread("local apic (KVM_GET_LAPIC)", e))?;
    Ok(LocalApic::from_registers(&page(state), x2apic))
}

/// Events.
pub(super) fn events(vcpu: &VcpuFd) -> Group<Events> {
    vcpu.get_vcpu_events().map(|e| decode_events(&e)).map_err(|e| unread("events (KVM_GET_VCPU_EVENTS)", e))
}

/// Whether it runs or halts. KVM lets a pending INIT or SIPI take effect at this call, so it comes before all others.
pub(super) fn mp_state(vcpu: &VcpuFd) -> Group<MpState> {
    let state = vcpu.get_mp_state().map_err(|e| unread("mp state (KVM_GET_MP_STATE)", e))?;
    Ok(match state.mp_state {
        KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        KVM_MP_STATE_HALTED => MpState::Halted,
        KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
        other => MpState::Other(other),
    })
}

/// Memory type range registers.
pub(super) fn mtrr(vcpu: &VcpuFd) -> Group<MtrrState> {
    const WHAT: &str = "mtrrs (KVM_GET_MSRS)";
    let ask = |(index, _)| kvm_msr_entry { index, ..Default::default() };
    let wanted: Vec<_> = MtrrState::default().msrs().map(ask).collect();
    let mut msrs = Msrs::from_entries(&wanted).expect("fewer entries than KVM takes in one call");
    let read = vcpu.get_msrs(&mut msrs).map_err(|e| unread(WHAT, e))?;
    if let Some(refused) = wanted.get(read) {
        return Err(Unread { what: WHAT.into(), reason: format!("msr {:#x} is refused", refused.index) });
    }
    let value = |index| msrs.as_slice().iter().find(|msr| msr.index == index).map_or(0, |msr| msr.data);
    Ok(MtrrState::from_registers(|register| value(register.msr())))
}

/// The model-specific registers of [`MSRS`] that the host has.
pub(super) fn msrs(vcpu: &VcpuFd) -> Group<Vec<(u32, u64)>> {
    let mut found = Vec::with_capacity(MSRS.len());
    let mut left: &[(u32, &str)] = &MSRS;
    while !left.is_empty() {
        let read = some_msrs(vcpu, left)?;
        found.extend(left.iter().zip(&read).map(|((index, _), value)| (*index, *value)));
        // KVM ends at the first that it refuses (KVM api.rst 4.18).
        left = left.get(read.len() + 1..).unwrap_or_default();
    }
    Ok(found)
}

/// The values of these registers, up to the first that KVM refuses.
fn some_msrs(vcpu: &VcpuFd, wanted: &[(u32, &str)]) -> Group<Vec<u64>> {
    let ask = |&(index, _): &(u32, _)| kvm_msr_entry { index, ..Default::default() };
    let wanted: Vec<_> = wanted.iter().map(ask).collect();
    let mut msrs = Msrs::from_entries(&wanted).expect("fewer entries than KVM takes in one call");
    let read = vcpu.get_msrs(&mut msrs).map_err(|e| unread("model-specific registers (KVM_GET_MSRS)", e))?;
    Ok(msrs.as_slice().iter().take(read).map(|msr| msr.data).collect())
}

/// Reads a register; `None` where KVM refuses.
pub(super) fn read_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = one_msr(index, 0);
    let read = vcpu.get_msrs(&mut msrs).is_ok_and(|read| read == 1);
    msrs.as_slice().first().filter(|_| read).map(|msr| msr.data)
}

/// Writes a register; false where KVM refuses the value.
pub(crate) fn write_msr(vcpu: &VcpuFd, index: u32, data: u64) -> bool {
    vcpu.set_msrs(&one_msr(index, data)).is_ok_and(|written| written == 1)
}

fn one_msr(index: u32, data: u64) -> Msrs {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry]).expect("one entry is fewer than KVM takes in one call")
}

fn unread(what: &'static str, error: kvm_ioctls::Error) -> Unread {
    Unread { what: what.into(), reason: error.to_string() }
}

/// General registers as KVM has them.
pub(crate) fn general(regs: &kvm_regs) -> Registers {
    let &kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } = regs;
    Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// System registers as KVM has them.
pub(crate) fn system_registers(sregs: &kvm_sregs) -> SystemRegisters {
    SystemRegisters {
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        cs: segment(&sregs.cs),
        ds: segment(&sregs.ds),
        es: segment(&sregs.es),
        fs: segment(&sregs.fs),
        gs: segment(&sregs.gs),
        ss: segment(&sregs.ss),
        tr: segment(&sregs.tr),
        ldt: segment(&sregs.ldt),
        gdt: table(&sregs.gdt),
        idt: table(&sregs.idt),
    }
}

fn segment(segment: &kvm_segment) -> Segment {
    let &kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, .. } = segment;
    let bits = [(s, 4), (dpl, 5), (present, 7), (avl, 12), (l, 13), (db, 14), (g, 15), (unusable, 16)];
    let access = bits.into_iter().fold(u32::from(type_), |access, (value, shift)| access | u32::from(value) << shift);
    Segment { selector, base, limit, access }
}

fn table(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: table.base, limit: table.limit }
}

fn decode_events(events: &kvm_vcpu_events) -> Events {
    let exception = events.exception;
    let error = (exception.has_error_code != 0).then_some(exception.error_code);
    let on_its_way = exception.injected != 0 || exception.pending != 0;
    Events {
        nmi_pending: events.nmi.pending,
        nmi_injected: events.nmi.injected != 0,
        nmi_masked: events.nmi.masked != 0,
        interrupt_injected: (events.interrupt.injected != 0).then_some(events.interrupt.nr),
        interrupt_shadow: events.interrupt.shadow != 0,
        exception: on_its_way.then_some(Exception { vector: exception.nr, error }),
        triple_fault_pending: events.triple_fault.pending != 0,
        system_management: events.smi.pending != 0 || events.smi.smm != 0,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn segment_has_its_attributes_where_a_descriptor_has_them() {
        let code = kvm_segment { type_: 0xb, s: 1, present: 1, l: 1, g: 1, ..Default::default() };
        assert_eq!(segment(&code).access, 0xa09b);
    }

    #[test]
    fn events_that_only_carry_a_number_are_none() {
        let mut events = kvm_vcpu_events::default();
        events.interrupt.nr = 0xfb;
        events.exception.nr = 14;
        assert_eq!(decode_events(&events), Events::default());
        events.interrupt.injected = 1;
        events.exception.pending = 1;
        let decoded = decode_events(&events);
        assert_eq!(decoded.interrupt_injected, Some(0xfb));
        assert_eq!(decoded.exception, Some(Exception { vector: 14, error: None }));
    }
}
