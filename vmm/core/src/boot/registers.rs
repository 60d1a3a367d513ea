//! The registers of each vCPU before its first instruction.

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, Msrs, kvm_dtable, kvm_enable_cap, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use stallbench_abi::layout::private_area::{GDT, GDT_LIMIT, TASK_STACK_TOP, TSS, TSS_LIMIT};
use stallbench_abi::layout::{
    CODE_SELECTOR, CR0, CR4, DATA_SELECTOR, EFER, EFER_LMA, IDT, IDT_LIMIT, TSS_SELECTOR, cr3, private,
};
use stallbench_state::mtrr::MtrrState;
use thiserror::Error;

use crate::cpuid;

/// RFLAGS with nothing but the bit that is always 1.
pub(super) const RFLAGS: u64 = 2;

/// Why a vCPU could not be given its registers. It names the ioctl.
#[derive(Debug, Error)]
#[error("{what} ({ioctl})")]
pub struct RegisterError {
    what: &'static str,
    ioctl: &'static str,
    source: kvm_ioctls::Error,
}

pub(crate) fn failed(what: &'static str, ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> RegisterError {
    move |source| RegisterError { what, ioctl, source }
}

/// Gives a vCPU its processor: the CPUID model, nothing paravirtual, MTRRs as firmware leaves them.
pub(crate) fn configure(vcpu: &VcpuFd, index: usize, vcpus: usize, enforce: bool) -> Result<(), RegisterError> {
    let model = CpuId::from_entries(&cpuid::entries(index, vcpus)).expect("the model has a handful of leaves");
    vcpu.set_cpuid2(&model).map_err(failed("set the cpuid model", "KVM_SET_CPUID2"))?;
    if enforce {
        let capability =
            kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, args: [1, 0, 0, 0], ..Default::default() };
        vcpu.enable_cap(&capability).map_err(failed("hide paravirtual features", "KVM_ENABLE_CAP"))?;
    }
    set_mtrrs(vcpu)
}

fn set_mtrrs(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let failed = failed("set the mtrrs", "KVM_SET_MSRS");
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    let entries: Vec<_> = MtrrState::at_start().msrs().map(entry).collect();
    let msrs = Msrs::from_entries(&entries).expect("fewer entries than KVM takes in one call");
    // KVM stops at the first that it refuses and tells how many it has set.
    match vcpu.set_msrs(&msrs).map_err(&failed)? {
        set if set == entries.len() => Ok(()),
        _ => Err(failed(kvm_ioctls::Error::new(libc::EINVAL))),
    }
}

/// Puts vCPU 0 at the guest's entry, in long mode, on its task stack as after a call.
pub(crate) fn enter(vcpu: &VcpuFd, entry: u64) -> Result<(), RegisterError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read its system registers", "KVM_GET_SREGS"))?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(failed("set its system registers", "KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: entry, rsp: private(0) + TASK_STACK_TOP - 8, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&regs).map_err(failed("set its general registers", "KVM_SET_REGS"))
}

fn long_mode(sregs: &mut kvm_sregs) {
    let area = private(0);
    sregs.cr0 = CR0;
    sregs.cr3 = cr3(0);
    sregs.cr4 = CR4;
    sregs.efer = EFER | EFER_LMA;
    // As in the descriptor table: type 11 is code and a busy TSS, 3 is data.
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, ..flat };
    sregs.cs = kvm_segment { selector: CODE_SELECTOR, type_: 11, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let task = kvm_segment { selector: TSS_SELECTOR, type_: 11, present: 1, ..Default::default() };
    sregs.tr = kvm_segment { base: area + TSS, limit: TSS_LIMIT.into(), ..task };
    sregs.gdt = kvm_dtable { base: area + GDT, limit: GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: IDT_LIMIT, ..Default::default() };
}
