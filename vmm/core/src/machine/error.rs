//! Why a machine could not be made or started.

use std::io;

use stallbench_state::program::ProgramError;
use thiserror::Error;

use super::paused::PauseError;
use crate::boot::image::ImageError;
use crate::boot::moment::PlaceError;
use crate::boot::registers::RegisterError;
use crate::memory::MemoryError;

/// Why a machine could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Too many vCPUs, or none.
    #[error("make a machine of {asked} vcpus: the host gives 1 to {most}")]
    Vcpus {
        /// The number asked for.
        asked: usize,
        /// The most that the host gives.
        most: usize,
    },
    /// The boot block is one for another number of vCPUs.
    #[error("make a machine of {asked} vcpus with a boot block for {told}")]
    BootBlock {
        /// The number asked for.
        asked: usize,
        /// The number in the boot block.
        told: u32,
    },
    /// KVM gave no VM.
    #[error("create a vm (KVM_CREATE_VM)")]
    Vm(#[source] kvm_ioctls::Error),
    /// KVM gave no local APICs.
    #[error("split the irqchip (KVM_ENABLE_CAP)")]
    Irqchip(#[source] kvm_ioctls::Error),
    /// KVM gave no room for shadow page tables.
    #[error("make room for shadow page tables (KVM_SET_NR_MMU_PAGES)")]
    Mmu(#[source] io::Error),
    /// There is no memory for the guest.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The image cannot be loaded.
    #[error("boot the image")]
    Image(#[from] ImageError),
    /// A plain guest's memory has no room for the stacks.
    #[error("give {vcpus} vcpus their stacks in {memory:#x} bytes of memory")]
    Stacks {
        /// Number of vCPUs.
        vcpus: usize,
        /// Bytes of memory.
        memory: u64,
    },
    /// A plain guest cannot be loaded.
    #[error("load the payload: it")]
    Payload(#[from] ProgramError),
    /// KVM gave no vCPU.
    #[error("create vcpu {vcpu} (KVM_CREATE_VCPU)")]
    Vcpu {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A vCPU could not be given its registers.
    #[error("prepare vcpu {vcpu}")]
    Registers {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: RegisterError,
    },
}

/// Why a machine could not be made in a state that another was in. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// It could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A vCPU could not be put into its state.
    #[error("place vcpu {vcpu}")]
    Place {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: PlaceError,
    },
    /// The memory is not that of a guest of so many vCPUs.
    #[error("place memory at {0:#x}: a guest of so many vcpus has none there")]
    Memory(u64),
}

/// Why a machine could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// It was started before.
    #[error("start a machine twice")]
    Started,
    /// The vCPUs do not stand still.
    #[error(transparent)]
    Pause(PauseError),
    /// A thread could not be made.
    #[error("make the thread of vcpu {vcpu}")]
    Thread {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}
