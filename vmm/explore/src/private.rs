//! What vCPUs access beside the arena: whether a handler meets there what it interrupts, or two vCPUs each other.
//!
//! An interrupt is delivered at stops, and stops are accesses to what vCPUs share. That is all there is to its place as long as
//! a handler and what it interrupts have nothing in common between two stops: then it is the same whether it comes before or behind.
//! So every instruction is looked at once, with what it reads and writes: memory, model-specific and control registers.

#[cfg(test)]
mod test;

use std::fmt;

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use rustc_hash::{FxHashMap, FxHashSet};
use stallbench_abi::layout::{ARENA, ARENA_SIZE, CONTROL_END, GHOST, PAGE, XAPIC, private, private_area as area};
use stallbench_abi::shared::GhostPage;
use stallbench_core::controlled::{Inject, ProcessorState};
use stallbench_stall::register;
use stallbench_state::machine::RFLAGS_DF;
use stallbench_state::memory::Memory;

use crate::devices::{END, SEND, ends_interrupt};
use crate::local::{self, STACKS};
use crate::stage::{Behind, is_open};

/// Bytes that a delivery pushes: RIP, CS, RFLAGS, RSP, SS (SDM 3A 7.14.2).
const FRAME: u64 = 40;

/// Where something is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Location {
    /// A byte of memory, as the first that two accesses have in common.
    Memory(u64),
    /// A model-specific register.
    Msr(u32),
    /// A control register.
    Control(u32),
}

/// Who accesses: the task, or the handler of an interrupt or NMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Context {
    Task,
    Handler(Inject),
}

/// An access of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Access {
    /// 1 where that is a register.
    size: u64,
    at: Location,
    writes: bool,
    rip: u64,
    context: Context,
    /// It lies on a stack below what the handler interrupted, where nobody else keeps anything.
    own: bool,
    /// Interrupts, and NMIs, can come at this instruction, or could on the passage before it.
    behind_open: [bool; 2],
}

/// A handler that runs: what it handles, where its frame lies, and the stack pointer of what it interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    inject: Inject,
    at: u64,
    interrupted: u64,
}

/// All accesses of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Private {
    vcpu: usize,
    known: FxHashSet<Access>,
    /// By the word, or the register.
    places: FxHashMap<Location, Vec<Access>>,
    /// Those of them to what the host maps for all vCPUs, the arena left out.
    outside: Vec<Access>,
    /// Handlers that run in each state.
    frames: FxHashMap<u32, Vec<Frame>>,
    /// A handler was seen that leads its vCPU elsewhere than to where it was interrupted.
    pub(crate) leads_elsewhere: bool,
}

/// What is looked at in one passage.
pub(crate) struct Looker {
    frames: Vec<Frame>,
    delivered: Option<Inject>,
    factory: InstructionInfoFactory,
    found: Vec<Access>,
    /// Interrupts, and NMIs, could come at an instruction that was looked at.
    was_open: [bool; 2],
    leads_elsewhere: bool,
    /// It ends an interrupt with interrupts off that were on before: what had to wait for that comes behind it, and the first place on the way
    /// is in front of it.
    ends_late: bool,
}

/// What was looked at in one passage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    /// Handlers that run at its end.
    frames: Vec<Frame>,
    /// Each once, in the order in which they were met.
    found: Vec<Access>,
    /// A handler writes where it goes back to, or goes back by another frame than its own.
    pub(crate) leads_elsewhere: bool,
}

impl Looked {
    /// Handlers run at the end, and there is nothing else that was not looked at before.
    pub(crate) fn with(frames: &[Frame]) -> Self {
        Self { frames: frames.to_vec(), ..Self::default() }
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.frames.capacity() * size_of::<Frame>() + self.found.capacity() * size_of::<Access>()
    }
}

impl fmt::Debug for Looker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Looker").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl Looker {
    /// Whether it ends an interrupt behind where another one can come.
    pub(crate) fn ends_late(&self) -> bool {
        self.ends_late
    }

    /// All of it.
    pub(crate) fn looked(mut self) -> Looked {
        let mut met = FxHashSet::default();
        self.found.retain(|access| met.insert(*access));
        self.found.shrink_to_fit();
        Looked { frames: self.frames, found: self.found, leads_elsewhere: self.leads_elsewhere }
    }

    /// In front of the first instruction: a handler runs from there, if something was delivered.
    pub(crate) fn enters(&mut self, memory: &dyn Memory, before: &ProcessorState) {
        let at = before.general.rsp;
        if let Some(inject) = self.delivered.take() {
            // The frame is RIP, CS, RFLAGS, RSP, SS (SDM 3A 7.14.2).
            let interrupted = memory.read_u64(at + 24).unwrap_or_default();
            self.frames.push(Frame { inject, at, interrupted });
        }
    }

    /// In front of an instruction.
    pub(crate) fn look(&mut self, memory: &dyn Memory, before: &ProcessorState, it: &Instruction) {
        let rsp = before.general.rsp;
        self.enters(memory, before);
        for (was, is) in self.was_open.iter_mut().zip(open(before)) {
            *was |= is;
        }
        let known = self.found.len();
        self.accesses(before, it);
        self.ends_late |=
            self.was_open[0] && !open(before)[0] && self.found[known..].iter().any(Access::ends_interrupt);
        self.leads_elsewhere |=
            self.found[known..].iter().any(|access| self.frames.iter().any(|frame| frame.is_written(access)));
        if let (Mnemonic::Iretq, Some(frame)) = (it.mnemonic(), self.frames.last()) {
            self.leads_elsewhere |= frame.at != rsp;
            if frame.at == rsp {
                self.frames.pop();
            }
        }
    }

    fn accesses(&mut self, before: &ProcessorState, it: &Instruction) {
        let general = &before.general;
        let repeats = if it.has_rep_prefix() || it.has_repne_prefix() { general.rcx } else { 1 };
        let value = |register: Register, _, _| {
            if register.is_segment_register() { Some(0) } else { register::value(general, register) }
        };
        let used = self.factory.info(it).used_memory().to_vec();
        for memory in used {
            let Some(address) = memory.virtual_address(0, value) else { continue };
            for (accesses, writes) in [(reads(memory.access()), false), (does_write(memory.access()), true)] {
                if accesses && repeats > 0 {
                    // Of a string instruction that repeats the first has no size.
                    let one = memory.memory_size().size().max(it.memory_size().size()).max(1) as u64;
                    let size = one.saturating_mul(repeats);
                    // Down from there (SDM 1 3.4.3.2).
                    let is_down = repeats > 1 && general.rflags & RFLAGS_DF != 0;
                    let first = if is_down { address.saturating_sub(size - one) } else { address };
                    self.add(it, Location::Memory(first), size, writes);
                }
            }
        }
        match it.mnemonic() {
            // ECX has the number.
            Mnemonic::Rdmsr => self.add(it, Location::Msr(general.rcx as u32), 1, false),
            Mnemonic::Wrmsr => self.add(it, Location::Msr(general.rcx as u32), 1, true),
            Mnemonic::Clts | Mnemonic::Lmsw => self.add(it, Location::Control(0), 1, true),
            Mnemonic::Mov => {
                for (operand, writes) in [(it.op0_register(), true), (it.op1_register(), false)] {
                    if operand.is_cr() {
                        self.add(it, Location::Control(operand.number() as u32), 1, writes);
                    }
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, it: &Instruction, at: Location, size: u64, writes: bool) {
        let context = self.frames.last().map_or(Context::Task, |frame| Context::Handler(frame.inject));
        let own = match at {
            Location::Memory(address) => self.frames.last().is_some_and(|frame| frame.owns(address)),
            Location::Msr(_) | Location::Control(_) => false,
        };
        self.found.push(Access { size, at, writes, rip: it.ip(), context, own, behind_open: self.was_open });
    }
}

impl Access {
    fn ends_interrupt(&self) -> bool {
        self.writes
            && match self.at {
                Location::Memory(address) => ends_interrupt(address),
                Location::Msr(index) => index == END,
                Location::Control(_) => false,
            }
    }
}

impl Frame {
    /// Whether an access changes where its handler goes back to.
    fn is_written(&self, access: &Access) -> bool {
        let Location::Memory(address) = access.at else { return false };
        access.writes && address < self.at + FRAME && address.saturating_add(access.size) > self.at
    }

    /// Whether an address lies on the handler's part of its stack.
    fn owns(&self, address: u64) -> bool {
        let area = self.at & !(stallbench_abi::layout::PRIVATE_STRIDE - 1);
        let on = |(low, top): &(u64, u64)| (area + low..=area + top).contains(&self.at);
        let Some((low, top)) = STACKS.into_iter().find(on) else { return false };
        let end = if (area + low..=area + top).contains(&self.interrupted) { self.interrupted } else { area + top };
        (area + low..end).contains(&address)
    }
}

impl Private {
    pub(crate) fn of(vcpu: usize) -> Self {
        Self { vcpu, ..Self::default() }
    }

    /// Looks at a passage from a state; something may be delivered first.
    pub(crate) fn looker(&self, from: u32, delivered: Option<Inject>) -> Looker {
        let frames = self.frames(from).to_vec();
        Looker {
            frames,
            delivered,
            factory: InstructionInfoFactory::new(),
            found: Vec::new(),
            was_open: [false; 2],
            leads_elsewhere: false,
            ends_late: false,
        }
    }

    /// The handlers that run in a state.
    pub(crate) fn frames(&self, state: u32) -> &[Frame] {
        self.frames.get(&state).map_or(&[], |frames| frames)
    }

    /// The handlers that run in a state, the first that came first.
    pub(crate) fn handlers(&self, state: u32) -> Vec<Inject> {
        self.frames.get(&state).map_or(Vec::new(), |frames| frames.iter().map(|frame| frame.inject).collect())
    }

    /// The same handlers run in a state as in another.
    pub(crate) fn stands_as(&mut self, state: u32, other: u32) {
        if let Some(frames) = self.frames.get(&other).cloned() {
            self.frames.entry(state).or_insert(frames);
        }
    }

    /// The instructions of a passage that access what may be met there, and whether interrupts, and NMIs, can come in front of them or of
    /// those before them.
    pub(crate) fn open(&self, looked: &Looked) -> Behind {
        let met = looked.found.iter().filter(|access| !is_declared(self.vcpu, access));
        let met = met.map(|access| (access.rip, access.behind_open)).filter(|(_, open)| open.contains(&true));
        met.collect::<FxHashSet<_>>().into_iter().collect()
    }

    /// Takes what was seen on the way to a state: the instructions at which handlers meet what they interrupt.
    pub(crate) fn take(&mut self, looked: &Looked, to: u32) -> Vec<u64> {
        self.leads_elsewhere |= looked.leads_elsewhere;
        if !looked.frames.is_empty() {
            self.frames.entry(to).or_insert_with(|| looked.frames.clone());
        }
        looked.found.iter().flat_map(|access| self.add(*access)).collect()
    }

    fn add(&mut self, access: Access) -> Vec<u64> {
        if is_declared(self.vcpu, &access) || !self.known.insert(access) {
            return Vec::new();
        }
        if matches!(access.at, Location::Memory(address) if address < CONTROL_END && address.saturating_add(access.size) > GHOST)
        {
            self.outside.push(access);
        }
        let mut meetings = Vec::new();
        for place in places(&access) {
            let there = self.places.entry(place).or_default();
            there.push(access);
            // With itself, too: a handler can come into itself.
            let both = |other| [(&access, other), (other, &access)];
            let meet = there.iter().flat_map(both).filter(|(handler, interrupted)| meet(handler, interrupted));
            meetings.extend(meet.map(|(_, interrupted)| interrupted.rip));
        }
        meetings
    }

    /// What the host maps for all vCPUs outside of the arena, and has not declared, that it writes: the address and the instruction. It is
    /// part of no state.
    pub(crate) fn writes_outside(&self) -> Option<(u64, u64)> {
        self.outside.iter().find_map(|access| match access.at {
            Location::Memory(address) => access.writes.then_some((address, access.rip)),
            Location::Msr(_) | Location::Control(_) => None,
        })
    }

    /// What the host maps for all vCPUs outside of the arena, and has not declared, that two of them access, one of them writing: the
    /// address and both instructions.
    pub(crate) fn shares(&self, other: &Self) -> Option<(u64, [u64; 2])> {
        self.outside.iter().find_map(|one| {
            let meets = |two: &&Access| one.writes || two.writes;
            other.outside.iter().filter(meets).find_map(|two| match common(one, two)? {
                Location::Memory(address) => Some((address, [one.rip, two.rip])),
                Location::Msr(_) | Location::Control(_) => None,
            })
        })
    }
}

/// Whether interrupts, and NMIs, can come in front of the next instruction.
pub(crate) fn open(state: &ProcessorState) -> [bool; 2] {
    [is_open(state), !state.nmi_masked && !state.shadow]
}

/// Whether a handler's access meets one of what it can interrupt, whether it was seen to or not.
fn meet(handler: &Access, interrupted: &Access) -> bool {
    let Context::Handler(inject) = handler.context else { return false };
    let comes = match inject {
        Inject::Vector(_) => interrupted.behind_open[0],
        Inject::Nmi => interrupted.behind_open[1],
        // None of them comes back to it.
        Inject::Init | Inject::StartUp(_) => false,
    };
    let writes = handler.writes || interrupted.writes;
    comes && !handler.own && writes && common(handler, interrupted).is_some()
}

/// The first that two accesses have in common.
fn common(one: &Access, other: &Access) -> Option<Location> {
    match (one.at, other.at) {
        (Location::Memory(a), Location::Memory(b)) => {
            (a < b.saturating_add(other.size) && b < a.saturating_add(one.size)).then_some(Location::Memory(a.max(b)))
        }
        (a, b) => (a == b).then_some(a),
    }
}

/// The words, or the register.
fn places(access: &Access) -> Vec<Location> {
    match access.at {
        Location::Memory(address) => {
            let last = address.saturating_add(access.size - 1) / 8;
            (address / 8..=last).map(|word| Location::Memory(word * 8)).collect()
        }
        register => vec![register],
    }
}

/// What is no private matter, or may be met there: the arena and the APIC's page, accesses to which are stops; what a vCPU publishes and
/// its events, by which nothing is decided (a handler has a context of its own there, and leaves the depth as it finds it); the ghost page;
/// the interrupt command register of the x2APIC, a write to which is a stop; what only is read.
fn is_declared(vcpu: usize, access: &Access) -> bool {
    match access.at {
        Location::Msr(index) => index == SEND,
        Location::Control(_) => false,
        Location::Memory(address) => {
            let own = private(vcpu);
            let declared = [
                (ARENA, ARENA + ARENA_SIZE),
                (XAPIC, XAPIC + PAGE),
                (GHOST, GHOST + size_of::<GhostPage>() as u64),
                (own + area::PAGE_PUBLISHED, own + PAGE),
                (own + area::RING, own + area::END),
                (0, GHOST),
            ];
            declared.into_iter().any(|(from, to)| address >= from && address.saturating_add(access.size) <= to)
        }
    }
}

/// Whether an instruction changes what an INIT leaves of its vCPU: memory that [lasts](local::lasts), a model-specific register, or CR0, of
/// which CD and NW stay.
pub(crate) fn changes_what_lasts(vcpu: usize, before: &ProcessorState, it: &Instruction) -> bool {
    let mut looker = Private::default().looker(0, None);
    looker.accesses(before, it);
    looker.found.iter().filter(|access| access.writes).any(|access| match access.at {
        Location::Memory(address) => local::lasts(vcpu, address, access.size),
        Location::Msr(index) => index != SEND,
        Location::Control(number) => number == 0,
    })
}

fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn does_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}
