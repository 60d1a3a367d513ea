//! Seeing who writes a word where no breakpoint on words fires: every vCPU executes step by step.
//!
//! To name the writer, no two vCPUs execute at the same time: each has the [floor](crate::floor) for some steps, and looks at the
//! words behind each of them. A vCPU that waits in the kernel, since it halts or was not started, waits without the floor, and
//! executes one instruction without it when it is woken. Interrupts come as they would.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::kvm_guest_debug;
use stallbench_abi::layout::PAGE;
use stallbench_state::machine::SystemRegisters;
use stallbench_state::memory::Memory;

use super::halt::{LONGEST, Opcode, is_long};
use super::turns::Turns;
use super::{State, Vcpu};
use crate::breakpoint::STEP;
use crate::event::Fault;
use crate::stop::{Armed, Hit};

/// Steps in a row: handing the floor on takes as long as several.
const STEPS: usize = 32;
/// How long they may take. A vCPU may come to wait in the kernel in the middle of them, by an INIT that it sends to itself.
const LIMIT: Duration = Duration::from_millis(50);
/// RFLAGS.TF (SDM 1 3.4.3.3).
const TRAP_FLAG: u64 = 1 << 8;
/// The bit of RFLAGS that is always 1.
const ALWAYS: u64 = 1 << 1;
/// `pushf`.
const PUSHF: u8 = 0x9c;
/// Bytes of a gate in 64-bit mode (SDM 3A 7.14.1).
const GATE: usize = 16;
/// Bytes of what an interrupt pushes: RIP, CS, RFLAGS, RSP and SS (SDM 3A figure 7-9).
const FRAME: u64 = 40;

/// Where a vCPU stood before its last step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    rip: u64,
    rsp: u64,
    /// Of its instruction.
    opcode: Opcode,
}

/// A page of code, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    cr3: u64,
    linear: u64,
    physical: u64,
}

impl Vcpu {
    /// Executes some instructions with the floor, or waits without it.
    pub(super) fn step_on(&mut self, armed: &Armed, turns: &mut Turns) -> State {
        if !self.is_runnable() {
            self.note_where_it_stands();
            return match self.ask_for_step() {
                Ok(()) => self.enter(turns),
                Err(state) => state,
            };
        }
        let _floor = armed.floor().take();
        // Whoever had the floor before may have sent it an INIT: it waits, which it must not do with the floor.
        if !self.is_runnable() {
            return State::Running;
        }
        self.stopping.page = None;
        turns.limit(LIMIT);
        let state = self.steps(armed, turns);
        turns.limit(Duration::ZERO);
        state
    }

    fn steps(&mut self, armed: &Armed, turns: &mut Turns) -> State {
        for _ in 0..STEPS {
            let state = self.step_once(armed, turns);
            if state != State::Running || self.interrupted || self.stopping.halted {
                self.stopping.halted = false;
                return state;
            }
        }
        State::Running
    }

    fn step_once(&mut self, armed: &Armed, turns: &mut Turns) -> State {
        let Some((linear, rip)) = self.rip() else { return self.enter(turns) };
        if armed.executes(self.index, linear) && self.stopping.known != Some(linear) {
            self.stopping.known = Some(linear);
            return self.hit(Hit::Execute { rip });
        }
        self.note_where_it_stands();
        if let Some(length) = self.halts_at(self.stopping.before.opcode) {
            self.stopping.known = None;
            self.stopping.halted = true;
            let refused = self.halt(length).err();
            return refused.map_or(State::Running, |error| self.failed(Fault::Debug { errno: error.errno() }));
        }
        if let Err(state) = self.ask_for_step() {
            return state;
        }
        match self.enter(turns) {
            State::Running if self.access_pending => self.end_access(armed),
            state => state,
        }
    }

    fn note_where_it_stands(&mut self) {
        let (Ok(registers), Ok(system)) = self.registers() else { return };
        let code = self.rip().and_then(|(linear, _)| self.code(system.cr3, linear)).unwrap_or_default();
        let opcode = Opcode::of(&code, is_long(&system));
        self.stopping.before = Before { rip: registers.rip, rsp: registers.rsp, opcode };
    }

    /// Code, as far as it can be read; 0 from there on. Its page is taken to lie where it did some steps before.
    fn code(&mut self, cr3: u64, linear: u64) -> Option<[u8; LONGEST]> {
        let page = linear & !(PAGE - 1);
        let known = self.stopping.page.filter(|known| (known.cr3, known.linear) == (cr3, page));
        let found = || self.translate(page).map(|physical| Page { cr3, linear: page, physical });
        let known = known.or_else(found)?;
        self.stopping.page = Some(known);
        let mut code = [0; LONGEST];
        let in_page = (PAGE - linear % PAGE) as usize;
        if in_page < LONGEST {
            self.read(linear, &mut code);
            return Some(code);
        }
        self.shared.memory.read(known.physical + linear % PAGE, &mut code).then_some(code)
    }

    /// For each step anew, see `crate::observe`.
    fn ask_for_step(&mut self) -> Result<(), State> {
        let debug = kvm_guest_debug { control: STEP, ..Default::default() };
        self.debug_as(&debug).map_err(|error| self.failed(Fault::Debug { errno: error.errno() }))
    }

    /// Ends an instruction that has accessed a device, and looks at what it may have written.
    fn end_access(&mut self, armed: &Armed) -> State {
        match self.complete_access() {
            State::Parked => State::Parked,
            _ if self.is_held() => State::Attending,
            _ => self.look(armed),
        }
    }

    /// Behind a step.
    pub(super) fn stepped_on(&mut self, armed: &Arc<Armed>) -> State {
        self.stopping.known = None;
        let _floor = armed.floor().take();
        self.hide_trap_flag();
        self.look(armed)
    }

    /// Stops where a word has changed.
    fn look(&self, armed: &Armed) -> State {
        let Some(word) = armed.changed(&self.shared.memory) else { return State::Running };
        let behind = self.rip().map_or(0, |(_, rip)| rip);
        self.hit(Hit::Access { word, behind })
    }

    /// Takes the trap flag, which is the host's, out of what the guest has pushed: the frame of an interrupt or exception that came
    /// at the step, or what `pushf` pushed (KVM keeps it only out of what it reads itself).
    fn hide_trap_flag(&self) -> Option<()> {
        let (Ok(registers), Ok(system)) = self.registers() else { return None };
        let Before { rip, rsp, opcode } = self.stopping.before;
        if follows(rip, registers.rip) {
            return (opcode.byte == PUSHF).then(|| self.clear_trap_flag(registers.rsp))?;
        }
        // A jump, a call or a return: a frame is larger.
        if registers.rsp.abs_diff(rsp) <= 8 {
            return None;
        }
        let mut gates = vec![0; usize::from(system.idt.limit.min(0xfff)) + 1];
        // The first instruction of a handler has been executed as well, on a host that shows handlers at all.
        let is_entered = |gate: &[u8]| follows(handler(gate), registers.rip);
        if !self.read(system.idt.base, &mut gates) || !gates.chunks_exact(GATE).any(is_entered) {
            return None;
        }
        let frame = self.stacks(&system, rsp).find(|frame| self.is_frame(*frame, rip, system.cs.selector))?;
        self.clear_trap_flag(frame.wrapping_add(16))
    }

    /// Where a frame may lie, with an error code below it or without: on the stack that was in use, or
    /// one of the task state segment (SDM 3A 7.14.2 and figure 9-11).
    fn stacks(&self, system: &SystemRegisters, rsp: u64) -> impl Iterator<Item = u64> {
        let mut segment = [0; 0x5c];
        let others = if self.read(system.tr.base, &mut segment) { &segment[4..] } else { &[] };
        let tops: Vec<_> = std::iter::once(rsp).chain(others.chunks_exact(8).map(number)).collect();
        tops.into_iter().map(|top| (top & !15).wrapping_sub(FRAME))
    }

    /// Whether a frame there was pushed by an interrupt at or behind the instruction at `rip`, with the trap flag.
    fn is_frame(&self, at: u64, rip: u64, selector: u16) -> bool {
        let mut frame = [0; 24];
        let word = |index: usize, frame: &[u8; 24]| number(&frame[8 * index..][..8]);
        self.read(at, &mut frame)
            && (word(0, &frame) == rip || follows(rip, word(0, &frame)))
            && word(1, &frame) == u64::from(selector)
            && word(2, &frame) & (TRAP_FLAG | ALWAYS) == TRAP_FLAG | ALWAYS
    }

    fn clear_trap_flag(&self, linear: u64) -> Option<()> {
        let physical = self.translate(linear)?;
        let flags = self.shared.memory.read_u64(physical)?;
        self.shared.memory.write_u64(physical, flags & !TRAP_FLAG).then_some(())
    }
}

/// Whether an instruction may end there that begins at `from`.
fn follows(from: u64, to: u64) -> bool {
    to > from && to - from <= LONGEST as u64
}

/// Where a gate leads (SDM 3A figure 7-8).
fn handler(gate: &[u8]) -> u64 {
    number(&gate[0..2]) | number(&gate[6..8]) << 16 | number(&gate[8..12]) << 32
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn gate_has_its_handler_in_three_parts() {
        let gate = [0x34, 0x12, 8, 0, 0, 0x8e, 0x78, 0x56, 0xbc, 0x9a, 0, 0, 0, 0, 0, 0];
        assert_eq!(handler(&gate), 0x9abc_5678_1234);
    }
}
