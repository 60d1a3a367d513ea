//! The exits of a vCPU, parsed once into values that own what they say.
#![expect(unsafe_code, reason = "the payloads of exits lie in a union of kvm_run")]

use kvm_bindings::{
    KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES as INSTRUCTION_BYTES, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use stallbench_abi::port::{self, Doorbell};

use crate::event::Fault;
use crate::serial::Serial;

/// The port by which a plain guest ends its run.
const EXIT_PORT: u16 = 0xf4;

/// Why `KVM_RUN` came back.
#[derive(Debug)]
pub(super) enum Exit {
    /// A signal or the `immediate_exit` byte.
    Interrupted,
    /// An application processor got its INIT or SIPI: enter again.
    Again,
    /// It halted, and does not wait in the kernel: with local APICs there only where it is stepped (docs/hosts.md).
    Halted,
    /// The guest rang.
    Doorbell(Doorbell),
    /// A spin that yields.
    Yield,
    /// A plain guest used its serial port, which has been done.
    Serial,
    /// A plain guest ended its run with this status.
    Ended(u32),
    /// An access to a model-specific register that is to be told, and has still to be done.
    Msr(Msr),
    /// A breakpoint or a single step; which, DR6 tells (SDM 3B 18.2.3).
    Debug { dr6: u64 },
    /// An access to where nothing is: reads give all ones, writes go nowhere.
    Nothing,
    /// The vCPU cannot go on.
    Fault(Fault),
}

/// An access to a model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Msr {
    pub(super) index: u32,
    /// What is to be written; `None`: it is to be read.
    pub(super) write: Option<u64>,
}

impl Exit {
    /// Whether KVM has still to complete the access that ended `KVM_RUN` (KVM api.rst 5, `KVM_EXIT_IO`).
    pub(super) fn is_access(&self) -> bool {
        matches!(self, Self::Doorbell(_) | Self::Yield | Self::Serial | Self::Ended(_) | Self::Nothing | Self::Msr(_))
    }
}

/// Runs the guest until the next exit. A plain guest has a serial port.
pub(super) fn run(vcpu: &mut VcpuFd, serial: Option<&Serial>) -> Exit {
    let fault = match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => {
            let Some(serial) = serial else { return output(port, data) };
            return match port {
                EXIT_PORT => Exit::Ended(leading(data) & access_mask(vcpu.get_kvm_run())),
                _ if serial.write(port, data) => Exit::Serial,
                _ => Exit::Nothing,
            };
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            data.fill(0xff);
            let answered = serial.is_some_and(|serial| serial.read(port, data));
            return if answered { Exit::Serial } else { Exit::Nothing };
        }
        Ok(VcpuExit::MmioRead(_, data)) => {
            data.fill(0xff);
            return Exit::Nothing;
        }
        Ok(VcpuExit::X86Rdmsr(exit)) => return Exit::Msr(Msr { index: exit.index, write: None }),
        Ok(VcpuExit::X86Wrmsr(exit)) => return Exit::Msr(Msr { index: exit.index, write: Some(exit.data) }),
        Ok(VcpuExit::Debug(debug)) => return Exit::Debug { dr6: debug.dr6 },
        Ok(VcpuExit::MmioWrite(..) | VcpuExit::IoapicEoi(_)) => return Exit::Nothing,
        Ok(VcpuExit::Hlt) => return Exit::Halted,
        Ok(VcpuExit::Intr) => return Exit::Interrupted,
        Ok(VcpuExit::Shutdown) => Fault::Shutdown,
        Ok(VcpuExit::FailEntry(reason, cpu)) => Fault::FailEntry { reason, cpu },
        Ok(VcpuExit::MemoryFault { gpa, .. }) => Fault::Memory { address: gpa },
        Ok(VcpuExit::InternalError) => internal_error(vcpu.get_kvm_run()),
        Ok(other) => Fault::Unexpected { exit: format!("{other:?}") },
        Err(error) => return failed(error.errno()),
    };
    Exit::Fault(fault)
}

/// Says what came of the access to a model-specific register that ended `KVM_RUN`: the value that was read or written, or
/// `None` for #GP (KVM api.rst 5, `KVM_EXIT_X86_RDMSR`).
pub(crate) fn answer(vcpu: &mut VcpuFd, value: Option<u64>) {
    // SAFETY: the last exit was of this kind, so the kernel reads this member of the union; both fields are plain numbers.
    let msr = unsafe { &mut vcpu.get_kvm_run().__bindgen_anon_1.msr };
    msr.error = u8::from(value.is_none());
    msr.data = value.unwrap_or_default();
}

/// Says what the access reads that ended `KVM_RUN`, little-endian: of memory that has no slot (KVM api.rst 5, `KVM_EXIT_MMIO`), or of a
/// model-specific register.
pub(crate) fn answer_read(vcpu: &mut VcpuFd, value: u64) {
    let run = vcpu.get_kvm_run();
    match run.exit_reason {
        KVM_EXIT_MMIO => run.__bindgen_anon_1.mmio.data = value.to_le_bytes(),
        KVM_EXIT_X86_RDMSR => answer(vcpu, Some(value)),
        _ => {}
    }
}

fn output(port: u16, data: &[u8]) -> Exit {
    match (port, <[u8; 4]>::try_from(data)) {
        (port::DOORBELL, Ok(value)) => Exit::Doorbell(Doorbell(u32::from_le_bytes(value))),
        (port::YIELD, _) => Exit::Yield,
        _ => Exit::Nothing,
    }
}

/// The first four bytes of what is written, or those that there are.
fn leading(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// The bits of the first access of `KVM_EXIT_IO`: KVM tells several accesses of a string instruction at once.
fn access_mask(run: &kvm_run) -> u32 {
    // SAFETY: the exit reason says that this member of the union is the one that the kernel wrote; all of its fields are plain
    // numbers.
    let size = unsafe { run.__bindgen_anon_1.io }.size;
    u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
}

fn failed(errno: i32) -> Exit {
    match errno {
        libc::EINTR => Exit::Interrupted,
        libc::EAGAIN => Exit::Again,
        errno => Exit::Fault(Fault::Run { errno }),
    }
}

/// Reads what KVM says of an internal error (KVM api.rst 5, `KVM_EXIT_INTERNAL_ERROR`).
pub(crate) fn internal_error(run: &kvm_run) -> Fault {
    // SAFETY: the exit reason says that this member of the union is the one that the kernel wrote.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    let data = internal.data[..count].to_vec();
    let instruction = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION if count > 0 => instruction_bytes(run),
        _ => Vec::new(),
    };
    Fault::Internal { suberror: internal.suberror, instruction, data }
}

fn instruction_bytes(run: &kvm_run) -> Vec<u8> {
    // SAFETY: suberror 1 with data says that the kernel wrote this member of the union; all of its fields are plain numbers.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.flags & u64::from(INSTRUCTION_BYTES) == 0 {
        return Vec::new();
    }
    // SAFETY: the union of `emulation_failure` has this one member.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let count = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
    bytes.insn_bytes[..count].to_vec()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn doorbell_is_one_access_of_four_bytes() {
        assert!(matches!(output(port::DOORBELL, &[2, 0, 0, 0]), Exit::Doorbell(Doorbell::DONE)));
        assert!(matches!(output(port::DOORBELL, &[2]), Exit::Nothing));
        assert!(matches!(output(port::DOORBELL, &[2, 0, 0, 0, 2, 0, 0, 0]), Exit::Nothing), "a string of doorbells");
        assert!(matches!(output(port::DOORBELL, &[0xff; 4]), Exit::Doorbell(Doorbell(u32::MAX))));
        assert!(matches!(output(port::YIELD, &[0]), Exit::Yield));
        assert!(matches!(output(0x3f8, &[0]), Exit::Nothing));
    }

    #[test]
    fn status_is_the_first_access_to_the_exit_port() {
        assert_eq!((leading(&[7]), leading(&[1, 2]), leading(&[0, 0, 0, 1, 9])), (7, 0x201, 0x0100_0000));
        let mut run = kvm_run::default();
        for (size, mask) in [(1, 0xff), (2, 0xffff), (4, u32::MAX), (0, 0xff), (9, u32::MAX)] {
            run.__bindgen_anon_1.io.size = size;
            assert_eq!(access_mask(&run), mask, "{size}");
        }
    }

    #[test]
    fn errors_of_kvm_run_are_told_apart() {
        assert!(matches!(failed(libc::EINTR), Exit::Interrupted));
        assert!(matches!(failed(libc::EAGAIN), Exit::Again));
        assert!(matches!(failed(libc::EFAULT), Exit::Fault(Fault::Run { errno: libc::EFAULT })));
    }
}
