//! A VM that holds a certificate: no interrupt controller, slots for what is executed and for page tables, and a hole for all else.
#![expect(unsafe_code, reason = "a KVM memory slot names memory by its address, and a filter of MSRs a bitmap")]

use std::io;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MEM_READONLY, KVM_MSR_FILTER_DEFAULT_DENY, KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE, kvm_enable_cap, kvm_msr_filter, kvm_msr_filter_range, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use stallbench_core::{HostKvm, make_room};
use stallbench_state::certificate::PAGE;

use crate::memory::Memory;
use crate::{HostFailure, failed};

/// What a page holds, and so how accesses to it are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Data alone: every access is seen.
    #[default]
    Data,
    /// Instructions that are executed: writes are seen.
    Code,
    /// Entries of page tables: no access is seen.
    Tables,
}

/// Accesses to MSRs that KVM denies, finds unknown or finds invalid (KVM api.rst 7.21).
const ALL_REASONS: u64 = 7;
/// A register that a filter needs to name, and denies like all others: the time stamp counter.
const NAMED_MSR: u32 = 0x10;

/// A VM with the memory of a certificate. `holds` says it of each page.
///
/// The memory has to outlive all vCPUs of the VM.
pub(crate) fn create(host: &HostKvm, memory: &Memory, holds: &[Holds], vcpus: usize) -> Result<VmFd, HostFailure> {
    let vm = host.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    let msrs = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, args: [ALL_REASONS, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&msrs).map_err(failed("KVM_ENABLE_CAP (x86-user-space-msr)"))?;
    deny_msrs(&vm)?;
    for (number, slot) in slots(memory.pages(), holds).into_iter().enumerate() {
        attach(&vm, memory, number as u32, slot)?;
    }
    make_room(&vm, vcpus, PAGE * memory.pages().len() as u64).map_err(no_room)?;
    Ok(vm)
}

fn no_room(error: io::Error) -> HostFailure {
    failed("KVM_SET_NR_MMU_PAGES")(kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(0)))
}

/// Has every access to an MSR leave the guest, but those to the local APIC's, which do so for want of one.
fn deny_msrs(vm: &VmFd) -> Result<(), HostFailure> {
    let mut bitmap = 0_u8;
    let mut filter = kvm_msr_filter { flags: KVM_MSR_FILTER_DEFAULT_DENY, ..Default::default() };
    filter.ranges[0] = kvm_msr_filter_range {
        flags: KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
        nmsrs: 1,
        base: NAMED_MSR,
        bitmap: &raw mut bitmap,
    };
    // SAFETY: the one range that is not empty has one register, and its bitmap one byte, which the kernel copies.
    unsafe { vm.set_msr_filter_unchecked(&filter) }.map_err(failed("KVM_X86_SET_MSR_FILTER"))
}

/// Pages that follow each other and hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    /// Index of the first.
    first: usize,
    /// How many.
    pages: usize,
    /// Its address.
    address: u64,
    holds: Holds,
}

fn slots(pages: &[u64], holds: &[Holds]) -> Vec<Slot> {
    let mut slots: Vec<Slot> = Vec::new();
    for (index, (&address, &holds)) in pages.iter().zip(holds).enumerate().filter(|(_, (_, h))| **h != Holds::Data) {
        match slots.last_mut().filter(|slot| slot.holds == holds && slot.address + PAGE * slot.pages as u64 == address)
        {
            Some(slot) => slot.pages += 1,
            None => slots.push(Slot { first: index, pages: 1, address, holds }),
        }
    }
    slots
}

fn attach(vm: &VmFd, memory: &Memory, number: u32, slot: Slot) -> Result<(), HostFailure> {
    let region = kvm_userspace_memory_region {
        slot: number,
        flags: if slot.holds == Holds::Code { KVM_MEM_READONLY } else { 0 },
        guest_phys_addr: slot.address,
        memory_size: PAGE * slot.pages as u64,
        userspace_addr: memory.host_address(slot.first),
    };
    // SAFETY: pages that follow each other by their address do so in the mapping, which outlives the vCPUs.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_share_a_slot_if_they_hold_the_same() {
        let pages = [0x1000, 0x2000, 0x3000, 0x4000, 0x6000, 0x7000];
        let holds = [Holds::Tables, Holds::Tables, Holds::Code, Holds::Data, Holds::Code, Holds::Code];
        let found: Vec<_> =
            slots(&pages, &holds).into_iter().map(|slot| (slot.first, slot.pages, slot.address)).collect();
        assert_eq!(found, [(0, 2, 0x1000), (2, 1, 0x3000), (4, 2, 0x6000)]);
    }
}
