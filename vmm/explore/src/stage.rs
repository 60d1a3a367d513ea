//! Passages: what a vCPU does from one stop to the next, asked of KVM once for each state and each value read.
//!
//! A passage depends on nothing but its vCPU's state and what it reads first: private memory of others is not mapped, shared memory is
//! a hole, devices are data here. So it is the same whenever the vCPU goes on from there, whatever the others have done meanwhile.
//!
//! A stop at a read is in front of its instruction, one at a write behind it with the store still to be done (KVM completes registers
//! before it hands out a store). An interrupt can come where the vCPU stands, unless that is inside of an instruction. If it could take
//! one on the way here and cannot any more, the passage ends on the way, at a place where it can ([`Parked::Open`]): what it does between
//! two stops concerns itself alone, so that one place of delivery stands for all between them.

use std::mem::offset_of;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use stallbench_abi::layout::{GHOST, private, private_area};
use stallbench_abi::port::{DOORBELL, Doorbell};
use stallbench_abi::shared::GhostPage;
use stallbench_core::Fault;
use stallbench_core::controlled::{Controlled, Inject, Moved, ProcessorState, Stop};
use stallbench_state::machine::RFLAGS_IF;
use stallbench_state::memory::Memory;
use stallbench_state::program::Program;
use thiserror::Error;

use crate::arena::Arenas;
use crate::code::{Code, STATUS_FLAGS, TF, instruction};
use crate::devices::{Devices, SEND, Served, is_xapic, sends};
use crate::local::{Base, Local, Locals, Parked};

/// Accesses of its own devices that a vCPU makes in one passage at most.
const MOST_ACCESSES: usize = 4096;
/// Instructions that it executes in one passage at most, where they are executed one by one.
const MOST_STEPS: usize = 100_000;
/// Numbers of calls of one vCPU: they name calls, and nothing decides by them.
const CALLS: u64 = 1 << 20;

/// What makes a vCPU go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// Its next access, which reads this; 0 where it reads nothing.
    Go(u64),
    /// An interrupt or NMI is delivered where it stands.
    Deliver(Inject),
}

/// What a vCPU does that others can see, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A store.
    Store { address: u64, size: u8, value: u64 },
    /// A write to the interrupt command register.
    Send { icr: u64, x2apic: bool },
    /// The end of the interrupt in service.
    EndOfInterrupt,
}

/// A passage.
#[derive(Clone, Debug)]
pub(crate) struct Passage {
    pub(crate) effects: Rc<[Effect]>,
    /// Number of the state in which it ends.
    pub(crate) to: u32,
}

/// What a guest does that cannot be explored. Each message is a fragment that reads well after "failed to explore:".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It accesses what is no memory that it shares and none of its own.
    #[error("vcpu {vcpu} accesses {address:#x} at {place}, where nothing is that can be shared")]
    Nowhere {
        /// The vCPU.
        vcpu: usize,
        /// Guest-physical.
        address: u64,
        /// The instruction.
        place: String,
    },
    /// It uses something of which the outcome is not known to be the same each time.
    #[error("vcpu {vcpu} {what} at {place}, in the explored part")]
    Unknown {
        /// The vCPU.
        vcpu: usize,
        /// What it does.
        what: String,
        /// The instruction.
        place: String,
    },
    /// It changes a register that is taken for fixed.
    #[error("vcpu {vcpu}: {moved}")]
    Moved {
        /// The vCPU.
        vcpu: usize,
        /// Which.
        moved: Moved,
    },
    /// Asked again, KVM did not do the same.
    #[error("vcpu {vcpu} did not do at {place} what it did before: {difference}")]
    Differs {
        /// The vCPU.
        vcpu: usize,
        /// The instruction.
        place: String,
        /// What differs.
        difference: String,
    },
}

/// The machine, and all that is known of what its vCPUs do.
#[derive(Debug)]
pub(crate) struct Stage<'p> {
    machine: Controlled,
    code: Code<'p>,
    vcpus: Vec<Vcpu>,
    /// Passages that KVM was asked for.
    pub(crate) asked: u64,
}

/// One vCPU.
#[derive(Debug)]
struct Vcpu {
    base: Base,
    locals: Locals,
    passages: FxHashMap<(u32, Input), Passage>,
    /// The state at whose stop KVM's vCPU stands.
    at: Option<u32>,
}

/// A way that a vCPU goes on KVM.
struct Way {
    effects: Vec<Effect>,
    devices: Devices,
}

impl<'p> Stage<'p> {
    /// Takes a machine whose vCPUs stand at the start line, each at its stop with its devices; `None` for one that is off. Gives the
    /// numbers of their states, too.
    pub(crate) fn new(
        mut machine: Controlled,
        program: &'p Program,
        standing: Vec<(Option<Stop>, Devices)>,
    ) -> Result<(Self, Vec<u32>), Refusal> {
        let code = Code::of(program);
        let mut bases = Vec::new();
        for (vcpu, (stop, _)) in standing.iter().enumerate() {
            if stop.is_some() {
                machine.keep_tables(vcpu);
            }
            bases.push(Base::of(machine.memory(), vcpu));
        }
        if let Some((at, what)) = code.unsteady(machine.memory()) {
            let what =
                format!("can execute {}, which gives something else each time", format!("{what:?}").to_lowercase());
            return Err(Refusal::Unknown { vcpu: 0, what, place: code.place(at) });
        }
        let vcpu = |base| Vcpu { base, locals: Locals::default(), passages: FxHashMap::default(), at: None };
        let mut stage = Self { machine, code, vcpus: bases.into_iter().map(vcpu).collect(), asked: 0 };
        let first = standing.into_iter().enumerate().map(|(vcpu, (stop, devices))| stage.first(vcpu, stop, devices));
        let first = first.collect::<Result<_, _>>()?;
        Ok((stage, first))
    }

    /// The first state of a vCPU.
    fn first(&mut self, vcpu: usize, stop: Option<Stop>, devices: Devices) -> Result<u32, Refusal> {
        self.reset_ghost(vcpu, devices.calls);
        let mut way = Way { effects: Vec::new(), devices };
        let parked = match stop {
            Some(stop) => self.serve(vcpu, stop, &mut way)?,
            None => Some(Parked::Off),
        };
        // What it stands at concerns others, or it would not stand there.
        let parked = parked.unwrap_or(Parked::Open);
        let here = match parked {
            Parked::Off => self.leave(vcpu, parked, ProcessorState::default(), way.devices),
            parked => self.here_in(vcpu, parked, way.devices)?,
        };
        Ok(self.arrived(vcpu, here, Vec::new()).to)
    }

    pub(crate) fn local(&self, vcpu: usize, number: u32) -> &Local {
        self.vcpus[vcpu].locals.get(number)
    }

    /// Where a vCPU stands in that state, for people.
    pub(crate) fn place(&self, vcpu: usize, number: u32) -> String {
        let local = self.local(vcpu, number);
        let rip = match local.parked {
            Parked::Off => return "off".to_owned(),
            Parked::Write { before: Some(before), .. } => before,
            _ => local.processor.general.rip,
        };
        let place = self.code.place(rip);
        if local.parked == Parked::Halted { format!("{place}, halted") } else { place }
    }

    /// Bytes of memory that they take, about.
    pub(crate) fn bytes(&self) -> usize {
        self.vcpus.iter().map(|vcpu| vcpu.locals.bytes).sum()
    }

    /// States of all vCPUs that were met.
    pub(crate) fn locals(&self) -> usize {
        self.vcpus.iter().map(|vcpu| vcpu.locals.len()).sum()
    }

    pub(crate) fn machine(&mut self) -> &mut Controlled {
        &mut self.machine
    }

    /// What a vCPU does from that state on.
    pub(crate) fn passage(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Passage, Refusal> {
        if let Some(known) = self.vcpus[vcpu].passages.get(&(from, input)) {
            return Ok(known.clone());
        }
        let passage = self.ask(vcpu, from, input)?;
        self.vcpus[vcpu].passages.insert((from, input), passage.clone());
        Ok(passage)
    }

    /// The same, from KVM.
    fn ask(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Passage, Refusal> {
        self.asked += 1;
        let start = self.local(vcpu, from).clone();
        if let (Parked::Halting, Input::Go(_)) = (&start.parked, input) {
            return Ok(self.ended(vcpu, start.halted(), Vec::new()));
        }
        self.stand(vcpu, from, &start, input);
        let mut way = Way { effects: Vec::new(), devices: start.devices.clone() };
        let parked = self.go(vcpu, &start, input, &mut way)?;
        let here = self.here_in(vcpu, parked, way.devices.clone())?;
        if !here.has_stack() {
            return Err(self.unknown(vcpu, "uses memory as a stack that is none of its stacks"));
        }
        if self.takes_interrupts(&here) || self.is_inside(&start, &here) || !self.can_open(&start, input, &here) {
            return Ok(self.arrived(vcpu, here, way.effects));
        }
        self.vcpus[vcpu].at = None;
        let mut on_the_way = Way { effects: Vec::new(), devices: start.devices.clone() };
        self.stand(vcpu, from, &start, input);
        Ok(match self.go_to_open(vcpu, &start, input, &mut on_the_way)? {
            Some(open) => self.arrived(vcpu, open, on_the_way.effects),
            None => self.ended(vcpu, here, way.effects),
        })
    }

    /// Whether it can have taken an interrupt on its way to where it can take none.
    fn can_open(&self, start: &Local, input: Input, here: &Local) -> bool {
        let was_open = start.parked == Parked::Open && !matches!(input, Input::Deliver(_));
        !was_open && !matches!(here.parked, Parked::Dead(_))
    }

    /// The state of a vCPU that has come to a stop.
    fn here_in(&self, vcpu: usize, parked: Parked, devices: Devices) -> Result<Local, Refusal> {
        let mut processor = state(&self.machine, vcpu)?;
        if parked == Parked::Halting {
            let memory = self.machine.memory();
            processor.general.rip = processor.general.rip.wrapping_sub(1);
            if !self.code.is_hlt(memory, processor.general.rip) {
                return Err(self.unknown(vcpu, "halts by an instruction that is not the one before"));
            }
            // A jump to it has no shadow; then it could take an interrupt on its way.
            processor.shadow = self.code.follows_sti(memory, processor.general.rip);
        }
        Ok(self.leave(vcpu, parked, processor, devices))
    }

    /// Goes on from where it stands to the first place at which it can take an interrupt, one instruction at a time; none where
    /// it comes to its next stop first.
    fn go_to_open(
        &mut self,
        vcpu: usize,
        start: &Local,
        input: Input,
        way: &mut Way,
    ) -> Result<Option<Local>, Refusal> {
        self.access(vcpu, start, input, way)?;
        if self.machine.complete(vcpu) != Stop::Completed {
            return Err(self.unknown(vcpu, "makes two accesses in one instruction"));
        }
        let mut frame = pushed_flags(vcpu, start, input);
        let mut is_shadow = false;
        for _ in 0..MOST_STEPS {
            let before = state(&self.machine, vcpu)?;
            // Before its delivery it stands where it was interrupted, and executes nothing there.
            let delivered = frame.is_none();
            if delivered && !is_shadow && is_open(&before) {
                return Ok(Some(self.leave(vcpu, Parked::Open, before, way.devices.clone())));
            }
            if delivered && self.code.is_hlt(self.machine.memory(), before.general.rip) {
                return Ok(None);
            }
            if delivered && let Some(behind) = self.code.behind(self.machine.memory(), &before) {
                self.machine.load(vcpu, &behind, None);
                is_shadow = false;
                continue;
            }
            // KVM drops the shadow behind an STI that it steps over (docs/hosts.md).
            is_shadow = self.code.is_sti(self.machine.memory(), before.general.rip) && !is_open(&before);
            let mut stop = self.machine.get_on(vcpu);
            // An exchange with a device reads and writes.
            while !matches!(stop, Stop::Stepped | Stop::Completed | Stop::Window) {
                if self.serve(vcpu, stop, way)?.is_some() {
                    return Ok(None);
                }
                stop = self.machine.complete(vcpu);
            }
            if stop == Stop::Window {
                (frame, is_shadow) = (None, false);
            }
            let after = state(&self.machine, vcpu)?.general;
            // A step can end where it began: the delivery is still to come then.
            is_shadow &= after.rip != before.general.rip;
            if after.rsp != start.processor.general.rsp
                && let Some(flags) = frame.take()
            {
                self.clear_step_flag(flags);
            }
        }
        Err(self.unknown(vcpu, "goes on for long without an access to what it shares"))
    }

    /// The step flag is the debugger's, not the guest's.
    fn clear_step_flag(&self, address: u64) {
        let flags = self.machine.memory().read_u64(address).unwrap_or_default() & !TF;
        let written = self.machine.write(address, &flags.to_le_bytes());
        debug_assert!(written, "the private areas of all vCPUs are memory");
    }

    /// Whether an interrupt can come where a vCPU is parked.
    pub(crate) fn takes_interrupts(&self, here: &Local) -> bool {
        is_open(&here.processor) && here.parked.is_between()
    }

    /// Whether a vCPU came from one access to another of the same instruction: nothing can come in between.
    fn is_inside(&self, start: &Local, here: &Local) -> bool {
        let reads = matches!(start.parked, Parked::Read { .. }) && matches!(here.parked, Parked::Write { .. });
        let end = || instruction(self.machine.memory(), start.processor.general.rip).map(|it| it.next_ip());
        reads && end() == Some(here.processor.general.rip)
    }

    /// Does a passage that is known once more, on the way to [a moment](crate::moment): what counts goes on counting, so that the
    /// events of the whole way are in their rings at its end.
    pub(crate) fn again(&mut self, vcpu: usize, from: u32, input: Input, known: &Passage) -> Result<(), Refusal> {
        let start = self.local(vcpu, from).clone();
        let end = self.local(vcpu, known.to).parked.clone();
        if (&start.parked, &end) == (&Parked::Halting, &Parked::Halted) {
            self.vcpus[vcpu].at = Some(known.to);
            return Ok(());
        }
        let counted = self.counters(vcpu);
        self.stand(vcpu, from, &start, input);
        self.set_counters(&counted);
        let mut way = Way { effects: Vec::new(), devices: start.devices.clone() };
        let parked = match end {
            Parked::Open => self.go_to_open(vcpu, &start, input, &mut way)?.map_or(Parked::Off, |local| local.parked),
            _ => self.go(vcpu, &start, input, &mut way)?,
        };
        if parked != end || way.effects[..] != known.effects[..] {
            let difference =
                format!("it came to {end:?} with {:?}, now to {parked:?} with {:?}", known.effects, way.effects);
            return Err(Refusal::Differs { vcpu, place: self.here(vcpu), difference });
        }
        self.vcpus[vcpu].at = Some(known.to);
        Ok(())
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

    /// Has KVM's vCPU stand in that state.
    fn stand(&mut self, vcpu: usize, from: u32, start: &Local, input: Input) {
        let inject = match input {
            Input::Deliver(inject) => Some(inject),
            Input::Go(_) => None,
        };
        if inject.is_some() || self.vcpus[vcpu].at != Some(from) {
            let mut processor = start.processor;
            if let (Some(_), Parked::Write { before: Some(before), .. }) = (inject, &start.parked) {
                processor.general.rip = *before;
            }
            // First: completing the access that it stands at writes memory.
            self.machine.load(vcpu, &processor, inject);
            let pieces =
                if self.vcpus[vcpu].at == Some(from) { None } else { Some(start.memory(&self.vcpus[vcpu].base)) };
            for (address, bytes) in pieces.into_iter().flatten() {
                let written = self.machine.write(address, bytes);
                debug_assert!(written, "the private areas of all vCPUs are memory");
            }
            self.vcpus[vcpu].at = None;
        }
        self.reset_ghost(vcpu, start.devices.calls);
    }

    /// Sets what counts to the same at each passage: what a register keeps of it differs no more.
    fn reset_ghost(&self, vcpu: usize, calls: u64) {
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

    /// Goes until the next stop.
    fn go(&mut self, vcpu: usize, start: &Local, input: Input, way: &mut Way) -> Result<Parked, Refusal> {
        self.access(vcpu, start, input, way)?;
        for _ in 0..MOST_ACCESSES {
            let stop = self.machine.run(vcpu);
            if let Some(parked) = self.serve(vcpu, stop, way)? {
                return Ok(parked);
            }
        }
        Err(self.unknown(vcpu, "uses its own devices without end"))
    }

    /// Does the access that a vCPU is parked at. It stands at it afterwards, with what it reads answered, or has nothing to do.
    fn access(&mut self, vcpu: usize, start: &Local, input: Input, way: &mut Way) -> Result<(), Refusal> {
        let Input::Go(read) = input else { return Ok(()) };
        let stands = self.vcpus[vcpu].at.take().is_some();
        match start.parked {
            Parked::Read { address, size, update } => {
                if !stands {
                    self.expect(vcpu, &Stop::Read { address, size })?;
                }
                self.machine.answer(vcpu, read);
                if update {
                    self.update(vcpu, way)?;
                }
            }
            Parked::Write { address, value, .. } if is_xapic(address) && !sends(address) => {
                match way.devices.write_xapic(address, value) {
                    Served::EndOfInterrupt => way.effects.push(Effect::EndOfInterrupt),
                    Served::Unknown(what) => return Err(self.unknown(vcpu, &what)),
                    Served::Own | Served::Shared(_) => {}
                }
            }
            Parked::Write { address, value, .. } if is_xapic(address) => {
                way.effects.push(Effect::Send { icr: u64::from(way.devices.icr_high) << 32 | value, x2apic: false });
            }
            Parked::Write { address, size, value, .. } => way.effects.push(Effect::Store { address, size, value }),
            Parked::Send { icr } => {
                if !stands {
                    self.expect(vcpu, &Stop::WriteMsr { index: SEND, value: icr })?;
                }
                way.effects.push(Effect::Send { icr, x2apic: true });
            }
            Parked::Open | Parked::Halting | Parked::Halted | Parked::Off | Parked::Dead(_) => {}
        }
        Ok(())
    }

    /// The write of a locked instruction whose read is answered.
    fn update(&mut self, vcpu: usize, way: &mut Way) -> Result<(), Refusal> {
        match self.machine.complete(vcpu) {
            Stop::Write { address, size, value } if Arenas::holds(address, size) => {
                way.effects.push(Effect::Store { address, size, value });
                Ok(())
            }
            // A comparison that failed, where KVM leaves out the write that changes nothing.
            Stop::Completed => Ok(()),
            other => Err(self.unknown(vcpu, &format!("does {other:?} in a locked instruction"))),
        }
    }

    /// Enters a vCPU that was put into a state: it comes to the same stop as before.
    fn expect(&mut self, vcpu: usize, stop: &Stop) -> Result<(), Refusal> {
        match self.machine.run(vcpu) {
            same if same == *stop => Ok(()),
            other => Err(Refusal::Differs {
                vcpu,
                place: self.here(vcpu),
                difference: format!("it was {stop:?}, now it is {other:?}"),
            }),
        }
    }

    /// Where a vCPU is parked; nowhere where its stop concerned itself alone.
    fn serve(&mut self, vcpu: usize, stop: Stop, way: &mut Way) -> Result<Option<Parked>, Refusal> {
        // A handler that comes between two of these finds the first, and may leave another behind.
        if let Stop::Write { address, size: 4, value } = stop
            && is_xapic(address)
            && is_open(&state(&self.machine, vcpu)?)
        {
            return Ok(Some(self.parked_at_write(vcpu, address, 4, value)?));
        }
        let stop = match way.devices.serve(&mut self.machine, vcpu, stop) {
            Served::Own => return Ok(None),
            Served::EndOfInterrupt if is_open(&state(&self.machine, vcpu)?) => {
                return Err(self.unknown(vcpu, "ends an interrupt in service with interrupts on, by an msr"));
            }
            Served::EndOfInterrupt => {
                way.effects.push(Effect::EndOfInterrupt);
                return Ok(None);
            }
            Served::Unknown(what) => return Err(self.unknown(vcpu, &what)),
            Served::Shared(stop) => stop,
        };
        Ok(Some(match stop {
            Stop::Read { address, size } if Arenas::holds(address, size) => {
                let at = state(&self.machine, vcpu)?.general;
                if !self.code.reads_whole(self.machine.memory(), &at, address, size) {
                    return Err(self.unknown(vcpu, "reads across two words or pages of what it shares"));
                }
                Parked::Read { address, size, update: self.code.is_locked(self.machine.memory(), at.rip) }
            }
            Stop::Write { address, size, value } if Arenas::holds(address, size) || is_xapic(address) => {
                self.parked_at_write(vcpu, address, size, value)?
            }
            Stop::WriteMsr { value, .. } => Parked::Send { icr: value },
            Stop::Out { port: DOORBELL, value } if Doorbell(value) == Doorbell::EPITAPH => {
                Parked::Dead(self.last_words(vcpu))
            }
            Stop::Halted => Parked::Halting,
            Stop::Fault(fault @ (Fault::Run { .. } | Fault::FailEntry { .. } | Fault::Debug { .. })) => {
                return Err(self.unknown(vcpu, &format!("cannot be run by kvm: {fault}")));
            }
            Stop::Fault(fault) => Parked::Dead(fault.to_string().into()),
            Stop::Endless => return Err(self.unknown(vcpu, "runs on without an access to what it shares")),
            Stop::Read { address, .. } | Stop::Write { address, .. } => {
                return Err(Refusal::Nowhere { vcpu, address, place: self.here(vcpu) });
            }
            other => return Err(self.unknown(vcpu, &format!("does {other:?}"))),
        }))
    }
}

impl Stage<'_> {
    fn parked_at_write(&self, vcpu: usize, address: u64, size: u8, value: u64) -> Result<Parked, Refusal> {
        let after = state(&self.machine, vcpu)?.general;
        if !self.code.writes_whole(self.machine.memory(), &after, address, size) {
            return Err(self.unknown(vcpu, "writes across two words or pages of what it shares"));
        }
        let before = self.code.before_store(self.machine.memory(), &after, address, size);
        Ok(Parked::Write { address, size, value, before })
    }

    /// The state of a vCPU that stands there.
    fn leave(&self, vcpu: usize, parked: Parked, mut processor: ProcessorState, mut devices: Devices) -> Local {
        let live = self.code.live_flags(self.machine.memory(), processor.general.rip);
        processor.general.rflags &= !STATUS_FLAGS | live;
        let calls = offset_of!(GhostPage, calls) as u64;
        let begun = self.machine.memory().read_u64(GHOST + calls).unwrap_or_default();
        devices.calls = begun.wrapping_sub((vcpu as u64 + 1) * CALLS);
        Local::of(&self.vcpus[vcpu].base, self.machine.memory(), parked, processor, devices)
    }

    /// Ends a passage where KVM's vCPU stands.
    fn arrived(&mut self, vcpu: usize, here: Local, effects: Vec<Effect>) -> Passage {
        let passage = self.ended(vcpu, here, effects);
        self.vcpus[vcpu].at = Some(passage.to);
        passage
    }

    /// Ends a passage.
    fn ended(&mut self, vcpu: usize, here: Local, effects: Vec<Effect>) -> Passage {
        Passage { to: self.vcpus[vcpu].locals.number(here), effects: effects.into() }
    }

    /// What a vCPU says of its end.
    fn last_words(&self, vcpu: usize) -> Rc<str> {
        let published = stallbench_state::published::Published::read(self.machine.memory(), self.vcpus.len());
        let epitaph = published.vcpus.get(vcpu).map(|page| page.epitaph);
        epitaph.map_or_else(String::new, |epitaph| stallbench_abi::text::of(&epitaph.text).to_owned()).into()
    }

    fn here(&self, vcpu: usize) -> String {
        let rip = self.machine.state(vcpu).map_or(0, |state| state.general.rip);
        self.code.place(rip)
    }

    fn unknown(&self, vcpu: usize, what: &str) -> Refusal {
        Refusal::Unknown { vcpu, what: what.to_owned(), place: self.here(vcpu) }
    }
}

/// Where the RFLAGS lie that a delivery pushes: 24 bytes below the end of a stack that the processor aligns to 16 bytes, which is that of
/// the interrupted code, or for an NMI one of its own (SDM 3A 7.14).
fn pushed_flags(vcpu: usize, start: &Local, input: Input) -> Option<u64> {
    let end = match input {
        Input::Go(_) => return None,
        Input::Deliver(Inject::Vector(_)) => start.processor.general.rsp & !0xf,
        Input::Deliver(Inject::Nmi) => private(vcpu) + private_area::NMI_STACK_TOP,
    };
    Some(end.wrapping_sub(24))
}

/// Whether an interrupt can come in front of the next instruction.
pub(crate) fn is_open(state: &ProcessorState) -> bool {
    state.general.rflags & RFLAGS_IF != 0 && !state.shadow
}

fn state(machine: &Controlled, vcpu: usize) -> Result<ProcessorState, Refusal> {
    machine.state(vcpu).map_err(|moved| Refusal::Moved { vcpu, moved })
}
