//! `hlt`, for a vCPU that is stepped: a step would wait in the kernel, or not halt at all (docs/hosts.md).

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_VCPUEVENT_VALID_SHADOW, kvm_mp_state};
use stallbench_abi::layout::PAGE;
use stallbench_state::machine::{MpState, Registers, SystemRegisters};
use stallbench_state::memory::Memory;

use super::{Vcpu, capture};

/// `hlt`.
const HLT: u8 = 0xf4;
/// The longest instruction (SDM 2A 2.3.11).
pub(super) const LONGEST: usize = 15;

/// The opcode of an instruction, behind its prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opcode {
    pub(super) byte: u8,
    /// Bytes of the instruction up to its opcode and with it.
    pub(super) length: u64,
}

impl Opcode {
    /// That of the instruction that these bytes begin with; `long`: 64-bit code, where REX is a prefix too (SDM 2A 2.1.1, 2.2.1).
    /// `lock` is none that `hlt` or `pushf` may have: it is taken for an opcode.
    pub(super) fn of(code: &[u8], long: bool) -> Self {
        let is_prefix = |byte: u8| match byte {
            0x66 | 0x67 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 => true,
            0x40..=0x4f => long,
            _ => false,
        };
        let prefixes = code.iter().take_while(|byte| is_prefix(**byte)).count();
        code.get(prefixes).map_or(Self::default(), |&byte| Self { byte, length: prefixes as u64 + 1 })
    }
}

impl Vcpu {
    /// Whether it waits in the kernel if it is entered: it halts, is about to, or was not started.
    pub(super) fn waits(&self) -> bool {
        !self.is_runnable() || self.halts().is_some()
    }

    /// Whether it executes instructions when it is entered.
    pub(super) fn is_runnable(&self) -> bool {
        self.lose_init();
        capture::mp_state(&self.fd) == Ok(MpState::Runnable)
    }

    /// Whether its instruction is `hlt`, and it may execute that: how long it is.
    pub(super) fn halts(&self) -> Option<u64> {
        let (linear, _) = self.rip()?;
        let system = self.registers().1.ok()?;
        let mut code = [0; LONGEST];
        // What cannot be read stays 0, which is neither a prefix nor `hlt`.
        self.read(linear, &mut code);
        self.halts_at(Opcode::of(&code, is_long(&system)))
    }

    /// Whether that is so where its instruction has this opcode (SDM 2A: `hlt` takes CPL 0).
    pub(super) fn halts_at(&self, opcode: Opcode) -> Option<u64> {
        // CPL is the privilege of SS (SDM 3A 3.4.5, the DPL of its descriptor).
        let may = || self.registers().1.is_ok_and(|system| system.ss.access >> 5 & 3 == 0);
        (opcode.byte == HLT && may()).then_some(opcode.length)
    }

    /// Does what the `hlt` of this length does that it is about to execute: it waits, behind it. Where KVM refuses, the guest has
    /// not come past it.
    pub(super) fn halt(&mut self, length: u64) -> Result<(), kvm_ioctls::Error> {
        let mut registers = self.fd.get_regs()?;
        let mut events = self.fd.get_vcpu_events()?;
        registers.rip = registers.rip.wrapping_add(length);
        // An `sti` before it holds interrupts back for this one instruction (SDM 2B).
        events.interrupt.shadow = 0;
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        // What came with the last `KVM_RUN` is not true any more.
        self.entered = false;
        self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED })?;
        self.fd.set_vcpu_events(&events)?;
        self.fd.set_regs(&registers)
    }

    /// RIP, linear and as the vCPU has it.
    pub(super) fn rip(&self) -> Option<(u64, u64)> {
        let (Ok(registers), Ok(system)) = self.registers() else { return None };
        Some((linear(&registers, &system), registers.rip))
    }

    /// Where a linear address lies; none where it is not mapped.
    pub(super) fn translate(&self, linear: u64) -> Option<u64> {
        let translated = self.fd.translate_gva(linear).ok()?;
        (translated.valid != 0).then_some(translated.physical_address)
    }

    /// Reads memory at a linear address: whether all of it is mapped.
    pub(super) fn read(&self, linear: u64, bytes: &mut [u8]) -> bool {
        let mut at = linear;
        let mut left = bytes;
        while !left.is_empty() {
            let in_page = (PAGE - at % PAGE) as usize;
            let (piece, rest) = left.split_at_mut(in_page.min(left.len()));
            if !self.translate(at).is_some_and(|physical| self.shared.memory.read(physical, piece)) {
                return false;
            }
            at = at.wrapping_add(in_page as u64);
            left = rest;
        }
        true
    }
}

/// Where the instruction of a vCPU lies: outside of 64-bit mode a segment is added (SDM 3A 3.4.2).
fn linear(registers: &Registers, system: &SystemRegisters) -> u64 {
    match is_long(system) {
        true => registers.rip,
        false => registers.rip.wrapping_add(system.cs.base) & u64::from(u32::MAX),
    }
}

/// Whether it executes 64-bit code (SDM 3A 5.2.1).
pub(super) fn is_long(system: &SystemRegisters) -> bool {
    const LONG_MODE_ACTIVE: u64 = 1 << 10;
    const LONG: u32 = 1 << 13;
    system.efer & LONG_MODE_ACTIVE != 0 && system.cs.access & LONG != 0
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn opcode_comes_behind_prefixes() {
        let of = |code: &[u8], long| {
            let opcode = Opcode::of(code, long);
            (opcode.byte, opcode.length)
        };
        assert_eq!((of(&[HLT, 0x90], true), of(&[HLT], false)), ((HLT, 1), (HLT, 1)));
        assert_eq!(of(&[0x66, 0xf3, 0x2e, 0x48, HLT], true), (HLT, 5));
        assert_eq!(of(&[0x66, 0x40, HLT], false), (0x40, 2), "inc, then hlt");
        assert_eq!(of(&[0xf0, HLT], true), (0xf0, 1), "an invalid opcode (SDM 2A)");
        assert_eq!(of(&[0x66; LONGEST], true), (0, 0), "too long to be one");
    }
}
