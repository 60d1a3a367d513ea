//! Checks certificates ([`stallbench_state::certificate`]) on a fresh machine. docs/certificate.md says what a check means.
//!
//! Nothing of what made a certificate is used: no stepping, no decoder. What an instruction reads and writes is learned from KVM
//! itself. All memory of a certificate that is not executed lies in a hole between memory slots, so that each access to it leaves
//! the guest with its address, size, direction and value; it is answered with what the state holds. Which transitions a state has
//! is derived from the state, and compared with those that the file lists.
//!
//! | module | what it owns |
//! |---|---|
//! | [`shape`] | whether a certificate is well formed, before anything of it is used |
//! | [`falsehood`] | what a well formed one can be wrong in |
//! | `enabled` | what can happen to a vCPU in a state |
//! | `opening` | what the first bytes of an instruction say |
//! | `memory`, `owners` | the bytes of the certificate, and whose cells they are |
//! | `walk` | page tables |
//! | `machine`, `processor` | the VM, its slots, its vCPUs; one instruction of a vCPU |
//! | `alarm` | no instruction takes for ever |
//! | `filling` | values of what is set aside |
//! | `cover` | whether a state stands for what came of an instruction |
//! | `order` | whether stores that wait in buffers change anything |
//! | `closure` | the check of all states |
//!
//! All of it runs on the thread of the caller.

mod alarm;
mod closure;
mod cover;
mod enabled;
pub mod falsehood;
mod filling;
mod machine;
mod memory;
mod opening;
mod order;
mod owners;
mod processor;
pub mod shape;
mod walk;

#[cfg(test)]
mod sample;

use std::io;

use stallbench_core::HostKvm;
use stallbench_state::certificate::Certificate;
use thiserror::Error;

pub use closure::Holds;
pub use falsehood::Falsehood;
pub use shape::Malformed;

/// Why a certificate does not hold, or could not be checked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It contradicts itself, or is larger than any that is made.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is well formed and false.
    #[error(transparent)]
    False(#[from] Falsehood),
    /// This host cannot check it.
    #[error(transparent)]
    Host(#[from] HostFailure),
}

/// What the host cannot do. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostFailure {
    /// There is no memory for the states.
    #[error("map {bytes} bytes of memory")]
    Memory {
        /// How many.
        bytes: usize,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// There is no timer.
    #[error("set a timer")]
    Timer(#[source] io::Error),
    /// An ioctl failed.
    #[error("check it: {ioctl}")]
    Ioctl {
        /// Which.
        ioctl: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM has no emulation of an instruction that accesses memory without a slot.
    #[error("execute the instruction at {rip:#x} ({bytes}) with its memory watched: this kvm cannot")]
    NotExecuted {
        /// Where it is.
        rip: u64,
        /// It, and what follows.
        bytes: String,
    },
}

/// A host failure of this ioctl.
pub(crate) fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> HostFailure {
    move |source| HostFailure::Ioctl { ioctl, source }
}

/// Checks a certificate: each of its states, by executing every instruction that a vCPU of it could execute next.
pub fn verify(host: &HostKvm, certificate: &Certificate) -> Result<Holds, VerifyError> {
    shape::check(certificate)?;
    closure::check(host, certificate)
}
