//! What the next instruction of a vCPU reads and writes, found by decoding it, before it is executed.
//!
//! Only instructions whose whole effect is known are let through. Everything else makes a machine unproved: what reads something
//! that is no function of the state, what reaches a device, and what nobody has thought about.

use crate::register;
use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use stallbench_state::machine::{Registers, SystemRegisters};
use stallbench_state::memory::Memory;
use stallbench_state::paging::{self, PAGE};

/// Longest instruction (SDM 2A 2.3.11).
const LONGEST: u64 = 15;
/// Most bytes that one `rep` instruction may touch.
const MOST_BYTES: u64 = 1 << 16;
/// RFLAGS.DF: strings are worked on downwards.
const RFLAGS_DF: u64 = 1 << 10;

/// What an instruction does, but for its result.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) instruction: Instruction,
    /// Memory that it reads or writes, each piece within a page.
    pub(super) touches: Vec<Touch>,
}

/// Memory that an instruction touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Touch {
    /// Guest-physical address.
    pub(super) address: u64,
    /// The linear address by which it is touched.
    pub(super) linear: u64,
    pub(super) reads: bool,
    pub(super) writes: bool,
    /// What is there before it is executed.
    pub(super) before: Vec<u8>,
}

impl Touch {
    pub(super) fn bytes(&self) -> impl Iterator<Item = u64> + use<> {
        self.address..self.address + self.before.len() as u64
    }
}

/// Why an instruction is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not known to be a function of the state and nothing else.
    Instruction(String),
    /// It touches an address where no memory is.
    Device(u64),
    /// It cannot be fetched or decoded: it will fault.
    Unreadable,
}

/// Decodes instructions of one vCPU, and keeps what of page tables and code they take.
#[derive(Debug)]
pub(super) struct Decode {
    factory: InstructionInfoFactory,
    /// Entries of page tables that were read.
    pub(super) tables: Vec<u64>,
    /// Pages that were fetched from.
    pub(super) fetched: Vec<u64>,
}

impl Decode {
    pub(super) fn new() -> Self {
        Self { factory: InstructionInfoFactory::new(), tables: Vec::new(), fetched: Vec::new() }
    }

    /// The instruction at RIP.
    pub(super) fn at(
        &mut self,
        registers: &Registers,
        system: &SystemRegisters,
        memory: &dyn Memory,
    ) -> Result<Effect, Refusal> {
        let instruction = self.fetch(registers.rip, system, memory)?;
        if !is_known(&instruction) {
            return Err(Refusal::Instruction(text(&instruction)));
        }
        let mut touches = Vec::new();
        // `rep` with nothing to do touches nothing.
        if !(is_repeated(&instruction) && registers.rcx == 0) {
            for (linear, size, access) in accesses(self.factory.info(&instruction), &instruction, registers, system)? {
                self.touch(&mut touches, (linear, size), access, system, memory)?;
            }
        }
        Ok(Effect { instruction, touches })
    }

    fn fetch(&mut self, rip: u64, system: &SystemRegisters, memory: &dyn Memory) -> Result<Instruction, Refusal> {
        let mut bytes = Vec::with_capacity(LONGEST as usize);
        let mut at = rip;
        loop {
            let end = (at | (PAGE - 1)).wrapping_add(1);
            let size = (LONGEST - bytes.len() as u64).min(end.wrapping_sub(at)) as usize;
            let physical = self.physical(memory, system.cr3, at).ok_or(Refusal::Unreadable)?;
            let start = bytes.len();
            bytes.resize(start + size, 0);
            if !memory.read(physical, &mut bytes[start..]) {
                return Err(Refusal::Unreadable);
            }
            note(&mut self.fetched, physical & !(PAGE - 1));
            let mut decoder = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE);
            let instruction = decoder.decode();
            match decoder.last_error() {
                DecoderError::None => return Ok(instruction),
                DecoderError::NoMoreBytes if bytes.len() < LONGEST as usize => at = end,
                _ => return Err(Refusal::Unreadable),
            }
        }
    }

    /// An instruction that may come later; whether all that it does is known does not matter.
    pub(super) fn ahead(
        &mut self,
        rip: u64,
        system: &SystemRegisters,
        memory: &dyn Memory,
    ) -> Result<Instruction, Refusal> {
        let (tables, fetched) = (self.tables.len(), self.fetched.len());
        let instruction = self.fetch(rip, system, memory);
        // It is not executed yet.
        self.tables.truncate(tables);
        self.fetched.truncate(fetched);
        instruction
    }

    fn touch(
        &mut self,
        touches: &mut Vec<Touch>,
        (linear, size): (u64, u64),
        (reads, writes): (bool, bool),
        system: &SystemRegisters,
        memory: &dyn Memory,
    ) -> Result<(), Refusal> {
        for (at, size) in pieces(linear, size) {
            let address = self.physical(memory, system.cr3, at).ok_or(Refusal::Unreadable)?;
            let mut before = vec![0; size as usize];
            if !memory.read(address, &mut before) {
                return Err(Refusal::Device(address));
            }
            touches.push(Touch { address, linear: at, reads, writes, before });
        }
        Ok(())
    }

    pub(super) fn physical(&mut self, memory: &dyn Memory, cr3: u64, linear: u64) -> Option<u64> {
        paging::physical(memory, cr3, linear, &mut |table| note(&mut self.tables, table))
    }

    pub(super) fn info(&mut self, instruction: &Instruction) -> &InstructionInfo {
        self.factory.info(instruction)
    }
}

/// Keeps a value once; the last ones are the likeliest.
fn note(kept: &mut Vec<u64>, value: u64) {
    if !kept.iter().rev().any(|other| *other == value) {
        kept.push(value);
    }
}

/// A stretch of linear memory, cut at the ends of pages.
pub(super) fn pieces(linear: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut rest = (linear, size);
    core::iter::from_fn(move || {
        let (at, left) = rest;
        let here = left.min(PAGE - at % PAGE);
        rest = (at.wrapping_add(here), left - here);
        (left > 0).then_some((at, here))
    })
}

type Accesses = Vec<(u64, u64, (bool, bool))>;

/// Linear addresses that an instruction accesses: where, how many bytes, and whether it reads or writes them.
fn accesses(
    info: &InstructionInfo,
    instruction: &Instruction,
    registers: &Registers,
    system: &SystemRegisters,
) -> Result<Accesses, Refusal> {
    let mut accesses = Vec::new();
    for used in info.used_memory() {
        let access = match used.access() {
            OpAccess::NoMemAccess | OpAccess::None => continue,
            OpAccess::Read | OpAccess::CondRead => (true, false),
            OpAccess::Write | OpAccess::CondWrite => (false, true),
            OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        };
        let unknown = || Refusal::Instruction(text(instruction));
        let value = |register, _, _| value(register, registers, system);
        let linear = used.virtual_address(0, value).ok_or_else(unknown)?;
        let (linear, size) = if is_repeated(instruction) {
            // The decoder gives no size for all turns together, but that of one.
            repeated(linear, instruction.memory_size().size() as u64, registers).ok_or_else(unknown)?
        } else {
            (linear.wrapping_add(bit_offset(instruction, registers)), used.memory_size().size() as u64)
        };
        if size == 0 {
            return Err(unknown());
        }
        accesses.push((linear, size, access));
    }
    Ok(accesses)
}

/// All that a `rep` instruction may touch from here on.
fn repeated(linear: u64, size: u64, registers: &Registers) -> Option<(u64, u64)> {
    let all = size.checked_mul(registers.rcx).filter(|all| *all <= MOST_BYTES)?;
    let downwards = registers.rflags & RFLAGS_DF != 0;
    Some(if downwards { (linear.wrapping_sub(all - size), all) } else { (linear, all) })
}

/// Whether an instruction addresses a bit in memory by a register: it reaches beyond its operand (SDM 2A, BT).
pub(super) fn is_bit_string(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
}

/// How far from its operand the word of a bit lies, in bytes; two's complement.
fn bit_offset(instruction: &Instruction, registers: &Registers) -> u64 {
    if !is_bit_string(instruction) {
        return 0;
    }
    let register = instruction.op1_register();
    let full = register::index(register).map_or(0, |index| register::general(registers, index));
    let offset = match register.size() {
        2 => i64::from(full as i16 >> 4) * 2,
        4 => i64::from(full as i32 >> 5) * 4,
        _ => (full.cast_signed() >> 6) * 8,
    };
    offset.cast_unsigned()
}

pub(super) fn is_repeated(instruction: &Instruction) -> bool {
    instruction.is_string_instruction() && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

/// Whether flags that it may write can stay what they were: a shift by nothing, a string of nothing.
pub(super) fn keeps_flags(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    is_repeated(instruction)
        || matches!(
            instruction.mnemonic(),
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
        )
}

/// The text of an instruction's name: `rdtsc`.
pub(super) fn text(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic()).to_lowercase()
}

/// The value of a register, or the base of a segment, as the decoder asks for them.
fn value(register: Register, registers: &Registers, system: &SystemRegisters) -> Option<u64> {
    match register {
        Register::FS => Some(system.fs.base),
        Register::GS => Some(system.gs.base),
        // In 64-bit mode their bases are 0 (SDM 3A 3.4.4).
        Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
        Register::None => Some(0),
        register => register::value(registers, register),
    }
}

/// Whether RIP is where this instruction can leave it; anything else is an exception that was taken.
pub(super) fn leads_to(instruction: &Instruction, before: &Registers, after: &Registers) -> bool {
    const SLOT: u64 = 8;
    let (next, target) = (instruction.next_ip(), instruction.near_branch_target());
    match instruction.flow_control() {
        FlowControl::Next => after.rip == next,
        FlowControl::ConditionalBranch => after.rip == next || after.rip == target,
        FlowControl::UnconditionalBranch | FlowControl::Call => after.rip == target,
        // An exception pushes at least five slots (SDM 3A 7.14.2).
        FlowControl::IndirectBranch => after.rsp == before.rsp,
        FlowControl::IndirectCall => after.rsp == before.rsp.wrapping_sub(SLOT),
        FlowControl::Return => after.rsp > before.rsp,
        _ => false,
    }
}

/// Whether all that an instruction does is known: it reads general registers, flags and memory, and writes such, and nothing else.
fn is_known(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    if instruction.is_jcc_short_or_near() || instruction.is_loop() || instruction.is_loopcc() {
        return true;
    }
    let only_general = |n| {
        let register = instruction.op_register(n);
        register == Register::None || register.is_gpr()
    };
    if !(0..instruction.op_count()).all(only_general) {
        return false;
    }
    let moves = matches!(
        instruction.mnemonic(),
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Bswap
            | M::Push
            | M::Pop
            | M::Leave
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
    );
    let computes = matches!(
        instruction.mnemonic(),
        M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Mul
            | M::Imul
            | M::Div
            | M::Idiv
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
    );
    let branches = instruction.is_jmp_short_or_near()
        || instruction.is_jmp_near_indirect()
        || instruction.is_call_near()
        || instruction.is_call_near_indirect()
        || instruction.mnemonic() == M::Ret;
    let strings = matches!(
        instruction.mnemonic(),
        M::Movsb
            | M::Movsw
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsq
    ) || matches!(instruction.mnemonic(), M::Movsd | M::Cmpsd) && instruction.is_string_instruction();
    let flags = matches!(instruction.mnemonic(), M::Clc | M::Stc | M::Cmc | M::Cld | M::Std | M::Cli | M::Sti);
    let nothing =
        matches!(instruction.mnemonic(), M::Nop | M::Pause | M::Endbr64 | M::Lfence | M::Mfence | M::Sfence | M::Hlt);
    moves || computes || branches || strings || flags || nothing || is_conditional(instruction)
}

/// `setcc` and `cmovcc`.
fn is_conditional(instruction: &Instruction) -> bool {
    let name = text(instruction);
    (name.starts_with("set") || name.starts_with("cmov")) && instruction.rflags_read() != 0
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn repeated_instruction_touches_all_that_it_may() {
        let scas = Decoder::with_ip(64, &[0xf2, 0xaf], 0, DecoderOptions::NONE).decode();
        let registers = Registers { rcx: 3, rdi: 0x1000, ..Registers::default() };
        let touched = |registers: &Registers| {
            accesses(InstructionInfoFactory::new().info(&scas), &scas, registers, &SystemRegisters::default())
        };
        assert_eq!(touched(&registers), Ok(vec![(0x1000, 12, (true, false))]));
        let downwards = Registers { rflags: RFLAGS_DF, ..registers };
        assert_eq!(touched(&downwards), Ok(vec![(0xff8, 12, (true, false))]));
    }
}
