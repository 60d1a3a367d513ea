//! What a vCPU that goes round for ever waits for, told by its own instructions: which memory its branches depend on, and which
//! values would take them the other way.
//!
//! For reports. What cannot be told is left out; nothing is concluded from it.

use iced_x86::{ConditionCode, FlowControl, Mnemonic, OpKind};

use super::effect::Touch;
use super::trace::Step;
use crate::register;

/// What a vCPU does in a proof.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loop {
    /// The vCPU.
    pub vcpu: usize,
    /// Where: an instruction of it.
    pub rip: u64,
    /// What it does, a fragment.
    pub does: String,
    /// The memory that its branches depend on.
    pub reads: Vec<Read>,
    /// What it changes that decides nothing, a fragment each.
    pub aside: Vec<String>,
}

/// Memory that decides whether a loop goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Guest-physical address.
    pub address: u64,
    /// The linear address by which it is read.
    pub linear: u64,
    /// Its size in bytes.
    pub size: usize,
    /// What it holds.
    pub value: u64,
    /// What would end the loop, a fragment; empty where that cannot be told.
    pub ends: String,
}

/// The memory that the branches of a round depend on.
pub(super) fn reads(steps: &[Step]) -> Vec<Read> {
    let mut found: Vec<Read> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if step.effect.instruction.flow_control() != FlowControl::ConditionalBranch {
            continue;
        }
        let next = &steps[(index + 1) % steps.len()];
        let is_taken = next.registers.rip == step.effect.instruction.near_branch_target();
        let condition = step.effect.instruction.condition_code();
        let read = Around { steps, index }.flags_from(step.effect.instruction.rflags_read());
        let read = read.and_then(|(at, operand)| decided_by(&steps[at], operand, steps, at, condition, is_taken));
        if let Some(read) = read.filter(|read| !found.contains(read)) {
            found.push(read);
        }
    }
    found
}

/// A place in a round, from which one can look back.
struct Around<'s> {
    steps: &'s [Step],
    index: usize,
}

impl Around<'_> {
    /// The steps before this one, the nearest first, once round.
    fn before(&self) -> impl Iterator<Item = usize> + '_ {
        let count = self.steps.len();
        (1..=count).map(move |back| (self.index + count - back) % count)
    }

    /// The instruction that left these flags, and that which of its operands lies in memory, if one does.
    fn flags_from(&self, flags: u32) -> Option<(usize, Option<u32>)> {
        let at = self.before().find(|at| self.steps[*at].effect.instruction.rflags_modified() & flags != 0)?;
        let instruction = &self.steps[at].effect.instruction;
        let operand = (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory);
        Some((at, operand))
    }

    /// The step that loaded a register from memory, if nothing was computed in between.
    fn loaded(&self, register: usize) -> Option<usize> {
        let writes = |at: &usize| {
            let instruction = &self.steps[*at].effect.instruction;
            register::index(instruction.op0_register()) == Some(register)
                && instruction.op0_kind() == OpKind::Register
                && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt | Mnemonic::Push)
                || instruction.mnemonic() == Mnemonic::Xchg
                    && register::index(instruction.op1_register()) == Some(register)
        };
        let at = self.before().find(writes)?;
        let instruction = &self.steps[at].effect.instruction;
        let loads = matches!(
            instruction.mnemonic(),
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd | Mnemonic::Xchg
        );
        let from_memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        (loads && from_memory).then_some(at)
    }
}

/// The read that an instruction which sets flags depends on, and what would make it set others.
fn decided_by(
    step: &Step,
    operand: Option<u32>,
    steps: &[Step],
    at: usize,
    condition: ConditionCode,
    is_taken: bool,
) -> Option<Read> {
    let instruction = &step.effect.instruction;
    let tested = match operand {
        Some(_) => at,
        None => Around { steps, index: at }.loaded(register::index(instruction.op0_register())?)?,
    };
    let touch = steps[tested].effect.touches.iter().find(|touch| touch.reads)?;
    let size = touch.before.len();
    let mut value = [0; 8];
    value.get_mut(..size)?.copy_from_slice(&touch.before);
    // Only the first operand is compared as it stands.
    let is_first = operand.is_none_or(|operand| operand == 0);
    let ends = ends(step, is_first, condition, is_taken, size).unwrap_or_default();
    let &Touch { address, linear, .. } = touch;
    Some(Read { address, linear, size, value: u64::from_le_bytes(value), ends })
}

/// What would end the loop.
fn ends(step: &Step, is_first: bool, condition: ConditionCode, is_taken: bool, size: usize) -> Option<String> {
    let instruction = &step.effect.instruction;
    let (equal, unequal) = match (condition, is_taken) {
        (ConditionCode::e, false) | (ConditionCode::ne, true) => (true, false),
        (ConditionCode::e, true) | (ConditionCode::ne, false) => (false, true),
        _ => (false, false),
    };
    let mask = if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
    let other = |n: u32| match instruction.op_kind(n) {
        OpKind::Register => {
            let value = register::general(&step.registers, register::index(instruction.op_register(n))?);
            Some(value & mask)
        }
        OpKind::Memory => None,
        _ => instruction.try_immediate(n).ok().map(|value| value & mask),
    };
    match instruction.mnemonic() {
        Mnemonic::Cmp => {
            let value = other(if is_first { 1 } else { 0 })?;
            if equal || unequal {
                return Some(if equal {
                    format!("when it becomes {value:#x}")
                } else {
                    format!("when it is no longer {value:#x}")
                });
            }
            order(condition, is_taken, is_first).map(|order| format!("when it becomes {order} {value:#x}"))
        }
        Mnemonic::Test => {
            let same =
                instruction.op0_kind() == OpKind::Register && instruction.op0_register() == instruction.op1_register();
            match (same, equal, unequal) {
                (true, true, _) => Some("when it becomes 0".into()),
                (true, _, true) => Some("when it is no longer 0".into()),
                (false, true, _) => Some(format!("when it has no bit of {:#x}", other(1)?)),
                (false, _, true) => Some(format!("when it has a bit of {:#x}", other(1)?)),
                _ => None,
            }
        }
        Mnemonic::Cmpxchg => equal.then(|| format!("when it becomes {:#x}", step.registers.rax & mask)),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            let bit = other(1)? % (8 * size as u64);
            let carry = matches!((condition, is_taken), (ConditionCode::b, false) | (ConditionCode::ae, true));
            let none = matches!((condition, is_taken), (ConditionCode::b, true) | (ConditionCode::ae, false));
            match (carry, none) {
                (true, _) => Some(format!("when it has bit {bit}")),
                (_, true) => Some(format!("when it lacks bit {bit}")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// How an operand would have to compare, by the branch that is not gone.
fn order(condition: ConditionCode, is_taken: bool, is_first: bool) -> Option<&'static str> {
    use ConditionCode as C;
    let (below, or_equal) = match condition {
        C::b | C::l => (true, false),
        C::be | C::le => (true, true),
        C::a | C::g => (false, false),
        C::ae | C::ge => (false, true),
        _ => return None,
    };
    // What ends it is the opposite of what holds.
    let (below, or_equal) = if is_taken { (!below, !or_equal) } else { (below, or_equal) };
    let below = if is_first { below } else { !below };
    Some(match (below, or_equal) {
        (true, false) => "less than",
        (true, true) => "at most",
        (false, false) => "more than",
        (false, true) => "at least",
    })
}
