//! Stops of a machine: their numbers, how each is seen, and the vCPU that came to one.

use std::cell::OnceCell;

use stallbench_core::watch::Word;
use stallbench_core::{Capture, Hit, HostKvm, Paused, Stops, Watched};
use stallbench_debug::live::{How, LiveError, Stop, Why};
use stallbench_state::machine::{Registers, SystemRegisters, VcpuState};
use stallbench_state::paging;

use super::bench::{Bench, Done, refused};

/// The stops.
#[derive(Debug, Default)]
pub(super) struct Hits {
    all: Vec<Numbered>,
    /// The number of the last one.
    last: u32,
    /// A vCPU that came to one, while the machine was not stopped yet.
    taken: Option<(usize, Hit)>,
    /// They are to go, and the machine could not be stopped for that yet.
    are_left: bool,
    /// Whether the host sees writes by breakpoints.
    watches: OnceCell<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Numbered {
    number: u32,
    stop: Stop,
    how: How,
    /// What is watched, of a stop at a word.
    watched: Option<Watched>,
}

impl Hits {
    /// Keeps a vCPU that came to a stop, until the machine stands still.
    pub(super) fn take(&mut self, vcpu: usize, at: Hit) {
        self.taken = Some((vcpu, at));
    }

    /// Whether there is anything to do about them.
    pub(super) fn are_due(&self) -> bool {
        self.taken.is_some() || self.are_left
    }

    /// Whether every instruction is stepped.
    pub(super) fn is_stepping(&self) -> bool {
        self.all.iter().any(|one| one.how == How::Stepping)
    }

    /// The stops as the machine has them.
    fn in_force(&self) -> Stops {
        let instruction = |one: &Numbered| match one.stop {
            Stop::Execute { linear, vcpu } => Some((linear, vcpu)),
            Stop::Access { .. } => None,
        };
        Stops {
            execute: self.all.iter().filter_map(instruction).collect(),
            access: self.all.iter().filter_map(|one| one.watched).collect(),
            stepping: self.is_stepping(),
        }
    }

    /// The number of the stop that a vCPU came to, if it is one still and the vCPU still stands there.
    fn number_of(&self, vcpu: &VcpuState, at: Hit) -> Option<u32> {
        let (Ok(registers), Ok(system)) = (&vcpu.registers, &vcpu.system) else { return None };
        let found = match at {
            Hit::Execute { rip } if rip == registers.rip => {
                let here = linear(registers, system);
                let is_here = |whom: Option<usize>| whom.is_none_or(|whom| whom == vcpu.index);
                self.all
                    .iter()
                    .find(|one| matches!(one.stop, Stop::Execute { linear, vcpu } if linear == here && is_here(vcpu)))
            }
            Hit::Access { word, behind } if behind == registers.rip => {
                self.all.iter().filter(|one| one.watched.is_some()).nth(word)
            }
            _ => None,
        };
        found.map(|one| one.number)
    }

    fn watches(&self, host: &HostKvm) -> Done<bool> {
        if let Some(watches) = self.watches.get() {
            return Ok(*watches);
        }
        let watches = host.watches_writes().map_err(refused)?;
        Ok(*self.watches.get_or_init(|| watches))
    }
}

impl<'m> Bench<'m> {
    /// Stops wherever a vCPU comes there.
    pub(super) fn add(&mut self, stop: Stop) -> Done<(u32, How)> {
        let (how, watched) = self.seen(stop)?;
        let number = self.hits.last + 1;
        let before = self.hits.all.len();
        self.hits.all.push(Numbered { number, stop, how, watched });
        if let Err(error) = self.set_stops() {
            self.hits.all.truncate(before);
            return Err(error);
        }
        self.hits.last = number;
        Ok((number, how))
    }

    /// Takes a stop away: whether there was one.
    pub(super) fn remove(&mut self, number: u32) -> Done<bool> {
        let before = self.hits.all.clone();
        self.hits.all.retain(|one| one.number != number);
        if self.hits.all.len() == before.len() {
            return Ok(false);
        }
        if let Err(error) = self.set_stops() {
            self.hits.all = before;
            return Err(error);
        }
        Ok(true)
    }

    /// All there are.
    pub(super) fn stops(&self) -> Vec<(u32, Stop, How)> {
        self.hits.all.iter().map(|one| (one.number, one.stop, one.how)).collect()
    }

    /// Takes all stops away. A vCPU that stands at one goes on with the machine.
    pub(super) fn take_stops_away(&mut self) {
        self.hits.taken = None;
        let all = std::mem::take(&mut self.hits.all);
        self.hits.are_left = !all.is_empty() && self.set_stops().is_err();
        if self.hits.are_left {
            self.hits.all = all;
        }
    }

    /// The same once more, where the machine could not be stopped for it.
    pub(super) fn take_left_stops_away(&mut self) {
        if self.hits.are_left {
            self.take_stops_away();
        }
    }

    fn set_stops(&mut self) -> Done<()> {
        let stops = self.hits.in_force();
        self.stopped(|_, paused| paused.set_stops(&stops))?.map_err(refused)
    }

    /// How a stop is seen, and the word that is watched for it.
    fn seen(&mut self, stop: Stop) -> Done<(How, Option<Watched>)> {
        let Stop::Access { linear, size, reads } = stop else {
            return match self.host.breaks().map_err(refused)? {
                true => Ok((How::Breakpoint, None)),
                false => Err(LiveError::Refused("breakpoints on instructions never fire on this host".into())),
            };
        };
        let how = match self.hits.watches(self.host)? {
            true => How::Breakpoint,
            false if reads => {
                let why = "breakpoints on data never fire on this host, and steps show no reads; without reads it can be watched";
                return Err(LiveError::Refused(why.into()));
            }
            false => How::Stepping,
        };
        let physical = self.physical(linear)?;
        Ok((how, Some(Watched { word: Word { linear, physical, size }, reads })))
    }

    /// Where vCPU 0 has a linear address.
    fn physical(&mut self, linear: u64) -> Done<u64> {
        let memory = self.machine.memory();
        let state = self.stopped(|_, paused| paused.capture(Capture::Control))?;
        let system = state.vcpus.into_iter().next().and_then(|vcpu| vcpu.system.ok());
        let Some(system) = system.filter(paging::is_known) else { return Ok(linear) };
        let physical = paging::physical(memory, system.cr3, linear, &mut |_| ());
        physical.ok_or_else(|| LiveError::Refused(format!("vcpu0 has nothing mapped at {linear:#x}")))
    }

    /// Has the machine stand still for a vCPU that came to a stop, where it is one still.
    pub(super) fn stop_at_hit(&mut self) {
        let Some((vcpu, at)) = self.hits.taken else { return };
        // A machine that cannot be stopped now is asked again.
        let Some(paused) = self.pause() else { return };
        self.hits.taken = None;
        // One that came to no stop goes on.
        drop(self.hold_at_hit(paused, vcpu, at));
    }

    /// The same for one that was stopped; gives it back where it is none any more.
    pub(super) fn hold_at_hit(&mut self, paused: Paused<'m>, vcpu: usize, at: Hit) -> Option<Paused<'m>> {
        let state = paused.capture(Capture::Control);
        match state.vcpus.get(vcpu).and_then(|vcpu| self.hits.number_of(vcpu, at)) {
            Some(number) => {
                self.hold(paused, Why::At { number, vcpu: Some(vcpu) });
                None
            }
            None => Some(paused),
        }
    }
}

/// Where the instruction of a vCPU lies: outside of 64-bit mode a segment is added (SDM 3A 3.4.2).
fn linear(registers: &Registers, system: &SystemRegisters) -> u64 {
    match paging::is_known(system) {
        true => registers.rip,
        false => registers.rip.wrapping_add(system.cs.base) & u64::from(u32::MAX),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn numbered(number: u32, stop: Stop) -> Numbered {
        let word = Word { linear: 0x9000, physical: 0x9000, size: 4 };
        let watched = matches!(stop, Stop::Access { .. }).then_some(Watched { word, reads: false });
        Numbered { number, stop, how: How::Breakpoint, watched }
    }

    /// vCPU 1 in real mode, with its code at the start of page 8.
    fn vcpu() -> VcpuState {
        let mut system = SystemRegisters::default();
        system.cs.base = 0x8000;
        let registers = Registers { rip: 2, ..Registers::default() };
        VcpuState { index: 1, registers: Ok(registers), system: Ok(system), ..crate::sample::vcpu() }
    }

    #[test]
    fn vcpu_came_to_the_stop_that_is_its_own() {
        let access = Stop::Access { linear: 0x9000, size: 4, reads: false };
        let at = |linear, vcpu| Stop::Execute { linear, vcpu };
        let all = vec![numbered(1, at(0x8002, Some(0))), numbered(2, access), numbered(4, at(0x8002, None))];
        let hits = Hits { all, ..Hits::default() };
        assert_eq!(hits.number_of(&vcpu(), Hit::Execute { rip: 2 }), Some(4));
        assert_eq!(hits.number_of(&vcpu(), Hit::Access { word: 0, behind: 2 }), Some(2));
        assert_eq!(hits.number_of(&vcpu(), Hit::Access { word: 1, behind: 2 }), None, "there is one word");
        assert_eq!(hits.number_of(&vcpu(), Hit::Execute { rip: 3 }), None, "it is elsewhere now");
    }
}
