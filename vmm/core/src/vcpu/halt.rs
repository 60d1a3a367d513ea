//! `hlt`, for a vCPU that is stepped: a step would wait in the kernel, or not halt at all (docs/hosts.md).

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_VCPUEVENT_VALID_SHADOW, kvm_mp_state};
use stallbench_abi::layout::PAGE;
use stallbench_state::machine::{MpState, Registers, SystemRegisters};
use stallbench_state::memory::Memory;

use super::{Vcpu, capture};

/// `hlt`.
const HLT: u8 = 0xf4;

impl Vcpu {
    /// Whether it waits in the kernel if it is entered: it halts, is about to, or was not started.
    pub(super) fn waits(&self) -> bool {
        !self.is_runnable() || self.halts()
    }

    /// Whether it executes instructions when it is entered.
    pub(super) fn is_runnable(&self) -> bool {
        self.lose_init();
        capture::mp_state(&self.fd) == Ok(MpState::Runnable)
    }

    /// Whether its instruction is `hlt`, and it may execute that.
    pub(super) fn halts(&self) -> bool {
        let mut byte = [0];
        self.rip().is_some_and(|(linear, _)| self.read(linear, &mut byte)) && self.halts_at(byte[0])
    }

    /// Whether that is so where its instruction begins with this byte (SDM 2A: `hlt` takes CPL 0).
    pub(super) fn halts_at(&self, byte: u8) -> bool {
        // CPL is the privilege of SS (SDM 3A 3.4.5, the DPL of its descriptor).
        byte == HLT && self.registers().1.is_ok_and(|system| system.ss.access >> 5 & 3 == 0)
    }

    /// Does what the `hlt` does that it is about to execute: it waits, behind it. `None`: KVM refused.
    pub(super) fn halt(&mut self) -> Option<()> {
        let mut registers = self.fd.get_regs().ok()?;
        registers.rip += 1;
        self.fd.set_regs(&registers).ok()?;
        // What came with the last `KVM_RUN` is not true any more.
        self.entered = false;
        let mut events = self.fd.get_vcpu_events().ok()?;
        // An `sti` before it holds interrupts back for this one instruction (SDM 2B).
        events.interrupt.shadow = 0;
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        self.fd.set_vcpu_events(&events).ok()?;
        self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED }).ok()
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
    const LONG_MODE_ACTIVE: u64 = 1 << 10;
    const LONG: u32 = 1 << 13;
    match system.efer & LONG_MODE_ACTIVE != 0 && system.cs.access & LONG != 0 {
        true => registers.rip,
        false => registers.rip.wrapping_add(system.cs.base) & u64::from(u32::MAX),
    }
}
