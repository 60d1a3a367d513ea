//! General registers, as the decoder names them.

use iced_x86::Register;
use stallbench_state::machine::Registers;

/// The number of a general register, as in [`stallbench_state::certificate`]: whatever part of it is meant.
pub fn index(register: Register) -> Option<usize> {
    const ORDER: [Register; 16] = [
        Register::RAX,
        Register::RBX,
        Register::RCX,
        Register::RDX,
        Register::RSI,
        Register::RDI,
        Register::RSP,
        Register::RBP,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    let full = register.full_register();
    ORDER.iter().position(|one| *one == full)
}

/// A general register by that number, all 64 bits.
pub fn general(r: &Registers, index: usize) -> u64 {
    let all =
        [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    all.get(index).copied().unwrap_or_default()
}

/// What a general register adds to an address, where it is named by 32 or 64 bits; `None` for a register of another kind.
pub fn value(r: &Registers, register: Register) -> Option<u64> {
    let full = general(r, index(register)?);
    Some(if register.is_gpr32() { full & u64::from(u32::MAX) } else { full })
}
