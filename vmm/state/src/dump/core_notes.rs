//! The notes by which gdb knows the threads of a core, laid out as Linux does (elfcore.h, user_64.h): a thread a vCPU, its id
//! one more than the vCPU's index.

use super::About;
use super::note::{CORE, append};
use crate::machine::{Registers, SystemRegisters, VcpuState};

/// Types of the notes.
const PRSTATUS: u32 = 1;
const PRPSINFO: u32 = 3;
/// `struct elf_prstatus`: its size, and where the thread's id and its registers lie.
const STATUS_SIZE: usize = 336;
const STATUS_ID: usize = 32;
const STATUS_REGISTERS: usize = 112;
/// `struct elf_prpsinfo`: its size, and where the name and the command line lie, with their sizes.
const INFO_SIZE: usize = 136;
const INFO_NAME: (usize, usize) = (40, 16);
const INFO_COMMAND: (usize, usize) = (56, 80);

/// Appends a note a vCPU, then what the process was, in gdb's words. A vCPU whose registers could not be read is no thread.
pub(super) fn append_all(out: &mut Vec<u8>, vcpus: &[VcpuState], about: &About) {
    for vcpu in vcpus {
        if let Ok(registers) = &vcpu.registers {
            append(out, CORE, PRSTATUS, &status(vcpu.index, registers, vcpu.system.as_ref().ok()));
        }
    }
    append(out, CORE, PRPSINFO, &info(about));
}

fn status(vcpu: usize, registers: &Registers, system: Option<&SystemRegisters>) -> Vec<u8> {
    let mut status = vec![0; STATUS_SIZE];
    // A guest has far fewer vCPUs than there are ids.
    status[STATUS_ID..STATUS_ID + 4].copy_from_slice(&(vcpu as u32 + 1).to_le_bytes());
    let words = user_registers(registers, &system.copied().unwrap_or_default());
    for (slot, word) in status[STATUS_REGISTERS..].as_chunks_mut().0.iter_mut().zip(words) {
        *slot = word.to_le_bytes();
    }
    status
}

/// `struct user_regs_struct`.
fn user_registers(r: &Registers, s: &SystemRegisters) -> [u64; 27] {
    // No system call is being made.
    let orig_rax = u64::MAX;
    let selector = |segment: crate::machine::Segment| u64::from(segment.selector);
    let general = [r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi];
    let frame = [r.rdi, orig_rax, r.rip, selector(s.cs), r.rflags, r.rsp, selector(s.ss)];
    let segments = [s.fs.base, s.gs.base, selector(s.ds), selector(s.es), selector(s.fs), selector(s.gs)];
    let mut all = [0; 27];
    all[..14].copy_from_slice(&general);
    all[14..21].copy_from_slice(&frame);
    all[21..].copy_from_slice(&segments);
    all
}

fn info(about: &About) -> Vec<u8> {
    let mut info = vec![0; INFO_SIZE];
    for ((at, size), text) in [(INFO_NAME, "stallbench"), (INFO_COMMAND, &about.run)] {
        // The last byte stays zero.
        let text = &text.as_bytes()[..text.len().min(size - 1)];
        info[at..at + text.len()].copy_from_slice(text);
    }
    info
}
