//! Machines for plain guests: any static executable, in the state that docs/plain-guests.md promises.

use std::time::Duration;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use stallbench_state::program::PlainProgram;

use super::{CreateError, Machine, MachineConfig, check_vcpus, create_vm};
use crate::boot::plain;
use crate::boot::registers::RegisterError;
use crate::host::HostKvm;
use crate::memory::GuestMemory;
use crate::serial::{Console, Serial};

/// What a machine for a plain guest is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainConfig {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Bytes of memory, from address 0 on: whole megabytes, at most [`crate::MOST_MEMORY`].
    pub memory: u64,
    /// All vCPUs start at the entry, not vCPU 0 alone.
    pub all_started: bool,
    /// CPU time after which a vCPU lets another one have the CPU, where there are more of them than CPUs.
    pub turn: Duration,
}

impl Machine {
    /// Makes a machine for a plain guest that is ready to start; nothing of it runs yet.
    pub fn plain(host: &HostKvm, config: &PlainConfig, program: &PlainProgram) -> Result<Self, CreateError> {
        let &PlainConfig { vcpus, memory: size, all_started, turn } = config;
        check_vcpus(host, vcpus)?;
        let taken = plain::taken(size, vcpus).ok_or(CreateError::Stacks { vcpus, memory: size })?;
        program.check_room(size, &taken)?;
        let vm = create_vm(host)?;
        let memory = GuestMemory::plain(size)?;
        plain::prepare(&memory, program)?;
        let mut machine = Self::empty(host, vm, memory, &MachineConfig { vcpus, turn }, Some(Serial::default()))?;
        for vcpu in 0..vcpus {
            machine.add_vcpu(host, vcpu, |fd| {
                plain::receive(fd)?;
                match vcpu {
                    0 => plain::enter(fd, (0, vcpus), program.entry(), size),
                    _ if all_started => start(fd, (vcpu, vcpus), program.entry(), size),
                    _ => Ok(()),
                }
            })?;
        }
        Ok(machine)
    }

    /// What a plain guest wrote to its console so far.
    pub fn console(&self) -> Console {
        self.shared.serial.as_ref().map(Serial::console).unwrap_or_default()
    }
}

/// Puts an application processor at the guest's entry, as if it had been started before.
fn start(fd: &VcpuFd, number: (usize, usize), entry: u64, memory: u64) -> Result<(), RegisterError> {
    plain::enter(fd, number, entry, memory)?;
    let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    fd.set_mp_state(running).map_err(crate::boot::registers::failed("start it", "KVM_SET_MP_STATE"))
}
