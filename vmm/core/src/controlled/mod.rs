//! A machine that one thread drives: every access of a vCPU to what vCPUs share stops it, and what comes of the access is the
//! caller's to say.
//!
//! The arena has no memory slot, so an access to it is an exit with address, size, direction and value (KVM api.rst 5,
//! `KVM_EXIT_MMIO`); so is one to the xAPIC, since KVM is given no local APICs. Model-specific registers stop a vCPU by the
//! MSR filter (KVM api.rst 4.97, 7.21). What the caller answers, and when it lets which vCPU run, is all that decides what the
//! guest does: nothing is delivered, woken or timed by the kernel.
//!
//! Here a vCPU is moved and looked at; what its accesses and interrupts mean, whoever drives it knows.

mod processor;
mod state;
mod tape;
#[cfg(test)]
mod test;

use std::cell::RefCell;
use std::time::Duration;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN,
    kvm_enable_cap,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use stallbench_abi::boot::BootBlock;
use stallbench_abi::layout::ARENA;
use stallbench_state::machine::SystemRegisters;
use thiserror::Error;

pub use processor::Stop;
pub use state::{Inject, Moved, ProcessorState};
pub use tape::Tape;

use crate::CreateError;
use crate::boot::{self, registers};
use crate::host::HostKvm;
use crate::kick;
use crate::machine::check_contract;
use crate::memory::GuestMemory;
use crate::mmu;
use crate::probe::{Driving, ProbeError};
use crate::vcpu::alarm::Alarm;
use processor::Processor;
use tape::{Call, Entry};

/// The model-specific register whose accesses stop no vCPU: IA32_EFER, without which none comes to 64-bit mode, and which is one of the
/// registers that have to stay. All others KVM would keep where nobody looks.
const EFER: u32 = 0xc000_0080;
/// How often a vCPU is entered for one instruction at most.
const MOST_ENTRIES: usize = 16;
/// How often `KVM_RUN` is interrupted: no instruction keeps the caller for longer.
const INTERRUPTED_EVERY: Duration = Duration::from_millis(50);

/// Why a machine cannot be driven. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// KVM lacks what it takes.
    #[error("drive a machine step by step: kvm lacks {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// The machine could not be made.
    #[error("make a machine")]
    Create(#[from] CreateError),
    /// KVM refused to have accesses stop a vCPU.
    #[error("have accesses to msrs stop a vcpu ({ioctl})")]
    Filter {
        /// Which ioctl.
        ioctl: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host could not be asked what it does.
    #[error("ask the host what it does with a vcpu that is driven step by step")]
    Probe(#[source] ProbeError),
    /// The system gives no timer.
    #[error("bound how long a vcpu runs (timer_create)")]
    Alarm,
}

/// A machine whose vCPUs the thread that made it drives, one at a time.
#[derive(Debug)]
pub struct Controlled {
    processors: Vec<Processor>,
    memory: GuestMemory,
    host: Driving,
    vm: VmFd,
    /// Interrupts each `KVM_RUN` of this thread, from the first until it [rests](Self::rest).
    alarm: Alarm,
    is_bounded: bool,
    /// What it is asked for, where somebody wants it to be kept.
    tape: RefCell<Option<Vec<Call>>>,
}

impl Controlled {
    /// A machine of which nothing has run yet: vCPU 0 stands at the guest's entry, all others have to be [started](Self::start_up).
    pub fn new(host: &HostKvm, vcpus: usize, image: &[u8], boot_block: &BootBlock) -> Result<Self, ControlError> {
        let needed = ["sync-regs", "immediate-exit", "x86-user-space-msr", "x86-msr-filter"];
        let missing: Vec<_> = needed.into_iter().filter(|name| !host.has(name)).collect();
        if !missing.is_empty() {
            return Err(ControlError::Missing(missing));
        }
        check_contract(host, vcpus, boot_block)?;
        let vm = host.create_vm().map_err(CreateError::Vm)?;
        filter_msrs(&vm)?;
        let memory = GuestMemory::new(vcpus).map_err(CreateError::from)?;
        memory.attach_all_but(&vm, ARENA).map_err(CreateError::from)?;
        mmu::make_room(&vm, vcpus, memory.size()).map_err(CreateError::Mmu)?;
        let entry = boot::prepare(&memory, image, boot_block, vcpus).map_err(CreateError::from)?;
        kick::install_handler();
        let alarm = Alarm::new().ok_or(ControlError::Alarm)?;
        let driving = host.driving().map_err(ControlError::Probe)?;
        let processors = Vec::with_capacity(vcpus);
        let tape = RefCell::default();
        let mut machine = Self { processors, memory, host: driving, vm, alarm, is_bounded: false, tape };
        for vcpu in 0..vcpus {
            machine.add_vcpu(host, vcpu, vcpus, entry)?;
        }
        Ok(machine)
    }

    fn add_vcpu(&mut self, host: &HostKvm, vcpu: usize, vcpus: usize, entry: u64) -> Result<(), CreateError> {
        let failed = |source| CreateError::Vcpu { vcpu, source };
        let not_prepared = |source| CreateError::Registers { vcpu, source };
        let fd = self.vm.create_vcpu(vcpu as u64).map_err(failed)?;
        registers::configure(&fd, vcpu, vcpus, host.has("enforce-pv-feature-cpuid")).map_err(not_prepared)?;
        if vcpu == 0 {
            registers::enter(&fd, entry).map_err(not_prepared)?;
        }
        self.processors.push(Processor::new(fd, self.host.loses_steps).map_err(failed)?);
        Ok(())
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.processors.len()
    }

    /// Guest memory. That of the arena is the caller's to use: the guest does not see it while it is a hole.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Writes guest memory; false where it is none.
    #[must_use]
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        self.note(|| Call::Write { address, bytes: bytes.into() });
        self.memory.write(address, bytes)
    }

    /// Lets a vCPU run until its next stop. What it read before is what was [answered](Self::answer), else 0.
    pub fn run(&mut self, vcpu: usize) -> Stop {
        self.bound();
        let stop = self.processors[vcpu].run();
        self.entered(vcpu, Entry::Run, stop)
    }

    /// Lets a vCPU get on, but not past the first place at which it can take an interrupt: to there or its next stop, where the host
    /// tells, else by one instruction ([`Stop::Stepped`]). By that TF can be in the RFLAGS that an interrupt pushes.
    pub fn get_on(&mut self, vcpu: usize) -> Stop {
        self.bound();
        let processor = &mut self.processors[vcpu];
        let stop = if self.host.tells_windows { processor.run_to_window() } else { processor.step() };
        self.entered(vcpu, Entry::GetOn, stop)
    }

    /// Lets a vCPU execute one instruction ([`Stop::Stepped`]), or begin one that stops it. Hosts differ in what that does at some
    /// (docs/hosts.md).
    pub fn step(&mut self, vcpu: usize) -> Stop {
        self.bound();
        let stop = self.processors[vcpu].step();
        self.entered(vcpu, Entry::Step, stop)
    }

    /// Has the debug exception that a step can leave behind come where nothing comes of it: in the state `aside`, in which the
    /// next instruction has no effect; then the vCPU is put `back`. Where an access stops a vCPU in a step, Bochs' VMX holds that step's
    /// exception pending, and it would come to the guest once nobody steps any more (docs/hosts.md). Of other hosts nothing is asked.
    pub fn settle(&mut self, vcpu: usize, aside: &ProcessorState, back: &ProcessorState) {
        if !self.host.keeps_steps {
            return;
        }
        self.load(vcpu, aside, None);
        for _ in 0..MOST_ENTRIES {
            self.step(vcpu);
            if self.state(vcpu).map(|now| now.general.rip) != Ok(aside.general.rip) {
                break;
            }
        }
        self.load(vcpu, back, None);
    }

    /// Completes the access of a vCPU's last stop, and nothing else: it stands behind that instruction then, or at the second access of
    /// the same one.
    pub fn complete(&mut self, vcpu: usize) -> Stop {
        self.bound();
        let stop = self.processors[vcpu].complete();
        self.entered(vcpu, Entry::Complete, stop)
    }

    /// Leaves the thread to others: nothing of it is interrupted until a vCPU goes on.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.is_bounded) {
            self.alarm.repeat(Duration::ZERO);
        }
    }

    fn bound(&mut self) {
        if !std::mem::replace(&mut self.is_bounded, true) {
            self.alarm.repeat(INTERRUPTED_EVERY);
        }
    }

    /// Says what the access of a vCPU's last stop reads.
    pub fn answer(&mut self, vcpu: usize, value: u64) {
        self.note(|| Call::Answer { vcpu, value });
        self.processors[vcpu].answer(value);
    }

    /// Lets the access to a model-specific register of a vCPU's last stop raise #GP.
    pub fn refuse(&mut self, vcpu: usize) {
        self.note(|| Call::Refuse { vcpu });
        self.processors[vcpu].refuse();
    }

    /// Writes a model-specific register as KVM does: false where that refuses the value.
    pub fn takes_msr(&self, vcpu: usize, index: u32, value: u64) -> bool {
        self.note(|| Call::TakeMsr { vcpu, index, value });
        self.processors[vcpu].takes_msr(index, value)
    }

    /// Puts a vCPU that was reset where a start-up interrupt does (SDM 3A 9.4.4).
    pub fn start_up(&mut self, vcpu: usize, vector: u8) -> Result<(), kvm_ioctls::Error> {
        self.processors[vcpu].start_up(vector)
    }

    /// Takes what a vCPU's segments and tables are now for what they are from here on.
    pub fn keep_tables(&mut self, vcpu: usize) {
        self.processors[vcpu].keep_tables();
    }

    /// The registers of a vCPU at its last stop; an error where one of those has changed that were to stay.
    pub fn state(&self, vcpu: usize) -> Result<ProcessorState, Moved> {
        self.processors[vcpu].state()
    }

    /// All system registers of a vCPU in that state, but for IA32_APIC_BASE, of which KVM knows nothing here.
    pub fn system(&self, vcpu: usize, state: &ProcessorState) -> SystemRegisters {
        self.processors[vcpu].system(state, false)
    }

    /// The same of a vCPU that was reset, and not started since.
    pub fn system_at_reset(&self, vcpu: usize, state: &ProcessorState) -> SystemRegisters {
        self.processors[vcpu].system(state, true)
    }

    /// The state in which an INIT leaves a vCPU other than the first: none of its tables is left then, either.
    pub fn after_init(&self, vcpu: usize, state: &ProcessorState) -> ProcessorState {
        self.processors[vcpu].after_init(state)
    }

    /// Puts a vCPU into a state, and has an interrupt or NMI delivered before its next instruction, or starts it in the state that an INIT has
    /// left. An access that it stands at is dropped.
    pub fn load(&mut self, vcpu: usize, state: &ProcessorState, inject: Option<Inject>) {
        self.bound();
        self.note(|| Call::Load { vcpu, state: Box::new(*state), inject });
        self.processors[vcpu].load(state, inject);
    }
}

/// Has accesses to model-specific registers stop the vCPU that makes them, but for those to [`EFER`].
fn filter_msrs(vm: &VmFd) -> Result<(), ControlError> {
    let failed = |ioctl| move |source| ControlError::Filter { ioctl, source };
    let reasons = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
    let capability =
        kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, args: [reasons.into(), 0, 0, 0], ..Default::default() };
    vm.enable_cap(&capability).map_err(failed("KVM_ENABLE_CAP"))?;
    // A bit that is set allows the access; what is denied is an exit.
    let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let allowed = [MsrFilterRange { flags, base: EFER, msr_count: 1, bitmap: &[1] }];
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &allowed).map_err(failed("KVM_X86_SET_MSR_FILTER"))
}
