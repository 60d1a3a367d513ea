//! Debug exits of a vCPU: what an observer is told of, what writers are kept of, and the stops of the machine.
//!
//! A breakpoint on an instruction fires before it, and on some hosts again each time that the vCPU is entered there. A vCPU that
//! goes on from such a stop therefore *passes* it: it executes that one instruction as a step, with interrupts held back, before
//! its breakpoints are in force again.

use std::sync::Arc;

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_VCPUEVENT_VALID_SHADOW, kvm_guest_debug, kvm_mp_state};
use stallbench_state::machine::{MpState, Registers, SystemRegisters};
use stallbench_state::memory::Memory;

use super::{State, Vcpu, capture, exit, exit::Msr};
use crate::event::{Fault, MachineEvent};
use crate::observe::MsrAccess;
use crate::stop::{Armed, Hit};
use crate::watch::Writer;

/// Steps that may end where they began: on some processors the first touch of a page ends one.
const TRIES: u32 = 2;

/// `hlt`.
const HLT: u8 = 0xf4;

/// What the thread of a vCPU keeps of stops.
#[derive(Debug, Default)]
pub(super) struct Stopping {
    /// Those that are in force.
    armed: Option<Arc<Armed>>,
    /// The linear address of an instruction that the vCPU is known to stand before: it is passed.
    known: Option<u64>,
    /// Steps over it so far, once there was one.
    passing: Option<u32>,
}

impl Vcpu {
    /// Does an access in the place of the vCPU, as its own instruction would have, and tells of it.
    pub(super) fn accessed(&mut self, msr: Msr) {
        let done = match msr.write {
            Some(value) => capture::write_msr(&self.fd, msr.index, value).then_some(value),
            None => capture::read_msr(&self.fd, msr.index),
        };
        exit::answer(&mut self.fd, done);
        let (Some(telling), (Ok(registers), Ok(system))) = (&self.telling, self.registers()) else { return };
        let moment = telling.moment(self.index, registers, &system);
        let (write, value) = (msr.write.is_some(), done.or(msr.write).unwrap_or_default());
        let access = MsrAccess { moment, msr: msr.index, write, value, refused: done.is_none() };
        telling.accessed(&access, &self.shared.memory);
    }

    /// A breakpoint or a step, of whoever asked for it.
    pub(super) fn debugged(&mut self, dr6: u64) -> State {
        if let Some(armed) = self.stopping.armed.clone() {
            return self.came_to(&armed, dr6);
        }
        match (&self.watching, self.registers()) {
            (Some(watching), (Ok(registers), _)) => {
                let writer = Writer { vcpu: self.index, behind: registers.rip };
                watching.note(writer, dr6, &self.shared.memory);
                State::Running
            }
            _ => self.stepped(),
        }
    }

    /// Tells of a breakpoint or a step, and goes on as the observer's procedure wants it.
    fn stepped(&mut self) -> State {
        if self.telling.is_none() {
            return self.failed(Fault::Unexpected { exit: "Debug".to_owned() });
        }
        match self.tell_step().map(|debug| self.fd.set_guest_debug(&debug)) {
            Some(Err(error)) => self.failed(Fault::Debug { errno: error.errno() }),
            _ => State::Running,
        }
    }

    /// Tells of a breakpoint or a step. Gives how the vCPU is to be debugged from here on, where somebody is told.
    pub(super) fn tell_step(&mut self) -> Option<kvm_guest_debug> {
        let (Ok(registers), Ok(system)) = self.registers() else { return None };
        let telling = self.telling.as_mut()?;
        let moment = telling.moment(self.index, registers, &system);
        self.debug = telling.stopped(&moment, &self.shared.memory)?;
        Some(self.debug)
    }

    /// Puts stops into force, in the place of those before.
    pub(super) fn arm(&mut self, armed: &Arc<Armed>) -> Result<(), kvm_ioctls::Error> {
        self.debug = armed.debug(self.index);
        self.fd.set_guest_debug(&self.debug)?;
        self.stopping.passing = None;
        self.stopping.armed = Some(Arc::clone(armed)).filter(|armed| !armed.is_empty());
        Ok(())
    }

    /// Takes the instruction that the vCPU stands before for known: it is no stop when it goes on.
    pub(super) fn know_where_it_stands(&mut self) {
        self.stopping.known = self.rip().map(|(linear, _)| linear);
    }

    /// A debug exit while stops are in force.
    fn came_to(&mut self, armed: &Armed, dr6: u64) -> State {
        let Some((linear, rip)) = self.rip() else { return State::Running };
        if let Some(tries) = &mut self.stopping.passing {
            *tries += 1;
        }
        match armed.hit(self.index, (linear, rip), dr6) {
            // Whether that is the instruction which is passed, or one that comes next to it, shows at the next entry.
            Some(Hit::Execute { .. }) if self.stopping.passing.is_some() => State::Running,
            Some(hit @ Hit::Execute { .. }) => {
                self.stopping.known = Some(linear);
                self.hit(hit)
            }
            Some(hit) => self.hit(hit),
            None => State::Running,
        }
    }

    /// Tells of a stop, and stands still there.
    fn hit(&self, at: Hit) -> State {
        self.shared.held[self.index].hold();
        self.shared.events.send(MachineEvent::Stopped { vcpu: self.index, at });
        State::Attending
    }

    /// Before an entry: has the vCPU pass the instruction that it is known to stand before. Gives what its thread is to do if it
    /// is not to enter.
    pub(super) fn pass(&mut self) -> Option<State> {
        let known = self.stopping.known?;
        // The instruction may have accessed something: nothing beyond it is to be executed.
        if self.stopping.passing.is_some() && self.complete_access() == State::Parked {
            return Some(State::Parked);
        }
        if self.is_held() {
            return Some(State::Attending);
        }
        let tries = self.stopping.passing.unwrap_or_default();
        let stands = tries < TRIES && self.rip().is_some_and(|(linear, _)| linear == known);
        let armed = self.stopping.armed.clone().filter(|armed| stands && armed.executes(self.index, known));
        let debug = match armed {
            // A step would not halt there on every host (docs/hosts.md).
            Some(_) if self.halts() => {
                self.halt();
                self.passed()?
            }
            Some(armed) => {
                self.stopping.passing = Some(tries);
                armed.debug_step()
            }
            None => self.passed()?,
        };
        let refused = self.fd.set_guest_debug(&debug).err()?;
        Some(self.failed(Fault::Debug { errno: refused.errno() }))
    }

    /// Whether it stands still at a stop that nobody has let it go on from.
    fn is_held(&self) -> bool {
        self.shared.held[self.index].is_held(self.shared.board.current().number)
    }

    /// Passes nothing any more. Gives how the vCPU is to be debugged from here on, where that changes.
    fn passed(&mut self) -> Option<kvm_guest_debug> {
        self.stopping.known = None;
        self.stopping.passing.take().map(|_| self.debug)
    }

    /// Whether it waits in the kernel if it is entered: it halts, is about to, or was not started.
    pub(super) fn waits(&self) -> bool {
        self.lose_init();
        capture::mp_state(&self.fd) != Ok(MpState::Runnable) || self.halts()
    }

    /// Whether its instruction is `hlt`, and it may execute that (SDM 2A: at CPL 0).
    fn halts(&self) -> bool {
        let (Ok(registers), Ok(system)) = self.registers() else { return false };
        let mut byte = [0];
        let read = self.read(linear(&registers, &system), &mut byte);
        // CPL is the privilege of SS (SDM 3A 2.1.1: bits 6:5 of its attributes).
        read && byte[0] == HLT && system.ss.access >> 5 & 3 == 0
    }

    /// Does what the `hlt` does that it is about to execute: it waits, behind it.
    fn halt(&mut self) -> Option<()> {
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

    /// Reads memory at a linear address, within a page: whether it is mapped.
    fn read(&self, linear: u64, bytes: &mut [u8]) -> bool {
        let translated = self.fd.translate_gva(linear).ok().filter(|translated| translated.valid != 0);
        translated.is_some_and(|translated| self.shared.memory.read(translated.physical_address, bytes))
    }

    /// RIP, linear and as the vCPU has it.
    fn rip(&self) -> Option<(u64, u64)> {
        let (Ok(registers), Ok(system)) = self.registers() else { return None };
        Some((linear(&registers, &system), registers.rip))
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
