//! Questions that no capability answers, asked of the host by tiny guests: one vCPU, a few bytes of code, no contract.
//!
//! `stallbench host` asks them, and nothing else does: a run must not pay for it. What a guest tells, it tells by writes to a port,
//! each of which is an exit; a guest that tells anything but what its question foresees has given no answer.

mod code;

use kvm_bindings::kvm_guest_debug;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use stallbench_abi::layout::{ARENA, IMAGE};
use stallbench_state::apic::LocalApic;
use stallbench_state::host::{
    BEYOND_PLAIN_INTEGERS, DATA_BREAKPOINTS, IN_SERVICE, Probed, SHUTDOWN_KEEPS, WAITS_FOR_EOI,
};
use thiserror::Error;

use crate::boot::registers::RegisterError;
use crate::boot::{self, registers};
use crate::breakpoint::{self, Breakpoint};
use crate::host::HostKvm;
use crate::machine::{CreateError, create_vm};
use crate::memory::{GuestMemory, MemoryError};
use crate::watch::{LastWriters, Word};
use code::{BEYOND, BUSY, CR4_SSE, Code, MARK, NOP, PORT, WRITTEN, tell};

/// Most times that a guest is entered: each tells less than ten things.
const MOST_ENTRIES: usize = 100;

/// Why a host could not be asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// There is no VM to ask with.
    #[error("make a machine to ask with")]
    Machine(#[from] CreateError),
    /// It has no memory.
    #[error("make a machine to ask with")]
    Memory(#[from] MemoryError),
    /// It has no registers.
    #[error("make a machine to ask with")]
    Registers(#[from] RegisterError),
    /// An ioctl failed.
    #[error("{ioctl}")]
    Ioctl {
        /// Which.
        ioctl: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProbeError {
    move |source| ProbeError::Ioctl { ioctl, source }
}

impl HostKvm {
    /// Asks the host what it does where hosts differ. Takes some milliseconds.
    ///
    /// # Errors
    ///
    /// A machine could not be made. A guest that comes to no end is an answer that is missing, and no error.
    pub fn probe(&self) -> Result<Vec<Probed>, ProbeError> {
        let mut answers = apic(self)?;
        answers.push(beyond_plain_integers(self)?);
        answers.push(shutdown(self)?);
        answers.push(DATA_BREAKPOINTS.answered(data_breakpoints(self)?));
        Ok(answers)
    }

    /// Asks the host whether it sees who writes a word ([`crate::watch`]). Takes some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Self::probe`].
    pub fn watches_writes(&self) -> Result<bool, ProbeError> {
        Ok(data_breakpoints(self)? == Some(true))
    }

    /// Asks the host whether a vCPU that may be interrupted before but one instruction stops there, each time
    /// ([`crate::controlled`]). Takes some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Self::probe`].
    pub fn tells_windows(&self) -> Result<bool, ProbeError> {
        let mut asker = Asker::driven(self, &Code::windows())?;
        for _ in 0..code::WINDOWS {
            asker.vcpu.get_kvm_run().request_interrupt_window = 1;
            let stopped = asker.next();
            asker.vcpu.get_kvm_run().request_interrupt_window = 0;
            if (stopped, asker.next()) != (Told::Window, Told::Byte(tell::BUSY)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Asks the host whether a single step over an access to memory without a slot leaves a debug exception behind, which comes to
    /// the guest once nobody steps it any more ([`crate::controlled`]). Takes some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Self::probe`].
    pub fn keeps_steps(&self) -> Result<bool, ProbeError> {
        for access in [Code::read(), Code::write()] {
            let mut asker = Asker::driven(self, &access)?;
            asker.debug(breakpoint::STEP)?;
            // A step can end where it began.
            while asker.next() == Told::Breakpoint {}
            asker.debug(0)?;
            // It has no gate for one.
            if asker.next() == Told::Shutdown {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Asks the host whether a vCPU that was told to go by single steps has to be told again behind an instruction that KVM emulates
    /// whole: RFLAGS are written back without TF then, unless RIP is still where it was told last. Takes some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Self::probe`].
    pub fn loses_steps(&self) -> Result<bool, ProbeError> {
        let mut asker = Asker::driven(self, &Code::one(&code::CONTROL.concat()))?;
        asker.debug(breakpoint::STEP)?;
        let lengths = code::CONTROL.iter().map(|instruction| instruction.len() as u64);
        for end in lengths.scan(IMAGE, |at, length| {
            *at += length;
            Some(*at)
        }) {
            let begin = asker.rip()?;
            while asker.rip()? == begin {
                if asker.next() != Told::Breakpoint {
                    return Ok(true);
                }
            }
            if asker.rip()? != end {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it [tells windows](Self::tells_windows), [keeps steps](Self::keeps_steps) and [loses steps](Self::loses_steps): asked
    /// once.
    pub(crate) fn driving(&self) -> Result<Driving, ProbeError> {
        if let Some(known) = self.driving.get() {
            return Ok(*known);
        }
        let asked = Driving {
            tells_windows: self.tells_windows()?,
            keeps_steps: self.keeps_steps()?,
            loses_steps: self.loses_steps()?,
        };
        Ok(*self.driving.get_or_init(|| asked))
    }

    /// Asks the host whether a vCPU stops before an instruction ([`crate::stop`]). Takes some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Self::probe`].
    pub fn breaks(&self) -> Result<bool, ProbeError> {
        let mut asker = Asker::new(self, &Code::one(NOP))?;
        let debug = breakpoint::debug([Breakpoint::Execute(IMAGE + NOP.len() as u64)]);
        Ok(asker.vcpu.set_guest_debug(&debug).is_ok() && asker.next() == Told::Breakpoint)
    }
}

/// What hosts do otherwise with a vCPU that is driven step by step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Driving {
    /// A vCPU stops at the first place at which it can be interrupted.
    pub(crate) tells_windows: bool,
    /// A step can leave a debug exception behind.
    pub(crate) keeps_steps: bool,
    /// It has to be told of each step anew.
    pub(crate) loses_steps: bool,
}

/// What a guest told, and how it ended.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// It wrote this byte to the port.
    Byte(u8),
    /// KVM could not go on with it.
    Refused,
    /// Its processor shut down.
    Shutdown,
    /// It stopped at a breakpoint.
    Breakpoint,
    /// It stopped where it can be interrupted.
    Window,
    /// Something else.
    Other,
}

/// A guest of one vCPU, in long mode as any other.
struct Asker {
    vcpu: VcpuFd,
    entries: usize,
    /// Outlive the vCPU.
    _vm: VmFd,
    memory: GuestMemory,
}

impl Asker {
    /// A guest that is about to run this code.
    fn new(host: &HostKvm, code: &Code) -> Result<Self, ProbeError> {
        let (vm, memory) = (create_vm(host)?, GuestMemory::new(1)?);
        memory.attach(&vm)?;
        Self::of(vm, memory, code)
    }

    /// The same as it would be driven: no local APIC in the kernel, and no memory where vCPUs share some.
    fn driven(host: &HostKvm, code: &Code) -> Result<Self, ProbeError> {
        let (vm, memory) = (host.create_vm().map_err(CreateError::Vm)?, GuestMemory::new(1)?);
        memory.attach_all_but(&vm, ARENA)?;
        Self::of(vm, memory, code)
    }

    fn of(vm: VmFd, memory: GuestMemory, code: &Code) -> Result<Self, ProbeError> {
        boot::prepare_bare(&memory, &code.pieces);
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        registers::configure(&vcpu, 0, 1, false)?;
        registers::enter(&vcpu, IMAGE)?;
        let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        sregs.cr4 |= CR4_SSE;
        sregs.idt.limit = code.idt_limit;
        vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        Ok(Self { vcpu, entries: 0, _vm: vm, memory })
    }

    /// Has it debugged in this way from here on.
    fn debug(&self, control: u32) -> Result<(), ProbeError> {
        let debug = kvm_guest_debug { control, ..Default::default() };
        self.vcpu.set_guest_debug(&debug).map_err(failed("KVM_SET_GUEST_DEBUG"))
    }

    fn rip(&self) -> Result<u64, ProbeError> {
        Ok(self.vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?.rip)
    }

    /// Lets it run until it tells something. Its code does not halt, and its only loop tells that it has come to its end: each
    /// entry comes back.
    fn next(&mut self) -> Told {
        while self.entries < MOST_ENTRIES {
            self.entries += 1;
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT, &[tell::NOTHING])) => {}
                Ok(VcpuExit::IoOut(PORT, &[byte])) => return Told::Byte(byte),
                Ok(VcpuExit::InternalError | VcpuExit::FailEntry(..)) => return Told::Refused,
                Ok(VcpuExit::Shutdown) => return Told::Shutdown,
                Ok(VcpuExit::Debug(_)) => return Told::Breakpoint,
                Ok(VcpuExit::IrqWindowOpen) => return Told::Window,
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
                _ => return Told::Other,
            }
        }
        Told::Other
    }
}

/// What its local APIC shows and does while a handler has not written EOI.
fn apic(host: &HostKvm) -> Result<Vec<Probed>, ProbeError> {
    let mut asker = Asker::new(host, &Code::interrupts())?;
    let mut order = Vec::new();
    let mut kept = None;
    while let Told::Byte(byte) = asker.next() {
        if byte == tell::BUSY {
            kept = Some(in_service(&asker.vcpu)?);
        }
        order.push(byte);
        if byte == tell::END {
            break;
        }
    }
    let waits = match order[..] {
        [tell::BUSY, tell::BUSY_STILL, tell::CLASS_MATE, tell::END] => Some(true),
        [tell::BUSY, tell::CLASS_MATE, tell::BUSY_STILL, tell::END] => Some(false),
        _ => None,
    };
    Ok(vec![IN_SERVICE.answered(kept), WAITS_FOR_EOI.answered(waits)])
}

/// Whether both ISR and PPR of the local APIC know of the handler that runs.
fn in_service(vcpu: &VcpuFd) -> Result<bool, ProbeError> {
    let state = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let apic = LocalApic::from_registers(&state.regs.map(i8::cast_unsigned), true);
    // The class of the vector is the priority of the processor that handles it (SDM 3A 11.8.3.1).
    Ok(apic.in_service().any(|vector| vector == BUSY) && apic.ppr & 0xf0 == u32::from(BUSY & 0xf0))
}

/// Whether ring 0 may use more than plain integers.
fn beyond_plain_integers(host: &HostKvm) -> Result<Probed, ProbeError> {
    let mut works = Vec::new();
    for instruction in BEYOND {
        let mut asker = Asker::new(host, &Code::one(instruction))?;
        works.push(match asker.next() {
            Told::Byte(tell::END) => Some(true),
            Told::Refused => Some(false),
            _ => None,
        });
    }
    let answer = works.iter().copied().collect::<Option<Vec<_>>>().map(|works| works.into_iter().all(|works| works));
    Ok(BEYOND_PLAIN_INTEGERS.answered(answer))
}

/// Whether a breakpoint on writes stops a vCPU that writes.
fn data_breakpoints(host: &HostKvm) -> Result<Option<bool>, ProbeError> {
    let mut asker = Asker::new(host, &Code::write())?;
    let word = Word { linear: WRITTEN, physical: WRITTEN, size: 1 };
    let debug = LastWriters::new(&[word], &asker.memory).debug();
    if asker.vcpu.set_guest_debug(&debug).is_err() {
        return Ok(Some(false));
    }
    Ok(match asker.next() {
        Told::Breakpoint => Some(true),
        Told::Byte(tell::END) => Some(false),
        _ => None,
    })
}

/// Whether a processor that shut down still shows the registers that it had.
fn shutdown(host: &HostKvm) -> Result<Probed, ProbeError> {
    let mut asker = Asker::new(host, &Code::shutdown())?;
    let answer = match asker.next() {
        Told::Shutdown => Some(asker.vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?.rbx == MARK),
        _ => None,
    };
    Ok(SHUTDOWN_KEEPS.answered(answer))
}

#[cfg(test)]
mod test {
    use super::*;

    fn answers() -> (String, Vec<Probed>) {
        let host = HostKvm::open().expect("/dev/kvm");
        (host.fingerprint().vendor_module.clone(), host.probe().expect("answers"))
    }

    /// What docs/hosts.md says of the three.
    #[test]
    fn machine_answers_as_is_documented_of_its_vendor_module() {
        let (module, answers) = answers();
        let given: Vec<_> = answers.iter().map(|probed| (probed.name, probed.answer)).collect();
        let documented = match module.as_str() {
            "kvm_pvm" => [Some(false), Some(false), Some(false), Some(true), Some(false)],
            "kvm_amd" => [Some(true), Some(true), Some(true), Some(false), Some(true)],
            "kvm_intel" => [Some(true), Some(true), Some(true), Some(true), Some(true)],
            _ => return assert!(answers.iter().all(|probed| probed.answer.is_some()), "{given:?}"),
        };
        let questions = [IN_SERVICE, WAITS_FOR_EOI, BEYOND_PLAIN_INTEGERS, SHUTDOWN_KEEPS, DATA_BREAKPOINTS];
        let names = questions.map(|question| question.name);
        assert_eq!(given, names.into_iter().zip(documented).collect::<Vec<_>>());
    }

    #[test]
    fn every_known_host_stops_before_an_instruction() {
        let host = HostKvm::open().expect("/dev/kvm");
        let known = ["kvm_pvm", "kvm_amd", "kvm_intel"].contains(&host.fingerprint().vendor_module.as_str());
        assert!(host.breaks().expect("an answer") || !known);
    }

    #[test]
    fn processors_tell_windows_and_an_emulator_may_not() {
        let host = HostKvm::open().expect("/dev/kvm");
        let is_processor = ["kvm_amd", "kvm_intel"].contains(&host.fingerprint().vendor_module.as_str());
        assert!(host.tells_windows().expect("an answer") || !is_processor);
    }

    /// Emulated VMX alone keeps a step, emulated SVM alone loses one (docs/hosts.md); what processors do is not known.
    #[test]
    fn steps_are_kept_and_lost_where_that_is_documented() {
        let host = HostKvm::open().expect("/dev/kvm");
        let module = host.fingerprint().vendor_module.as_str();
        let Driving { keeps_steps, loses_steps, .. } = host.driving().expect("an answer");
        assert!(!keeps_steps || module == "kvm_intel");
        assert!(!loses_steps || module == "kvm_amd");
    }

    #[test]
    fn guest_that_tells_something_else_gives_no_answer() {
        let host = HostKvm::open().expect("/dev/kvm");
        let mut asker = Asker::new(&host, &Code::one(&[0xe6, 0x77])).expect("a guest");
        assert_eq!(asker.next(), Told::Other, "another port");
        assert_eq!(asker.next(), Told::Byte(tell::END));
    }
}
