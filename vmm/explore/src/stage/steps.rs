//! Passages one instruction after the other.
//!
//! What a vCPU does from one stop to the next, with each of its instructions known. It comes to the same as where it runs freely; what
//! KVM does otherwise at a single step (docs/hosts.md) is not left to it: deliveries, IRETQ and fences, the shadow behind STI, and the
//! TF that PUSHF pushes.

use iced_x86::{Instruction, Mnemonic};
use stallbench_core::controlled::{Inject, ProcessorState, Stop};
use stallbench_state::machine::{RFLAGS_IF, Registers, SystemRegisters};
use stallbench_state::memory::Memory;

use super::answer::Came;
use super::{Stage, Way, is_open, state};
use crate::code::TF;
use crate::local::{Local, Parked};
use crate::passage::{Effect, Input, Refusal};

/// Instructions that a vCPU executes in one passage at most, where they are executed one by one.
pub(super) const MOST_STEPS: usize = 100_000;
/// Entries that one instruction takes at most: a step at the first touch of pages can end where it began.
const MOST_ENTRIES: usize = 16;
/// RFLAGS with nothing set but what always is (SDM 3A 2.3).
const RFLAGS_FIXED: u64 = 1 << 1;
/// The vector of an NMI (SDM 3A 7.3.1).
const NMI: u8 = 2;
/// In the TSS, the first of the interrupt stack table (SDM 3A 9.7).
const FIRST_IST: u64 = 0x24;
/// RFLAGS that a delivery through an interrupt gate clears: IF, TF, NT, RF (SDM 3A 7.12.1.3).
const CLEARED: u64 = RFLAGS_IF | TF | 1 << 14 | 1 << 16;

/// An instruction that a vCPU is about to execute by itself, or to begin.
pub(super) struct Step<'a> {
    /// The registers in front of it; with the shadow of an STI.
    pub(super) before: &'a ProcessorState,
    /// The instruction.
    pub(super) instruction: &'a Instruction,
    /// Guest memory, as it is then.
    pub(super) memory: &'a dyn Memory,
}

/// Looks at each instruction before it is begun; the vCPU parks in front of it where this says so.
pub(super) type Look<'l> = dyn FnMut(&Step<'_>) -> Option<Parked> + 'l;

/// Whether a vCPU can take an interrupt there. In front of a HLT is a stop.
pub(super) fn is_place(step: &Step<'_>) -> bool {
    is_open(step.before) && step.instruction.mnemonic() != Mnemonic::Hlt
}

impl Stage<'_> {
    /// What a vCPU does from that state on, by single steps.
    pub(super) fn ask_by_steps(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Came, Refusal> {
        let start = self.local(vcpu, from).clone();
        if let (Parked::Halting, Input::Go(_)) = (&start.parked, input) {
            return Ok(Came::elsewhere(start.halted(), Vec::new()));
        }
        let (here, effects) = self.by_steps(vcpu, from, &start, input, &mut |_| None)?;
        if !self.is_missed(&start, input, &here) {
            return Ok(Came::elsewhere(here, effects));
        }
        let mut look = |step: &Step<'_>| is_place(step).then_some(Parked::Open);
        let (there, on_the_way) = self.by_steps(vcpu, from, &start, input, &mut look)?;
        let (end, effects) = if there.parked == Parked::Open { (there, on_the_way) } else { (here, effects) };
        Ok(Came::elsewhere(end, effects))
    }

    /// Goes from a state to the next stop, or to where `look` has it park. KVM's vCPU is to be put somewhere anew afterwards.
    pub(super) fn by_steps(
        &mut self,
        vcpu: usize,
        from: u32,
        start: &Local,
        input: Input,
        look: &mut Look<'_>,
    ) -> Result<(Local, Vec<Effect>), Refusal> {
        self.stand(vcpu, from, start, input);
        self.by_steps_from_here(vcpu, start, input, look)
    }

    /// The same of a vCPU that stands there.
    pub(super) fn by_steps_from_here(
        &mut self,
        vcpu: usize,
        start: &Local,
        input: Input,
        look: &mut Look<'_>,
    ) -> Result<(Local, Vec<Effect>), Refusal> {
        let mut way = Way { effects: Vec::new(), devices: start.devices.clone() };
        let (parked, is_shadow) = self.steps(vcpu, start, input, &mut way, look)?;
        self.vcpus[vcpu].at = None;
        let mut here = self.here_in(vcpu, parked, way.devices)?;
        self.settle(vcpu);
        if here.parked != Parked::Halting {
            here.processor.shadow = is_shadow;
        }
        if !here.has_stack() {
            return Err(self.unknown(vcpu, "uses memory as a stack that is none of its stacks"));
        }
        Ok((here, way.effects))
    }

    /// Leaves nothing of a step pending in KVM's vCPU, which stands where it stood but for an access.
    pub(super) fn settle(&mut self, vcpu: usize) {
        let Some(pause) = self.code.pause(self.machine.memory()) else { return };
        let Ok(state) = state(&self.machine, vcpu) else { return };
        let general = Registers { rip: pause, rflags: RFLAGS_FIXED, ..state.general };
        self.machine.settle(vcpu, &ProcessorState { general, shadow: false, ..state }, &state);
    }

    /// Goes on from where it stands: where it parks, and whether that is in the shadow of an STI.
    pub(super) fn steps(
        &mut self,
        vcpu: usize,
        start: &Local,
        input: Input,
        way: &mut Way,
        look: &mut Look<'_>,
    ) -> Result<(Parked, bool), Refusal> {
        match input.delivered() {
            Some(inject) => self.deliver(vcpu, start, inject)?,
            None => self.access(vcpu, start, input, way)?,
        }
        let first = self.machine.complete(vcpu);
        if let Some(parked) = self.finish(vcpu, first, way)? {
            return Ok((parked, false));
        }
        let mut is_shadow = false;
        for _ in 0..MOST_STEPS {
            let before = ProcessorState { shadow: is_shadow, ..state(&self.machine, vcpu)? };
            let rip = before.general.rip;
            let Some(it) = self.code.at(self.machine.memory(), rip) else {
                return Err(self.unknown(vcpu, "comes to an instruction that cannot be decoded"));
            };
            if let Some(parked) = look(&Step { before: &before, instruction: &it, memory: self.machine.memory() }) {
                return Ok((parked, is_shadow));
            }
            if let Some(parked) = self.one(vcpu, &before, &it, way)? {
                return Ok((parked, is_shadow));
            }
            is_shadow = it.mnemonic() == Mnemonic::Sti && before.general.rflags & RFLAGS_IF == 0;
        }
        Err(self.unknown(vcpu, "goes on for long without an access to what it shares"))
    }

    /// Executes one instruction: where that stops the vCPU, if it does.
    fn one(
        &mut self,
        vcpu: usize,
        before: &ProcessorState,
        it: &Instruction,
        way: &mut Way,
    ) -> Result<Option<Parked>, Refusal> {
        if let Some(behind) = self.code.behind(self.machine.memory(), before) {
            self.machine.load(vcpu, &behind, None);
            return Ok(None);
        }
        if it.mnemonic() == Mnemonic::Hlt {
            let stop = self.machine.run(vcpu);
            return self.finish(vcpu, stop, way);
        }
        for _ in 0..MOST_ENTRIES {
            let stop = self.machine.step(vcpu);
            let was_access = stop != Stop::Stepped;
            if let Some(parked) = self.finish(vcpu, stop, way)? {
                return Ok(Some(parked));
            }
            let after = state(&self.machine, vcpu)?;
            if matches!(it.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfq | Mnemonic::Pushfd) {
                self.clear_step_flag(after.general.rsp);
            }
            if was_access || after.general != before.general || it.near_branch_target() == it.ip() {
                return Ok(None);
            }
        }
        Err(self.unknown(vcpu, "cannot be stepped"))
    }

    /// Serves the accesses of an instruction: where they stop the vCPU, if they do.
    fn finish(&mut self, vcpu: usize, mut stop: Stop, way: &mut Way) -> Result<Option<Parked>, Refusal> {
        while !matches!(stop, Stop::Stepped | Stop::Completed) {
            if let Some(parked) = self.serve(vcpu, stop, way)? {
                return Ok(Some(parked));
            }
            stop = self.machine.complete(vcpu);
        }
        Ok(None)
    }

    /// Has a vCPU stand behind a delivery, in front of the first instruction of the handler (SDM 3A 7.12.1, 7.14). Where a vCPU
    /// is stepped into one, hosts execute more than that.
    fn deliver(&mut self, vcpu: usize, start: &Local, inject: Inject) -> Result<(), Refusal> {
        let mut state = start.processor;
        if let Parked::Write { before: Some(before), .. } = start.parked {
            state.general.rip = before;
        }
        let system = self.machine.system(vcpu, &state);
        let gate = self.gate(&system, inject);
        let Some((handler, stack)) = gate else {
            return Err(self.unknown(vcpu, &format!("has no gate for {inject:?}")));
        };
        let general = &mut state.general;
        let end = stack.unwrap_or(general.rsp) & !0xf;
        let selectors = [system.ss.selector, system.cs.selector].map(u64::from);
        let frame = [general.rip, selectors[1], general.rflags, general.rsp, selectors[0]];
        general.rsp = end.wrapping_sub(8 * frame.len() as u64);
        general.rip = handler;
        let at = general.rsp;
        general.rflags &= !CLEARED;
        state.nmi_masked |= inject == Inject::Nmi;
        state.shadow = false;
        self.machine.load(vcpu, &state, None);
        let bytes: Vec<u8> = frame.into_iter().flat_map(u64::to_le_bytes).collect();
        if self.machine.write(at, &bytes) { Ok(()) } else { Err(self.unknown(vcpu, "has no stack for an interrupt")) }
    }

    /// Where a gate leads, and its stack if it has one (SDM 3A figure 7-8).
    fn gate(&self, system: &SystemRegisters, inject: Inject) -> Option<(u64, Option<u64>)> {
        let vector = match inject {
            Inject::Vector(vector) => vector,
            Inject::Nmi => NMI,
            Inject::Init | Inject::StartUp(_) => return None,
        };
        let memory = self.machine.memory();
        let at = system.idt.base + 16 * u64::from(vector);
        let (low, high) = (memory.read_u64(at)?, memory.read_u64(at + 8)?);
        // Present, an interrupt gate.
        if low >> 40 & 0x8f != 0x8e {
            return None;
        }
        let handler = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        match low >> 32 & 0b111 {
            0 => Some((handler, None)),
            slot => Some((handler, Some(memory.read_u64(system.tr.base + FIRST_IST + 8 * (slot - 1))?))),
        }
    }
}
