//! Debug exits of a vCPU: what an observer is told of, what writers are kept of, and the stops of the machine.
//!
//! A breakpoint on an instruction fires before it, and on some hosts again each time that the vCPU is entered there. A vCPU that
//! goes on from such a stop therefore *passes* it: it executes that one instruction as a step, with interrupts held back, before
//! its breakpoints are in force again.

use std::sync::Arc;

use kvm_bindings::{KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};

use super::exit::Msr;
use super::stepping::{Before, Page};
use super::turns::Turns;
use super::{State, Vcpu, capture, exit};
use crate::event::{Fault, MachineEvent};
use crate::observe::MsrAccess;
use crate::stop::{Armed, Hit};
use crate::watch::Writer;

/// Steps that may end where they began: on some processors the first touch of each page, tables included, ends one. Five were seen in
/// a row; an instruction that jumps to itself goes round as often.
pub(super) const TRIES: u32 = 16;

/// What the thread of a vCPU keeps of stops.
#[derive(Debug, Default)]
pub(super) struct Stopping {
    /// Those that are in force.
    armed: Option<Arc<Armed>>,
    /// The linear address of an instruction that the vCPU is known to stand before: it is passed.
    pub(super) known: Option<u64>,
    /// Steps over it so far, once there was one.
    passing: Option<u32>,
    /// Where the last step began, if all are steps.
    pub(super) before: Before,
    /// The page of code that the last step was in.
    pub(super) page: Option<Page>,
    /// The last step was a `hlt`.
    pub(super) halted: bool,
    /// Somebody visits it.
    pub(super) is_visited: bool,
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
        // The end of a step whose access is completed, on hosts that tell of that. Who visits it sees where it stands, and an
        // observer is told of every instruction, whoever steps it.
        if self.stopping.is_visited {
            self.tell_step();
            return State::Running;
        }
        match self.stopping.armed.clone() {
            Some(armed) if armed.steps() => return self.stepped_on(&armed),
            Some(armed) => return self.came_to(&armed, dr6),
            None => {}
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
        match self.tell_step().map(|debug| self.debug_as(&debug)) {
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

    /// Has KVM debug it so from here on.
    pub(super) fn debug_as(&mut self, debug: &kvm_guest_debug) -> Result<(), kvm_ioctls::Error> {
        self.has_stepped |= debug.control & KVM_GUESTDBG_SINGLESTEP != 0;
        self.fd.set_guest_debug(debug)
    }

    /// Puts stops into force, in the place of those before.
    pub(super) fn arm(&mut self, armed: &Arc<Armed>) -> Result<(), kvm_ioctls::Error> {
        // Whether the host can pass them too, shows here: not every kernel can hold interrupts back.
        if !armed.is_empty() && !armed.steps() {
            self.debug_as(&armed.debug_step())?;
        }
        self.debug = armed.debug(self.index);
        self.debug_as(&self.debug.clone())?;
        self.stopping.passing = None;
        self.stopping.armed = Some(Arc::clone(armed)).filter(|armed| !armed.is_empty());
        Ok(())
    }

    /// Takes the instruction that the vCPU stands before for known: it is no stop when it goes on.
    pub(super) fn know_where_it_stands(&mut self) {
        self.stopping.known = self.rip().map(|(linear, _)| linear);
    }

    /// Whether it stands at a stop that nobody was told of: it will when it goes on.
    pub(super) fn is_at_stop(&self) -> bool {
        let Some(armed) = &self.stopping.armed else { return false };
        let at = self.rip().map(|(linear, _)| linear).filter(|linear| self.stopping.known != Some(*linear));
        at.is_some_and(|linear| armed.executes(self.index, linear))
    }

    /// Takes what words hold that are stops for what they held at the last look.
    pub(super) fn look_at_words(&self) {
        if let Some(armed) = &self.stopping.armed {
            armed.changed(&self.shared.memory);
        }
    }

    /// Behind a step of a visit: whether it has changed a word that is a stop, which is told then.
    pub(super) fn has_touched(&self) -> bool {
        let Some(armed) = &self.stopping.armed else { return false };
        armed.changed(&self.shared.memory).is_some_and(|word| {
            let behind = self.rip().map_or(0, |(_, rip)| rip);
            self.hit(Hit::Access { word, behind });
            true
        })
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
    pub(super) fn hit(&self, at: Hit) -> State {
        self.shared.held[self.index].hold();
        self.shared.events.send(MachineEvent::Stopped { vcpu: self.index, at });
        State::Attending
    }

    /// Lets it execute, in the way that its stops want it.
    pub(super) fn go_on(&mut self, turns: &mut Turns) -> State {
        match self.stopping.armed.clone() {
            Some(armed) if armed.steps() => self.step_on(&armed, turns),
            _ => self.pass().unwrap_or_else(|| self.enter(turns)),
        }
    }

    /// Before an entry: has the vCPU pass the instruction that it is known to stand before. Gives what its thread is to do if it
    /// is not to enter.
    fn pass(&mut self) -> Option<State> {
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
        let debug = match (armed, self.halts()) {
            // A step would not halt there on every host (docs/hosts.md).
            (Some(_), Some(length)) => match self.halt(length) {
                Ok(()) => self.passed()?,
                Err(refused) => return Some(self.failed(Fault::Debug { errno: refused.errno() })),
            },
            (Some(armed), None) => {
                self.stopping.passing = Some(tries);
                armed.debug_step()
            }
            (None, _) => self.passed()?,
        };
        let refused = self.debug_as(&debug).err()?;
        Some(self.failed(Fault::Debug { errno: refused.errno() }))
    }

    /// Whether it stands still at a stop that nobody has let it go on from.
    pub(super) fn is_held(&self) -> bool {
        self.shared.held[self.index].is_held(self.shared.board.current().number)
    }

    /// Passes nothing any more. Gives how the vCPU is to be debugged from here on, where that changes.
    fn passed(&mut self) -> Option<kvm_guest_debug> {
        self.stopping.known = None;
        self.stopping.passing.take().map(|_| self.debug)
    }
}
