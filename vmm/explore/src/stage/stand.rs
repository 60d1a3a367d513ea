//! Putting vCPUs where they stood.

use std::mem::{offset_of, size_of};

use stallbench_abi::layout::GHOST;
use stallbench_abi::shared::GhostPage;
use stallbench_core::controlled::Inject;
use stallbench_state::memory::Memory;

use super::{Stage, Way};
use crate::local::{Local, Parked};
use crate::passage::{Input, Passage, Refusal};

/// Numbers of calls of one vCPU: they name calls, and nothing decides by them.
const CALLS: u64 = 1 << 20;

impl Stage<'_> {
    /// Has KVM's vCPU stand in that state.
    pub(super) fn stand(&mut self, vcpu: usize, from: u32, start: &Local, input: Input) {
        let inject = input.delivered();
        if inject.is_some() || self.vcpus[vcpu].at != Some(from) {
            let mut processor = start.processor;
            if let (Some(_), Parked::Write { before: Some(before), .. }) = (inject, &start.parked) {
                processor.general.rip = *before;
            }
            // First: completing the access that it stands at writes memory.
            self.machine.load(vcpu, &processor, inject);
            if self.vcpus[vcpu].at != Some(from) {
                self.set_memory(vcpu, start);
            }
            self.vcpus[vcpu].at = None;
        }
        self.clear_stacks(vcpu, start);
        self.reset_ghost(vcpu, start.devices.calls);
    }

    pub(super) fn set_memory(&self, vcpu: usize, start: &Local) {
        for (address, bytes) in start.memory(&self.vcpus[vcpu].base) {
            let written = self.machine.write(address, bytes);
            debug_assert!(written, "the private areas of all vCPUs are memory");
        }
    }

    /// Has all vCPUs stand where they stood at first, with nothing counted.
    pub(crate) fn rewind(&mut self, first: &[u32]) {
        for (vcpu, number) in first.iter().enumerate() {
            self.vcpus[vcpu].at = None;
            let start = self.local(vcpu, *number).clone();
            if start.parked != Parked::Off {
                self.stand(vcpu, *number, &start, Input::Go(0));
            }
        }
    }

    /// Does a passage that is known once more, on the way to [a moment](crate::moment): what counts goes on counting, so that the
    /// events of the whole way are in their rings at its end.
    pub(crate) fn again(&mut self, vcpu: usize, from: u32, input: Input, known: &Passage) -> Result<(), Refusal> {
        let input = self.as_it_went(vcpu, from, input, known);
        let start = self.local(vcpu, from).clone();
        let end = self.local(vcpu, known.to).parked.clone();
        if (&start.parked, &end) == (&Parked::Halting, &Parked::Halted) {
            self.vcpus[vcpu].at = Some(known.to);
            return Ok(());
        }
        if input == Input::Deliver(Inject::Init) {
            // Nothing of its memory changes.
            return Ok(());
        }
        let (counted, words) = (self.counters(vcpu), ghost_page(self.machine.memory()));
        self.stand(vcpu, from, &start, input);
        self.set_words(&words);
        self.set_counters(&counted);
        let mut way = Way { effects: Vec::new(), devices: start.devices.clone() };
        let parked = match (input, &end) {
            (Input::Deliver(Inject::StartUp(_)), _) => {
                self.start_again(vcpu)?;
                Parked::Open
            }
            (Input::Creep(_, comes), _) => {
                let (parked, effects) = self.creep_from_here(vcpu, &start, input, comes)?;
                way.effects = effects;
                parked
            }
            (Input::Enter(..), _) => {
                self.by_steps_from_here(vcpu, &start, input, &mut |_| Some(Parked::Open))?.0.parked
            }
            (_, Parked::Open | Parked::Drain { .. }) if self.finds_drains => {
                self.again_up_to(vcpu, &start, input, &end, &mut way)?
            }
            (_, Parked::Open) => {
                self.go_to_open(vcpu, &start, input, &mut way)?.map_or(Parked::Off, |local| local.parked)
            }
            _ => self.go(vcpu, &start, input, &mut way)?,
        };
        if parked != end || way.effects[..] != known.effects[..] {
            let difference =
                format!("it came to {end:?} with {:?}, now to {parked:?} with {:?}", known.effects, way.effects);
            return Err(Refusal::Differs { vcpu, place: self.here(vcpu), difference });
        }
        let is_stepped = input.whole().is_some() || input.restarts();
        self.vcpus[vcpu].at = (!is_stepped).then_some(known.to);
        Ok(())
    }

    /// Clears what of the stacks is not in use: what a frame has in it that nobody has written yet is the same at each passage, whatever
    /// was asked before.
    pub(super) fn clear_stacks(&self, vcpu: usize, start: &Local) {
        for (from, to) in start.unused_stacks(&self.vcpus[vcpu].base) {
            let cleared = self.machine.write(from, &vec![0; (to - from) as usize]);
            debug_assert!(cleared, "the private areas of all vCPUs are memory");
        }
    }

    /// Sets what counts, and what was named, to the same at each passage: what a register keeps of it differs no more.
    pub(super) fn reset_ghost(&self, vcpu: usize, calls: u64) {
        self.set_words(&self.ghost);
        let calls = ((vcpu as u64 + 1) * CALLS).wrapping_add(calls);
        let words = [(offset_of!(GhostPage, event_clock), 0), (offset_of!(GhostPage, calls), calls)];
        for (offset, word) in words {
            let written = self.machine.write(GHOST + offset as u64, &u64::to_le_bytes(word));
            debug_assert!(written, "the ghost page is memory");
        }
        for address in self.vcpus[vcpu].base.counters() {
            let written = self.machine.write(address, &[0; 8]);
            debug_assert!(written, "the private areas of all vCPUs are memory");
        }
    }

    /// Writes the words that are shown by name, as a ghost page has them.
    fn set_words(&self, page: &[u8]) {
        let at = offset_of!(GhostPage, words);
        let written = self.machine.write(GHOST + at as u64, &page[at..]);
        debug_assert!(written, "the ghost page is memory");
    }

    fn counters(&self, vcpu: usize) -> Vec<(u64, u64)> {
        let clock = GHOST + offset_of!(GhostPage, event_clock) as u64;
        let addresses = self.vcpus[vcpu].base.counters().chain([clock]);
        addresses.map(|address| (address, self.machine.memory().read_u64(address).unwrap_or_default())).collect()
    }

    fn set_counters(&self, counters: &[(u64, u64)]) {
        for (address, count) in counters {
            let written = self.machine.write(*address, &count.to_le_bytes());
            debug_assert!(written, "ghost page and private areas are memory");
        }
    }

    /// How many calls a vCPU has begun.
    pub(super) fn calls(&self, vcpu: usize) -> u64 {
        let at = GHOST + offset_of!(GhostPage, calls) as u64;
        let begun = self.machine.memory().read_u64(at).unwrap_or_default();
        begun.wrapping_sub((vcpu as u64 + 1) * CALLS)
    }
}

/// All of the ghost page that means something.
pub(super) fn ghost_page(memory: &dyn Memory) -> Vec<u8> {
    let mut page = vec![0; size_of::<GhostPage>()];
    let read = memory.read(GHOST, &mut page);
    debug_assert!(read, "the ghost page is memory");
    page
}
