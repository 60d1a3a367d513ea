//! The notes by which gdb knows the threads of a core, laid out as Linux does (elfcore.h, user_64.h): a thread a vCPU, its id
//! one more than the vCPU's index.

use super::note::{CORE, append};
use crate::machine::{Registers, SystemRegisters, VcpuState};

/// Type of the note.
const PRSTATUS: u32 = 1;
/// `struct elf_prstatus`: its size, and where the thread's id and its registers lie.
const STATUS_SIZE: usize = 336;
const STATUS_ID: usize = 32;
const STATUS_REGISTERS: usize = 112;
/// Appends a note a vCPU. One whose registers could not be read is no thread. What the process was is not told: gdb would want
/// the payload's file to be called so.
pub(super) fn append_all(out: &mut Vec<u8>, vcpus: &[VcpuState]) {
    for vcpu in vcpus {
        if let Ok(registers) = &vcpu.registers {
            append(out, CORE, PRSTATUS, &status(vcpu.index, registers, vcpu.system.as_ref().ok()));
        }
    }
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
