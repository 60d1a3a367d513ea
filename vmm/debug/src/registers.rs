//! The registers of a vCPU by name.

use stallbench_state::machine::{Registers, SystemRegisters, VcpuState};

use crate::error::CommandError;
use crate::nearest::did_you_mean;

/// A register of a group.
pub(crate) type Named<G> = (&'static str, fn(&G) -> u64);

/// General registers, in the order in which they are shown.
pub(crate) const GENERAL: [Named<Registers>; 18] = [
    ("rax", |r| r.rax),
    ("rbx", |r| r.rbx),
    ("rcx", |r| r.rcx),
    ("rdx", |r| r.rdx),
    ("rsi", |r| r.rsi),
    ("rdi", |r| r.rdi),
    ("rbp", |r| r.rbp),
    ("rsp", |r| r.rsp),
    ("r8", |r| r.r8),
    ("r9", |r| r.r9),
    ("r10", |r| r.r10),
    ("r11", |r| r.r11),
    ("r12", |r| r.r12),
    ("r13", |r| r.r13),
    ("r14", |r| r.r14),
    ("r15", |r| r.r15),
    ("rip", |r| r.rip),
    ("rflags", |r| r.rflags),
];

/// System registers that are one number.
pub(crate) const SYSTEM: [Named<SystemRegisters>; 9] = [
    ("cr0", |s| s.cr0),
    ("cr2", |s| s.cr2),
    ("cr3", |s| s.cr3),
    ("cr4", |s| s.cr4),
    ("cr8", |s| s.cr8),
    ("efer", |s| s.efer),
    ("apic_base", |s| s.apic_base),
    ("gdtr", |s| s.gdt.base),
    ("idtr", |s| s.idt.base),
];

/// The names of all.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    GENERAL.iter().map(|(name, _)| *name).chain(SYSTEM.iter().map(|(name, _)| *name))
}

/// The value of a register of a vCPU.
pub(crate) fn value(vcpu: &VcpuState, name: &str) -> Result<u64, CommandError> {
    let unread = |unread: &_| CommandError::Unread { vcpu: vcpu.index, unread: Clone::clone(unread) };
    let lower = name.to_lowercase();
    if let Some((_, of)) = GENERAL.iter().find(|(known, _)| *known == lower) {
        return vcpu.registers.as_ref().map(of).map_err(unread);
    }
    match SYSTEM.iter().find(|(known, _)| *known == lower) {
        Some((_, of)) => vcpu.system.as_ref().map(of).map_err(unread),
        None => Err(CommandError::UnknownRegister { name: name.to_owned(), near: did_you_mean(name, names()) }),
    }
}
