//! A vCPU with the processor of a certificate, and one instruction of it.
//!
//! An instruction is executed by a single step. Two things end it otherwise. One that writes to memory without a slot ends with that
//! exit: its result is in the registers, and whoever entered the guest again would execute the next one, without a debug exit
//! at its end. So once an access was answered, the guest is entered with `immediate_exit` alone: KVM completes the access, goes on with
//! the instruction as far as the next one, and comes back before the guest is. And `hlt` is not stepped at all: kvm_pvm would
//! make a debug exit of it, and tell of the halt at some later instruction.

use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    kvm_dtable, kvm_guest_debug, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use stallbench_core::cpuid;
use stallbench_state::certificate::{self, RFLAGS, RIP, SegmentRegister};

use crate::falsehood::Wrong;
use crate::opening::{Class, Opening};
use crate::{HostFailure, failed};

/// CR0.TS: floating-point instructions, whose registers are in no state, raise an exception (SDM 3A 2.5).
const CR0_TS: u64 = 1 << 3;
/// CR0.ET, which is always set.
const CR0_ET: u64 = 1 << 4;
/// RFLAGS.RF: says nothing but that a breakpoint was passed (SDM 3B 19.3.1.1).
const RFLAGS_RF: u64 = 1 << 16;
/// Most accesses of one instruction: a `rep` over two pages of bytes.
const MOST_ACCESSES: usize = 1 << 14;
/// How long an instruction may take.
const LONGEST: Duration = Duration::from_secs(5);
/// Debug exits before an instruction that has not moved counts as executed: on kvm_intel under Bochs the first touch of a page
/// makes one, and there are up to four for the first instruction of all.
const UNMOVED: usize = 12;

/// What answers accesses to memory.
pub(crate) trait Bus {
    /// Reads bytes.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Wrong>;
    /// Writes bytes.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Wrong>;
}

/// Why an instruction has no result.
#[derive(Debug)]
pub(crate) enum NoResult {
    /// It does what no certificate holds.
    Wrong(Wrong),
    /// The host cannot execute it in this way.
    NotExecuted,
    /// The host failed.
    Host(HostFailure),
}

impl From<Wrong> for NoResult {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

impl From<HostFailure> for NoResult {
    fn from(failure: HostFailure) -> Self {
        Self::Host(failure)
    }
}

/// What an instruction left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Executed {
    /// The registers, in the order of a state's.
    pub(crate) registers: [u64; 18],
    /// It was `hlt`, and the vCPU waits.
    pub(crate) halts: bool,
}

/// How an entry into the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By a debug exit.
    Debug,
    /// By a halt.
    Halt,
    /// All accesses were answered, and KVM came back before the guest.
    Answered,
    /// By a signal, before anything.
    Interrupted,
}

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Processor {
    fd: VcpuFd,
    /// What its system registers are before and after each instruction.
    system: kvm_sregs,
}

impl Processor {
    /// The vCPU of this number, of as many.
    pub(crate) fn new(
        vm: &VmFd,
        vcpu: usize,
        vcpus: usize,
        processor: &certificate::Processor,
    ) -> Result<Self, NoResult> {
        let mut fd = vm.create_vcpu(vcpu as u64).map_err(failed("KVM_CREATE_VCPU"))?;
        let model = CpuId::from_entries(&cpuid::entries(vcpu, vcpus)).expect("the model has a handful of leaves");
        fd.set_cpuid2(&model).map_err(failed("KVM_SET_CPUID2"))?;
        let at_reset = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let asked = system_registers(at_reset, processor);
        // A value that no processor can have is the file's fault, and KVM says no more of it.
        fd.set_sregs(&asked).map_err(|_| Wrong::SystemRegisters)?;
        let system = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let control = |s: &kvm_sregs| (s.cr0 | CR0_ET, s.cr3, s.cr4, s.efer, s.cr8);
        if control(&system) != control(&asked) {
            return Err(Wrong::SystemRegisters.into());
        }
        // Without a local APIC in the kernel each entry takes the task priority from here (KVM api.rst 5).
        fd.get_kvm_run().cr8 = system.cr8;
        Ok(Self { fd, system })
    }

    /// Executes the instruction that these registers are at.
    pub(crate) fn execute(
        &mut self,
        registers: &[u64; 18],
        opening: &Opening,
        bus: &mut dyn Bus,
    ) -> Result<Executed, NoResult> {
        self.set(registers)?;
        let began = Instant::now();
        let (mut accesses, mut unmoved) = (0, 0);
        loop {
            self.arm(opening.class != Class::Halt)?;
            let end = self.enter(bus, &mut accesses)?;
            let found = self.registers()?;
            if end == End::Halt {
                return self.halted(opening, found);
            }
            if is_executed(opening.class, registers, &found, accesses) {
                self.check_system()?;
                return Ok(Executed { registers: found, halts: false });
            }
            unmoved += usize::from(end != End::Interrupted && opening.class != Class::Repeated);
            if unmoved > UNMOVED {
                return self.unmoved(opening, found);
            }
            if began.elapsed() > LONGEST {
                return Err(Wrong::Unending { accesses, seconds: LONGEST.as_secs() }.into());
            }
        }
    }

    fn halted(&self, opening: &Opening, registers: [u64; 18]) -> Result<Executed, NoResult> {
        if opening.class != Class::Halt {
            return Err(Wrong::Exit("a halt".into()).into());
        }
        self.check_system()?;
        Ok(Executed { registers, halts: true })
    }

    /// A branch that goes to itself; anything else that stays where it is was not executed.
    fn unmoved(&self, opening: &Opening, registers: [u64; 18]) -> Result<Executed, NoResult> {
        if opening.class != Class::Branch {
            return Err(NoResult::NotExecuted);
        }
        self.check_system()?;
        Ok(Executed { registers, halts: false })
    }

    fn set(&self, registers: &[u64; 18]) -> Result<(), HostFailure> {
        self.fd.set_regs(&general(registers)).map_err(failed("KVM_SET_REGS"))?;
        // Nothing on its way: `sti` leaves a shadow behind.
        let flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
        let events = kvm_vcpu_events { flags, ..Default::default() };
        self.fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }

    /// Asks for a step from the registers as they are: KVM keeps the address that it was asked at.
    fn arm(&self, step: bool) -> Result<(), HostFailure> {
        let control = if step { KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP } else { 0 };
        let debug = kvm_guest_debug { control, ..Default::default() };
        self.fd.set_guest_debug(&debug).map_err(failed("KVM_SET_GUEST_DEBUG"))
    }

    fn registers(&self) -> Result<[u64; 18], HostFailure> {
        let found = self.fd.get_regs().map_err(failed("KVM_GET_REGS"))?;
        let mut registers = listed(&found);
        registers[RFLAGS] &= !RFLAGS_RF;
        Ok(registers)
    }

    /// Enters the guest until its instruction is over or it has nothing more to ask.
    fn enter(&mut self, bus: &mut dyn Bus, accesses: &mut usize) -> Result<End, NoResult> {
        let mut answered = false;
        loop {
            self.fd.set_kvm_immediate_exit(u8::from(answered));
            match self.fd.run() {
                Ok(VcpuExit::MmioRead(address, bytes)) => bus.read(address, bytes)?,
                Ok(VcpuExit::MmioWrite(address, bytes)) => bus.write(address, bytes)?,
                Ok(VcpuExit::Debug(_)) => return Ok(End::Debug),
                Ok(VcpuExit::Hlt) => return Ok(End::Halt),
                Ok(VcpuExit::Intr) => return Ok(if answered { End::Answered } else { End::Interrupted }),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    return Ok(if answered { End::Answered } else { End::Interrupted });
                }
                other => return Err(no_result(other)),
            }
            answered = true;
            *accesses += 1;
            if *accesses > MOST_ACCESSES {
                return Err(Wrong::Unending { accesses: *accesses, seconds: 0 }.into());
            }
        }
    }

    fn check_system(&self) -> Result<(), NoResult> {
        let now = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let was = &self.system;
        let control = [(was.cr0, now.cr0), (was.cr3, now.cr3), (was.cr4, now.cr4), (was.cr8, now.cr8)];
        let tables = |s: &kvm_sregs| [(s.gdt.base, s.gdt.limit), (s.idt.base, s.idt.limit)];
        let segments = |s: &kvm_sregs| [s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt];
        let changed = [
            ("a control register", control.iter().any(|(was, now)| was != now)),
            ("EFER", was.efer != now.efer),
            ("a segment register", segments(was) != segments(&now)),
            ("a descriptor table register", tables(was) != tables(&now)),
        ];
        match changed.into_iter().find(|(_, changed)| *changed) {
            Some((what, _)) => Err(Wrong::System(what).into()),
            None => Ok(()),
        }
    }
}

/// Whether the instruction is over, by what is in the registers now.
fn is_executed(class: Class, before: &[u64; 18], now: &[u64; 18], accesses: usize) -> bool {
    let same_but_flags = before[..RFLAGS] == now[..RFLAGS];
    match class {
        _ if before[RIP] != now[RIP] => true,
        // It may have gone to itself, and done something on its way.
        Class::Branch => accesses > 0 || !same_but_flags,
        _ => false,
    }
}

fn no_result(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> NoResult {
    NoResult::Wrong(match exit {
        Ok(VcpuExit::IoIn(port, _) | VcpuExit::IoOut(port, _)) => Wrong::Port(port),
        Ok(VcpuExit::X86Rdmsr(exit)) => Wrong::Msr(exit.index),
        Ok(VcpuExit::X86Wrmsr(exit)) => Wrong::Msr(exit.index),
        Ok(VcpuExit::Shutdown) => Wrong::Raises,
        Ok(VcpuExit::InternalError) => return NoResult::NotExecuted,
        Ok(other) => Wrong::Exit(format!("{other:?}")),
        Err(error) => return NoResult::Host(failed("KVM_RUN")(error)),
    })
}

fn system_registers(at_reset: kvm_sregs, processor: &certificate::Processor) -> kvm_sregs {
    let [cs, ds, es, fs, gs, ss, tr, ldt] = processor.segments.each_ref().map(segment);
    let &certificate::Processor { cr0, cr3, cr4, efer, apic_base, gdt, .. } = processor;
    kvm_sregs {
        cr0: cr0.0 | CR0_TS,
        cr3: cr3.0,
        cr4: cr4.0,
        cr8: processor.tpr.0 >> 4 & 0xf,
        efer: efer.0,
        apic_base: apic_base.0,
        gdt: kvm_dtable { base: gdt.0.0, limit: gdt.1, ..Default::default() },
        // Without a gate every exception is a triple fault, and an exit.
        idt: kvm_dtable { base: processor.idt.0.0, limit: 0, ..Default::default() },
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        ..at_reset
    }
}

/// Access rights are laid out as in [`stallbench_state::machine::Segment`].
fn segment(&SegmentRegister(selector, base, limit, access): &SegmentRegister) -> kvm_segment {
    let bits = |shift: u32, mask: u64| (access.0 >> shift & mask) as u8;
    kvm_segment {
        selector,
        base: base.0,
        limit: limit.0 as u32,
        type_: bits(0, 0xf),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: bits(16, 1),
        padding: 0,
    }
}

fn general(registers: &[u64; 18]) -> kvm_regs {
    let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] = *registers;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn listed(regs: &kvm_regs) -> [u64; 18] {
    let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } = *regs;
    [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]
}
