//! Nothing may lie below the stack pointer: an interrupt would overwrite it.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// How far the stack of the function at hand reaches below its frame pointer, at most.
///
/// Not every path is followed: the most that a function allocates anywhere counts as allocated everywhere. What it is to find
/// is a leaf function that allocates nothing, and for that it is exact.
#[derive(Default)]
pub(crate) struct Frame {
    /// Bytes below RBP; `None` where RBP is no frame pointer or the stack is allocated by an unknown amount.
    below: Option<u64>,
}

impl Frame {
    /// Takes the next instruction in; says if it uses memory below the stack pointer.
    pub(crate) fn objection(&mut self, instruction: &Instruction) -> Option<String> {
        self.follow(instruction);
        let below = match instruction.memory_base() {
            Register::RSP => 0,
            Register::RBP => self.below?,
            _ => return None,
        };
        let touches = uses_memory(instruction) && instruction.memory_index() == Register::None;
        let displacement = instruction.memory_displacement64() as i64;
        (touches && displacement < 0 && displacement.unsigned_abs() > below).then(|| "below the stack pointer".into())
    }

    fn follow(&mut self, instruction: &Instruction) {
        let registers = (instruction.op0_register(), instruction.op1_register());
        self.below = match (instruction.mnemonic(), registers) {
            (Mnemonic::Mov, (Register::RBP, Register::RSP)) => Some(0),
            (Mnemonic::Push, _) => self.below.map(|below| below + 8),
            (Mnemonic::Sub, (Register::RSP, Register::None)) => {
                self.below.map(|below| below + instruction.immediate(1))
            }
            (Mnemonic::Sub | Mnemonic::And | Mnemonic::Lea | Mnemonic::Mov, (Register::RSP, _)) => None,
            _ => self.below,
        };
    }
}

fn uses_memory(instruction: &Instruction) -> bool {
    let no_access = matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
    !no_access && (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory)
}
