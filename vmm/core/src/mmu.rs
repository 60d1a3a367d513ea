//! Room for KVM's shadow page tables.
//!
//! Where KVM has no two-dimensional paging it shadows the guest's page tables, and keeps as many shadow pages as two in a hundred
//! of the guest's pages. Each of our vCPUs has page tables of its own and little memory: by that rule 8 vCPUs would evict each
//! other's shadow pages all the time, and with 255 the roots alone exceed it (`KVM_RUN` fails with ENOSPC).
#![expect(unsafe_code, reason = "kvm-ioctls does not wrap KVM_SET_NR_MMU_PAGES")]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::KVMIO;
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_val;
use vmm_sys_util::ioctl_io_nr;

// KVM api.rst 4.44.
ioctl_io_nr!(KVM_SET_NR_MMU_PAGES, KVMIO, 0x44);

/// Shadow pages of one vCPU: its tables, in long mode and on its way there, split to 4 KiB.
const PAGES_PER_VCPU: u64 = 64;
/// Shadow pages of the tables that vCPUs share.
const PAGES_SHARED: u64 = 512;

/// Guest pages to a shadow page, by KVM's own rule.
const BYTES_PER_PAGE: u64 = 50 * 4096;

/// Gives KVM as many shadow pages as `vcpus` vCPUs with that much memory can use.
pub fn make_room(vm: &VmFd, vcpus: usize, memory: u64) -> io::Result<()> {
    let pages = (PAGES_SHARED + PAGES_PER_VCPU * vcpus as u64).max(memory / BYTES_PER_PAGE);
    // SAFETY: the descriptor is a VM's, and the argument is a number, not an address.
    let result = unsafe { ioctl_with_val(&vm.as_raw_fd(), KVM_SET_NR_MMU_PAGES(), pages) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
