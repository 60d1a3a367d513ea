//! The state of one vCPU: all that decides what it does next, but for what it reads.
//!
//! Left out is what no decision of a guest reads: the waits that it publishes, its counters, its events. So is memory below the stack
//! pointer: an interrupt may overwrite that at any instruction, and code without a red zone keeps nothing there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::mem::{offset_of, size_of};
use std::sync::Arc;

use stallbench_abi::layout::{PAGE, private, private_area as area};
use stallbench_abi::vcpu::{CONTEXTS, Context, Phase, VcpuPage};
use stallbench_core::controlled::ProcessorState;
use stallbench_state::memory::Memory;

use crate::apic::{Message, command};
use crate::devices::{Devices, sends};
use crate::safety::CACHE_DISABLE;

/// Granularity of the differences from the memory at the start line.
const LINE: usize = 64;

/// Why a vCPU stands where it stands, and what it is about to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Parked {
    /// It is about to read what is shared. With `update` the read and the write behind it are one.
    Read { address: u64, size: u8, update: bool },
    /// It is about to write: the registers are those behind the store. `before` is where that begins, if an interrupt can come in
    /// front of it.
    Write { address: u64, size: u8, value: u64, before: Option<u64> },
    /// It is about to send an interrupt by the x2APIC.
    Send { icr: u64 },
    /// It is about to write the spurious-interrupt vector register of its x2APIC, which enables that or turns it off.
    Enable { svr: u32 },
    /// It can take an interrupt here, and where it stops next it cannot.
    Open,
    /// It is about to execute what waits until others see all that it has stored; with `all`, nothing behind that begins before it.
    Drain { all: bool },
    /// It is about to halt: an interrupt that comes here is taken before it does.
    Halting,
    /// It halted.
    Halted,
    /// It was never started.
    Off,
    /// It has got an INIT, and waits for a start-up interrupt.
    Waits,
    /// It cannot go on: why.
    Dead(Arc<str>),
}

/// The state of one vCPU. Two are equal where all of them is; as states of the search they are the same where their [identity](Self::identity) is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Local {
    pub(crate) parked: Parked,
    pub(crate) processor: ProcessorState,
    pub(crate) devices: Devices,
    /// The publication page. Its counters are zero.
    page: Box<[u8]>,
    /// Its stacks from the stack pointer up, each with its address.
    stacks: Vec<(u64, Box<[u8]>)>,
    /// Lines of the rest of its memory that are not as they were at the start line.
    lines: Vec<(u64, [u8; LINE])>,
}

impl Parked {
    /// What it is about to send.
    pub(crate) fn message(&self) -> Option<Message> {
        match *self {
            Self::Send { icr } => Some(command(icr, true).0),
            Self::Write { address, value, .. } if sends(address) => Some(command(value, false).0),
            _ => None,
        }
    }

    /// Whether it is about to do what others can see.
    pub(crate) fn is_access(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Send { .. } | Self::Enable { .. })
    }

    /// Whether it is between two instructions, of which the second has not begun.
    pub(crate) fn is_between(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Send { .. }
            | Self::Enable { .. }
            | Self::Open
            | Self::Drain { .. }
            | Self::Halting
            | Self::Halted => true,
            Self::Write { before, .. } => before.is_some(),
            Self::Off | Self::Waits | Self::Dead(_) => false,
        }
    }

    /// Whether it was started and executes instructions, or halts after some.
    pub(crate) fn is_up(&self) -> bool {
        !matches!(self, Self::Off | Self::Waits | Self::Dead(_))
    }
}

/// The stacks of a private area: lowest byte, end.
pub(crate) const STACKS: [(u64, u64); 4] = [
    (area::TASK_STACK, area::TASK_STACK_TOP),
    (area::EXCEPTION_STACK, area::EXCEPTION_STACK_TOP),
    (area::NMI_STACK, area::NMI_STACK_TOP),
    (area::DOUBLE_FAULT_STACK, area::DOUBLE_FAULT_STACK_TOP),
];
/// Pages of a private area that are neither published nor stacks, nor ghost.
const REST: [(u64, u64); 2] = [(area::DESCRIPTORS, area::DESCRIPTORS + PAGE), (area::RUNTIME, area::RING)];
/// Words of the publication page that count, and that nothing reads: they start at zero at each passage.
const COUNTERS: [usize; 4] = [
    offset_of!(VcpuPage, progress),
    offset_of!(VcpuPage, events),
    offset_of!(VcpuPage, interrupts),
    offset_of!(VcpuPage, nmis),
];

/// The private memory of a vCPU as it was at the start line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    vcpu: usize,
    rest: [Vec<u8>; 2],
}

impl Base {
    pub(crate) fn of(memory: &dyn Memory, vcpu: usize) -> Self {
        Self { vcpu, rest: REST.map(|(from, to)| bytes(memory, private(vcpu) + from, (to - from) as usize)) }
    }

    /// Addresses of the words that count what nothing reads.
    pub(crate) fn counters(&self) -> impl Iterator<Item = u64> + use<> {
        let page = private(self.vcpu) + area::PAGE_PUBLISHED;
        COUNTERS.into_iter().map(move |at| page + at as u64)
    }
}

impl Local {
    /// The state of a vCPU that stands still, from its memory.
    pub(crate) fn of(
        base: &Base,
        memory: &dyn Memory,
        parked: Parked,
        processor: ProcessorState,
        devices: Devices,
    ) -> Self {
        let area = private(base.vcpu);
        let mut page = bytes(memory, area + area::PAGE_PUBLISHED, size_of::<VcpuPage>());
        COUNTERS.into_iter().for_each(|at| page[at..at + 8].fill(0));
        let stacks = live_stacks(memory, area, processor.general.rsp);
        let mut lines = Vec::new();
        for ((from, _), was) in REST.into_iter().zip(&base.rest) {
            let now = bytes(memory, area + from, was.len());
            if now == *was {
                continue;
            }
            let pairs = now.chunks_exact(LINE).zip(was.chunks_exact(LINE)).enumerate();
            let changed = pairs.filter(|(_, (now, was))| now != was);
            lines.extend(changed.filter_map(|(line, (now, _))| {
                Some((area + from + (line * LINE) as u64, <[u8; LINE]>::try_from(now).ok()?))
            }));
        }
        Self { parked, processor, devices, page: page.into(), stacks, lines }
    }

    /// The first part in which it differs from another state of its vCPU, with both.
    pub(crate) fn difference(&self, other: &Self) -> String {
        if self.parked != other.parked {
            return format!("{:?}, {:?}", self.parked, other.parked);
        }
        if self.processor != other.processor {
            return format!("{:x?}, {:x?}", self.processor, other.processor);
        }
        if self.devices != other.devices {
            return format!("{:x?}, {:x?}", self.devices, other.devices);
        }
        let pieces = |local: &Self| {
            let stacks = local.stacks.iter().map(|(at, stack)| (*at, stack.to_vec()));
            stacks.chain(local.lines.iter().map(|(at, line)| (*at, line.to_vec()))).collect::<Vec<_>>()
        };
        let (own, others) = (pieces(self), pieces(other));
        let pairs = own.iter().zip(&others);
        let first = pairs.into_iter().find_map(|((at, one), (_, other))| first_difference(*at, one, other));
        first.unwrap_or_else(|| "what it publishes, or which lines it wrote".to_owned())
    }

    /// Whether its vCPU says that its part is done, and is in no handler.
    pub(crate) fn is_through(&self) -> bool {
        self.word(offset_of!(VcpuPage, phase)) == Some(Phase::FINISHED.0)
            && self.word(offset_of!(VcpuPage, depth)) == Some(0)
    }

    /// Whether its caches are off, but for what a case sets up.
    pub(crate) fn has_caches_off(&self) -> bool {
        self.parked.is_up()
            && self.processor.cr0 & CACHE_DISABLE != 0
            && self.word(offset_of!(VcpuPage, set_up)) == Some(0)
    }

    /// Whether it is up, and says that it is not inside the rendezvous.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let phase = self.word(offset_of!(VcpuPage, phase)).map(Phase);
        let is_online = matches!(phase, Some(Phase::ONLINE | Phase::CASE | Phase::FINISHED));
        self.parked.is_up() && is_online && self.word(offset_of!(VcpuPage, rendezvous)) == Some(0)
    }

    /// A word of the publication page.
    fn word(&self, at: usize) -> Option<u32> {
        self.page.get(at..at + 4).map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
    }

    /// Whether its stack pointer lies in one of its stacks: what lies on another is not part of the state.
    pub(crate) fn has_stack(&self) -> bool {
        !self.stacks.is_empty()
    }

    /// The same, halted behind the HLT that it is about to execute.
    pub(crate) fn halted(&self) -> Self {
        let mut halted = self.clone();
        halted.parked = Parked::Halted;
        halted.processor.general.rip = halted.processor.general.rip.wrapping_add(1);
        halted.processor.shadow = false;
        halted
    }

    /// The same with these registers and devices, waiting for a start-up interrupt: whatever it was about to do, it does not. Its stacks are
    /// nobody's any more.
    pub(crate) fn waiting(&self, processor: ProcessorState, devices: Devices) -> Self {
        Self { parked: Parked::Waits, processor, devices, stacks: Vec::new(), ..self.clone() }
    }

    /// What it takes to put this state into memory: each piece with its address.
    pub(crate) fn memory<'a>(&'a self, base: &'a Base) -> impl Iterator<Item = (u64, &'a [u8])> {
        let area = private(base.vcpu);
        let rest = REST.into_iter().zip(&base.rest).map(move |((from, _), was)| (area + from, &was[..]));
        let lines = self.lines.iter().map(|(at, line)| (*at, &line[..]));
        let stacks = self.stacks.iter().map(|(at, bytes)| (*at, &bytes[..]));
        rest.chain(lines).chain(stacks).chain([(area + area::PAGE_PUBLISHED, &self.page[..])])
    }

    /// What of its stacks lies below those that are in use: from, to. Nothing is kept there, but a function that is called later finds in
    /// its frame what the last one left.
    pub(crate) fn unused_stacks(&self, base: &Base) -> impl Iterator<Item = (u64, u64)> {
        let area = private(base.vcpu);
        STACKS.into_iter().map(move |(low, top)| {
            let (low, top) = (area + low, area + top);
            let used = self.stacks.iter().map(|(at, _)| *at).find(|at| (low..=top).contains(at));
            (low, used.unwrap_or(top))
        })
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let stacks: usize = self.stacks.iter().map(|(_, stack)| stack.len()).sum();
        size_of::<Self>() + self.page.len() + stacks + self.lines.len() * size_of::<(u64, [u8; LINE])>()
    }

    /// Hashes what tells it from other states of its vCPU.
    pub(crate) fn hash_to(&self, hasher: &mut impl Hasher) {
        self.identity().hash(hasher);
    }

    /// What tells it from other states of its vCPU.
    pub(crate) fn identity(&self) -> Identity {
        const PUBLISHED: usize = offset_of!(VcpuPage, contexts);
        const AFTER: usize = PUBLISHED + CONTEXTS * size_of::<Context>();
        const LOG: usize = offset_of!(VcpuPage, log);
        let mut bytes = self.page[..PUBLISHED].to_vec();
        bytes.extend_from_slice(&self.page[AFTER..LOG]);
        for (at, stack) in &self.stacks {
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(stack);
        }
        for (at, line) in &self.lines {
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(line);
        }
        Identity {
            parked: self.parked.clone(),
            processor: self.processor,
            devices: self.devices.clone(),
            memory: bytes.into(),
        }
    }
}

/// The stacks that are in use from this stack pointer up: that of an interrupt that has one of its own, and below it the one that it
/// interrupted, which the frame at its end names (SDM 3A 7.14.2: RIP, CS, RFLAGS, RSP, SS).
fn live_stacks(memory: &dyn Memory, area: u64, mut rsp: u64) -> Vec<(u64, Box<[u8]>)> {
    let mut stacks = Vec::new();
    for _ in STACKS {
        let Some((_, top)) = STACKS.into_iter().find(|(low, top)| (area + low..=area + top).contains(&rsp)) else {
            break;
        };
        let end = area + top;
        stacks.push((rsp, bytes(memory, rsp, (end - rsp) as usize).into()));
        if top == area::TASK_STACK_TOP {
            break;
        }
        rsp = memory.read_u64(end - 16).unwrap_or_default();
    }
    stacks
}

/// Whether an address lies on one of the stacks of a vCPU.
pub(crate) fn on_a_stack(vcpu: usize, address: u64) -> bool {
    STACKS.into_iter().any(|(low, top)| (private(vcpu) + low..=private(vcpu) + top).contains(&address))
}

/// Whether an INIT leaves what is written there: memory of a vCPU that is part of its state, and on none of its stacks.
pub(crate) fn lasts(vcpu: usize, address: u64, size: u64) -> bool {
    let page = private(vcpu) + area::PAGE_PUBLISHED;
    let contexts = page + offset_of!(VcpuPage, contexts) as u64;
    let left_out = COUNTERS.map(|at| (page + at as u64, 8)).into_iter().chain([
        (contexts, (CONTEXTS * size_of::<Context>()) as u64),
        (page + offset_of!(VcpuPage, log) as u64, PAGE - offset_of!(VcpuPage, log) as u64),
        (private(vcpu) + area::RING, area::END - area::RING),
    ]);
    let stacks = STACKS.map(|(low, top)| (private(vcpu) + low, top - low));
    let end = address.saturating_add(size);
    let is_own = address < private(vcpu) + area::END && end > private(vcpu);
    is_own && !left_out.chain(stacks).any(|(from, length)| address >= from && end <= from + length)
}

fn first_difference(address: u64, one: &[u8], other: &[u8]) -> Option<String> {
    let at = one.iter().zip(other).position(|(one, other)| one != other)?;
    Some(format!("{:#x} at {:#x}, {:#x}", one[at], address + at as u64, other[at]))
}

fn bytes(memory: &dyn Memory, address: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let read = memory.read(address, &mut bytes);
    debug_assert!(read, "the private areas of all vCPUs are memory");
    bytes
}

/// All of a state that decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) parked: Parked,
    pub(crate) processor: ProcessorState,
    pub(crate) devices: Devices,
    pub(crate) memory: Box<[u8]>,
}

/// States of one vCPU, each once.
#[derive(Debug, Default)]
pub(crate) struct Locals {
    /// Bytes of memory that they take, about.
    pub(crate) bytes: usize,
    states: Vec<Arc<Local>>,
    numbers: HashMap<Identity, u32>,
}

impl Locals {
    /// The number of a state.
    pub(crate) fn number(&mut self, local: Arc<Local>) -> u32 {
        let next = self.states.len() as u32;
        match self.numbers.entry(local.identity()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                // Once in itself, once in what tells it from others.
                self.bytes += 2 * local.bytes();
                new.insert(next);
                self.states.push(local);
                next
            }
        }
    }

    pub(crate) fn get(&self, number: u32) -> &Arc<Local> {
        &self.states[number as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }
}
