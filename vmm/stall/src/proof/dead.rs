//! What a vCPU overwrites before it looks at it. States that differ in nothing else are one, with that set aside.

use iced_x86::{FlowControl, OpAccess};
use stallbench_state::certificate::{self, RFLAGS, Word};
use stallbench_state::machine::{Registers, SystemRegisters};
use stallbench_state::memory::Memory;

use super::aside::rflags;
use super::effect::{self, Decode};
use super::trace::key;
use crate::register;

/// Instructions that are looked ahead.
const AHEAD: usize = 8;
/// Number of RSP: never dead.
const RSP: usize = 6;
/// The flags that instructions leave results in (SDM 1 3.4.3.1).
const STATUS: u64 = 0x8d5;

/// Registers and flags that are dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Dead {
    /// General registers, a bit each.
    registers: u16,
    /// Bits of RFLAGS.
    flags: u64,
}

impl Dead {
    /// From an instruction on, as far as it leads straight ahead.
    pub(super) fn at(decode: &mut Decode, mut rip: u64, system: &SystemRegisters, memory: &dyn Memory) -> Self {
        let (mut dead, mut live) = (Self::default(), Self { registers: 1 << RSP, flags: 0 });
        for _ in 0..AHEAD {
            let Ok(instruction) = decode.ahead(rip, system, memory) else { break };
            let info = decode.info(&instruction).clone();
            let used = info.used_registers();
            for register in used.iter().filter(|used| !writes_all(used)) {
                live.registers |= bit(register.register()) & !dead.registers;
            }
            for register in used.iter().filter(|used| writes_all(used)) {
                dead.registers |= bit(register.register()) & !live.registers;
            }
            live.flags |= rflags(instruction.rflags_read() | instruction.rflags_undefined()) & !dead.flags;
            if !effect::keeps_flags(&instruction) {
                let written = instruction.rflags_modified() & !instruction.rflags_undefined();
                dead.flags |= rflags(written) & STATUS & !live.flags;
            }
            if instruction.flow_control() != FlowControl::Next {
                break;
            }
            rip = instruction.next_ip();
        }
        dead
    }

    /// These registers, with 0 in all that is dead.
    pub(super) fn canonical(self, registers: &Registers) -> Registers {
        let mut words = key(registers);
        for (index, word) in words.iter_mut().enumerate().take(16) {
            if self.registers & 1 << index != 0 {
                *word = Word(0);
            }
        }
        words[RFLAGS] = Word(words[RFLAGS].0 & !self.flags);
        Registers::from(&words)
    }

    /// As a certificate says it.
    pub(super) fn asides(self) -> Vec<certificate::Aside> {
        let any = |register, most| certificate::Aside { register, least: Word(0), most: Word(most) };
        let registers = (0..16).filter(|index| self.registers & 1 << index != 0).map(|index| any(index, u64::MAX));
        registers.chain((self.flags != 0).then(|| any(RFLAGS, self.flags))).collect()
    }
}

/// Whether an instruction gives all of a register another value, and does not look at the one it had.
fn writes_all(used: &iced_x86::UsedRegister) -> bool {
    let register = used.register();
    used.access() == OpAccess::Write && (register.is_gpr64() || register.is_gpr32())
}

fn bit(register: iced_x86::Register) -> u16 {
    register::index(register).map_or(0, |index| 1 << index)
}
