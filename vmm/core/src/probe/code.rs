//! The guests that ask, as bytes of 64-bit code.

use stallbench_abi::layout::{ARENA, CODE_SELECTOR, IDT, IDT_LIMIT, IMAGE, STUBS};

/// Bytes that a handler has.
const HANDLER: u64 = 0x100;
/// The port that guests tell by.
pub(super) const PORT: u16 = 0x99;
/// CR4.OSFXSR and CR4.OSXMMEXCPT: SSE is no invalid opcode (SDM 3A 2.5).
pub(super) const CR4_SSE: u64 = 3 << 9;

/// The vector whose handler does not write EOI at once.
pub(super) const BUSY: u8 = 0x51;
/// A higher vector of the same priority class, which must wait for that EOI (SDM 3A 11.8.3.1).
pub(super) const CLASS_MATE: u8 = 0x52;

/// What guests tell.
pub(super) mod tell {
    /// Nothing: an exit, at which a host that delivers no interrupt between two instructions may do so.
    pub(crate) const NOTHING: u8 = 0;
    /// The handler of BUSY runs, and has not written EOI.
    pub(crate) const BUSY: u8 = 1;
    /// It still runs, after it had interrupts enabled with the class mate pending.
    pub(crate) const BUSY_STILL: u8 = 2;
    /// The handler of the class mate runs.
    pub(crate) const CLASS_MATE: u8 = 3;
    /// The guest has come to its end, and says so for ever.
    pub(crate) const END: u8 = 4;
}

/// What lies in EBX when a processor shuts down.
pub(super) const MARK: u64 = 0x5ca1_ab1e;

/// Where a guest writes a byte.
pub(super) const WRITTEN: u64 = ARENA;

/// How often a guest can be interrupted before one instruction.
pub(super) const WINDOWS: usize = 16;

/// Instructions that are more than plain integers: popcnt eax, eax; xorps xmm0, xmm0; fninit.
pub(super) const BEYOND: [&[u8]; 3] = [&[0xf3, 0x0f, 0xb8, 0xc0], &[0x0f, 0x57, 0xc0], &[0xdb, 0xe3]];

/// What some KVM emulates whole, and what follows: mov rax, cr4; mov cr4, rax; nop; nop.
pub(super) const CONTROL: [&[u8]; 4] = [&[0x0f, 0x20, 0xe0], &[0x0f, 0x22, 0xe0], NOP, NOP];

const CLI: &[u8] = &[0xfa];
const STI: &[u8] = &[0xfb];
pub(super) const NOP: &[u8] = &[0x90];
const IRETQ: &[u8] = &[0x48, 0xcf];

/// MSRs, in x2APIC mode (SDM 3A table 11-6).
mod msr {
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const EOI: u32 = 0x80b;
    pub(super) const SVR: u32 = 0x80f;
    pub(super) const SELF_IPI: u32 = 0x83f;
}

/// APIC base: at its usual address, of the boot processor, enabled, in x2APIC mode.
const APIC_BASE: u32 = 0xfee0_0000 | 1 << 8 | 1 << 10 | 1 << 11;
/// SVR: enabled by software, spurious vector 0xff.
const SVR: u32 = 1 << 8 | 0xff;

/// What a guest is made of.
pub(super) struct Code {
    /// Code and tables, each with its address.
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
    /// Limit of its table of interrupts.
    pub(super) idt_limit: u16,
}

impl Code {
    /// Sends itself an interrupt whose handler lets a second one of its class come before it writes EOI.
    pub(super) fn interrupts() -> Self {
        let main = [
            &wrmsr(msr::APIC_BASE, APIC_BASE)[..],
            &wrmsr(msr::SVR, SVR),
            STI,
            &wrmsr(msr::SELF_IPI, BUSY.into()),
            &a_while(),
            &end(),
        ];
        let busy = [
            &out(tell::BUSY)[..],
            &wrmsr(msr::SELF_IPI, CLASS_MATE.into()),
            STI,
            &a_while(),
            CLI,
            &out(tell::BUSY_STILL),
            &wrmsr(msr::EOI, 0),
            STI,
            &a_while(),
            IRETQ,
        ];
        let mate = [&out(tell::CLASS_MATE)[..], &wrmsr(msr::EOI, 0), IRETQ];
        let mut pieces = vec![(IMAGE, main.concat())];
        for (index, (vector, handler)) in (0..).zip([(BUSY, busy.concat()), (CLASS_MATE, mate.concat())]) {
            let address = STUBS + index * HANDLER;
            pieces.push((IDT + 16 * u64::from(vector), gate(address)));
            pieces.push((address, handler));
        }
        Self { pieces, idt_limit: IDT_LIMIT }
    }

    /// One instruction, and the end.
    pub(super) fn one(instruction: &[u8]) -> Self {
        Self { pieces: vec![(IMAGE, [instruction, &end()].concat())], idt_limit: 0 }
    }

    /// Can be interrupted before a single instruction, again and again: behind STI and the instruction in its shadow.
    pub(super) fn windows() -> Self {
        Self::one(&[STI, NOP, CLI, &out(tell::BUSY)].concat().repeat(WINDOWS))
    }

    /// Writes a byte: mov [WRITTEN], al; and the end.
    pub(super) fn write() -> Self {
        Self::one(&moves(0x88))
    }

    /// Reads it: mov al, [WRITTEN]; and the end.
    pub(super) fn read() -> Self {
        Self::one(&moves(0x8a))
    }

    /// Marks EBX, and shuts down by an exception that has no gate: mov ebx, MARK; ud2.
    pub(super) fn shutdown() -> Self {
        let mark = (MARK as u32).to_le_bytes();
        Self::one(&[&[0xbb][..], &mark, &[0x0f, 0x0b]].concat())
    }
}

/// mov between AL and the byte at WRITTEN, in the direction of the opcode.
fn moves(opcode: u8) -> Vec<u8> {
    [&[opcode, 0x04, 0x25][..], &(WRITTEN as u32).to_le_bytes()].concat()
}

/// An interrupt gate of ring 0 (SDM 3A figure 7-8).
fn gate(address: u64) -> Vec<u8> {
    let low = (address & 0xffff) | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
    [low, address >> 32].map(u64::to_le_bytes).concat()
}

/// mov ecx, register; mov eax, low; xor edx, edx; wrmsr
fn wrmsr(register: u32, low: u32) -> Vec<u8> {
    [&[0xb9][..], &register.to_le_bytes(), &[0xb8], &low.to_le_bytes(), &[0x31, 0xd2, 0x0f, 0x30]].concat()
}

/// mov al, what; out PORT, al
fn out(what: u8) -> Vec<u8> {
    vec![0xb0, what, 0xe6, PORT as u8]
}

/// Instructions and exits, in which an interrupt that is let in comes.
fn a_while() -> Vec<u8> {
    [NOP, &out(tell::NOTHING), NOP, &out(tell::NOTHING), NOP, &out(tell::NOTHING), NOP].concat()
}

/// Tells that it is the end, again and again: jmp to the first of the six bytes.
fn end() -> Vec<u8> {
    [&out(tell::END)[..], &[0xeb, 0xfa]].concat()
}
