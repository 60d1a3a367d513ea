//! The `immediate_exit` byte of a vCPU, written by its kickers.
//!
//! Kickers live on other threads than the [`VcpuFd`] does, and a pointer into its mapping dies with it. So the page of
//! `kvm_run` that holds the byte is mapped once more here, and its life is the kicker's own affair: a kick that comes after the
//! vCPU's thread has ended writes to a byte that nobody reads.
#![expect(unsafe_code, reason = "a byte of memory shared with the kernel has no safe type")]

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use std::os::fd::AsRawFd;

use crate::kick::Cell;

/// The page of `kvm_run` that holds `immediate_exit`.
const LENGTH: usize = 4096;
const _: () = assert!(offset_of!(kvm_run, immediate_exit) < LENGTH);

/// The `immediate_exit` byte of a vCPU (KVM api.rst 5, `kvm_run`): while it is 1, `KVM_RUN` returns EINTR before the guest runs.
#[derive(Debug)]
pub(crate) struct ImmediateExit {
    page: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone, and its only byte that is ever touched is touched atomically.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Maps the byte of this vCPU.
    pub(crate) fn of(vcpu: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice; the first page of a vCPU's file is its `kvm_run`.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, access, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        match NonNull::new(page.cast::<u8>()) {
            Some(mapped) if page != libc::MAP_FAILED => Ok(Self { page: mapped }),
            _ => Err(kvm_ioctls::Error::last()),
        }
    }

    /// Whether a `KVM_RUN` that began now would return before the guest runs.
    pub(crate) fn is_set(&self) -> bool {
        self.byte().load(Ordering::Acquire) != 0
    }

    fn byte(&self) -> &AtomicU8 {
        // SAFETY: the byte lies inside the mapping, which lives as long as `self`. This process only touches it through this
        // atomic; the kernel reads it, which is an atomic access for a byte.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(offset_of!(kvm_run, immediate_exit))) }
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of`, with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), LENGTH) };
    }
}

impl Cell for ImmediateExit {
    fn swap(&self, value: u8) -> u8 {
        self.byte().swap(value, Ordering::AcqRel)
    }

    fn insert(&self, bits: u8) {
        self.byte().fetch_or(bits, Ordering::Release);
    }
}
