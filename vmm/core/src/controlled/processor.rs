//! One vCPU of a controlled machine.

use std::time::Duration;

use kvm_bindings::{kvm_guest_debug, kvm_sregs};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};

use stallbench_state::machine::SystemRegisters;

use super::state::{Inject, Moved, ProcessorState, Reset};
use crate::breakpoint::STEP_ALONE;
use crate::clock::CpuClock;
use crate::event::Fault;
use crate::vcpu::{capture, exit};

/// CPU time within which a vCPU has to come to its next stop. Where ring 0 is emulated that is a million instructions, and no
/// protocol does so many between two looks at what it shares.
const LONGEST: Duration = Duration::from_secs(2);
/// Accesses that one instruction makes at most: a read, and a write in two parts.
const MOST_ACCESSES: usize = 4;

/// Why a vCPU stopped. All registers are those behind the instruction, but for an access that is still to be answered: then those
/// before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It reads memory that it shares, or its xAPIC, and has to be [answered](super::Controlled::answer).
    Read {
        /// Guest-physical.
        address: u64,
        /// In bytes, at most 8.
        size: u8,
    },
    /// It writes there.
    Write {
        /// Guest-physical.
        address: u64,
        /// In bytes, at most 8.
        size: u8,
        /// What, zero-extended.
        value: u64,
    },
    /// It reads a model-specific register, and has to be answered or refused.
    ReadMsr {
        /// Which.
        index: u32,
    },
    /// It writes a model-specific register, and can be refused.
    WriteMsr {
        /// Which.
        index: u32,
        /// What.
        value: u64,
    },
    /// It writes a port.
    Out {
        /// Which.
        port: u16,
        /// What, zero-extended; the first access of a string instruction.
        value: u32,
    },
    /// It reads a port.
    In {
        /// Which.
        port: u16,
    },
    /// It halted.
    Halted,
    /// It has executed the one instruction that it was to execute.
    Stepped,
    /// It can take an interrupt here, for the first time.
    Window,
    /// It stands behind an access that was completed.
    Completed,
    /// It ran for long without any of these.
    Endless,
    /// It cannot go on.
    Fault(Fault),
}

#[derive(Debug)]
pub(super) struct Processor {
    fd: VcpuFd,
    /// As it was made: of all but the first, as it was reset.
    reset: Reset,
    /// Segments and tables, from the start line on.
    tables: Option<kvm_sregs>,
    /// KVM has still to complete an access (KVM api.rst 5).
    pending: bool,
    /// What lies in `kvm_run` goes to KVM with the next `KVM_RUN`.
    loaded: bool,
    /// It executes one instruction at a time.
    steps: bool,
    /// It goes on to do so without being told again.
    is_told: bool,
    loses_steps: bool,
    /// An NMI was delivered, or was being handled, where it was put last. By nothing else is another masked (SDM 3A 7.7.1); Bochs' VMX goes
    /// on to say so of any vCPU that it enters after one of which it is true (docs/hosts.md).
    can_mask_nmis: bool,
}

/// What `KVM_RUN` brings and takes.
const PARTS: [SyncReg; 3] = [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents];

impl Processor {
    pub(super) fn new(mut fd: VcpuFd, loses_steps: bool) -> Result<Self, kvm_ioctls::Error> {
        PARTS.into_iter().for_each(|part| fd.set_sync_valid_reg(part));
        let (pending, loaded, steps, is_told, can_mask_nmis) = (false, false, false, false, false);
        let reset = Reset { regs: fd.get_regs()?, sregs: fd.get_sregs()? };
        Ok(Self { fd, reset, tables: None, pending, loaded, steps, is_told, loses_steps, can_mask_nmis })
    }

    pub(super) fn run(&mut self) -> Stop {
        self.is_told = false;
        if std::mem::take(&mut self.steps) {
            let off = kvm_guest_debug::default();
            if let Err(error) = self.fd.set_guest_debug(&off) {
                return Stop::Fault(Fault::Debug { errno: error.errno() });
            }
        }
        self.until_stop()
    }

    pub(super) fn run_to_window(&mut self) -> Stop {
        self.fd.get_kvm_run().request_interrupt_window = 1;
        let stop = self.run();
        self.fd.get_kvm_run().request_interrupt_window = 0;
        stop
    }

    pub(super) fn step(&mut self) -> Stop {
        // KVM steps from the RIP that it has when it is told to, and takes what lies in `kvm_run` later. It steps on until it is told
        // otherwise, as long as nobody gives it other registers.
        let told = if self.is_told && !self.loaded {
            Ok(())
        } else {
            self.put().and_then(|()| {
                let debug = kvm_guest_debug { control: STEP_ALONE, ..Default::default() };
                self.fd.set_guest_debug(&debug)
            })
        };
        if let Err(error) = told {
            return Stop::Fault(Fault::Debug { errno: error.errno() });
        }
        self.steps = true;
        let stop = self.until_stop();
        // An access that stops it is emulated whole.
        self.is_told = stop == Stop::Stepped && !self.loses_steps;
        stop
    }

    /// Puts what was loaded into KVM.
    fn put(&mut self) -> Result<(), kvm_ioctls::Error> {
        if !std::mem::take(&mut self.loaded) {
            return Ok(());
        }
        let sync = self.fd.sync_regs();
        self.fd.set_sregs(&sync.sregs)?;
        self.fd.set_regs(&sync.regs)?;
        self.fd.set_vcpu_events(&sync.events)?;
        PARTS.into_iter().for_each(|part| self.fd.clear_sync_dirty_reg(part));
        Ok(())
    }

    fn until_stop(&mut self) -> Stop {
        // Its clock is read where it is interrupted, which is now and then: asking for it takes as long as a tenth of a stop.
        let mut began = None;
        loop {
            match self.enter() {
                Some(stop) => return stop,
                None => {
                    let now = CpuClock::OWN.now();
                    if now.saturating_sub(*began.get_or_insert(now)) > LONGEST {
                        return Stop::Endless;
                    }
                }
            }
        }
    }

    pub(super) fn complete(&mut self) -> Stop {
        if !self.pending {
            return Stop::Completed;
        }
        // Of an access that was completed KVM_RUN comes back before the guest runs (KVM api.rst 5, `immediate_exit`).
        self.fd.set_kvm_immediate_exit(1);
        let stop = self.enter().unwrap_or(Stop::Completed);
        self.fd.set_kvm_immediate_exit(0);
        stop
    }

    /// One `KVM_RUN`; `None` where it was interrupted.
    fn enter(&mut self) -> Option<Stop> {
        self.pending = false;
        let stop = stop(&mut self.fd);
        PARTS.into_iter().for_each(|part| self.fd.clear_sync_dirty_reg(part));
        self.loaded = false;
        self.pending = stop.as_ref().is_some_and(Stop::is_access);
        stop
    }

    pub(super) fn answer(&mut self, value: u64) {
        exit::answer_read(&mut self.fd, value);
    }

    pub(super) fn refuse(&mut self) {
        exit::answer(&mut self.fd, None);
    }

    pub(super) fn takes_msr(&self, index: u32, value: u64) -> bool {
        capture::write_msr(&self.fd, index, value)
    }

    pub(super) fn start_up(&mut self, vector: u8) -> Result<(), kvm_ioctls::Error> {
        let Reset { regs, sregs } = self.reset.started(vector);
        self.fd.set_sregs(&sregs)?;
        self.fd.set_regs(&regs)
    }

    pub(super) fn keep_tables(&mut self) {
        self.tables = Some(self.fd.sync_regs().sregs);
    }

    pub(super) fn state(&self) -> Result<ProcessorState, Moved> {
        let mut state = ProcessorState::of(&self.fd.sync_regs(), self.tables.as_ref())?;
        state.nmi_masked &= self.can_mask_nmis;
        Ok(state)
    }

    pub(super) fn system(&self, state: &ProcessorState, was_reset: bool) -> SystemRegisters {
        let kept = if was_reset { Some(self.reset.sregs) } else { self.tables };
        let tables = kept.unwrap_or_else(|| self.fd.sync_regs().sregs);
        capture::system_registers(&state.into_sync(&tables, None).sregs)
    }

    pub(super) fn after_init(&self, state: &ProcessorState) -> ProcessorState {
        self.reset.after_init(state)
    }

    pub(super) fn load(&mut self, state: &ProcessorState, inject: Option<Inject>) {
        for _ in 0..MOST_ACCESSES {
            if self.complete() == Stop::Completed {
                break;
            }
        }
        let tables = match inject {
            // Real mode, and none of the tables that it had.
            Some(Inject::StartUp(vector)) => self.reset.started(vector).sregs,
            _ => self.tables.unwrap_or_else(|| self.fd.sync_regs().sregs),
        };
        let mut sync = state.into_sync(&tables, inject);
        if let Some(Inject::StartUp(_)) = inject {
            sync.regs.rip = 0;
        }
        *self.fd.sync_regs_mut() = sync;
        PARTS.into_iter().for_each(|part| self.fd.set_sync_dirty_reg(part));
        self.loaded = true;
        self.can_mask_nmis = state.nmi_masked || inject == Some(Inject::Nmi);
    }
}

impl Stop {
    /// Whether KVM has still to complete it.
    fn is_access(&self) -> bool {
        matches!(
            self,
            Self::Read { .. }
                | Self::Write { .. }
                | Self::ReadMsr { .. }
                | Self::WriteMsr { .. }
                | Self::Out { .. }
                | Self::In { .. }
        )
    }
}

fn stop(fd: &mut VcpuFd) -> Option<Stop> {
    let fault = match fd.run() {
        Ok(VcpuExit::MmioRead(address, data)) => return Some(Stop::Read { address, size: size(data) }),
        Ok(VcpuExit::MmioWrite(address, data)) => {
            return Some(Stop::Write { address, size: size(data), value: number(data) });
        }
        Ok(VcpuExit::X86Rdmsr(msr)) => return Some(Stop::ReadMsr { index: msr.index }),
        Ok(VcpuExit::X86Wrmsr(msr)) => return Some(Stop::WriteMsr { index: msr.index, value: msr.data }),
        // The low half: an access is of 4 bytes at most.
        Ok(VcpuExit::IoOut(port, data)) => return Some(Stop::Out { port, value: number(data) as u32 }),
        Ok(VcpuExit::IoIn(port, data)) => {
            data.fill(0xff);
            return Some(Stop::In { port });
        }
        Ok(VcpuExit::Hlt) => return Some(Stop::Halted),
        Ok(VcpuExit::Debug(_)) => return Some(Stop::Stepped),
        Ok(VcpuExit::IrqWindowOpen) => return Some(Stop::Window),
        Ok(VcpuExit::Intr) => return None,
        Ok(VcpuExit::Shutdown) => Fault::Shutdown,
        Ok(VcpuExit::FailEntry(reason, cpu)) => Fault::FailEntry { reason, cpu },
        Ok(VcpuExit::MemoryFault { gpa, .. }) => Fault::Memory { address: gpa },
        Ok(VcpuExit::InternalError) => exit::internal_error(fd.get_kvm_run()),
        Ok(other) => Fault::Unexpected { exit: format!("{other:?}") },
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return None,
        Err(error) => Fault::Run { errno: error.errno() },
    };
    Some(Stop::Fault(fault))
}

/// KVM tells no access of more than 8 bytes.
fn size(data: &[u8]) -> u8 {
    data.len().min(8) as u8
}

/// The first 8 bytes, little-endian.
fn number(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
