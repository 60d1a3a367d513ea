//! Setting aside what changes and decides nothing: a count of turns, a growing trace.
//!
//! A vCPU whose state does not come back may still go round one and the same path for ever. What differs between rounds is taken
//! to be anything at all, and followed through the instructions of a round: whatever is computed from it may be anything too. If
//! none of it flows into a branch, and into no address but within bounds that the instructions themselves set (`and`), then the
//! path is the same whatever it is, and what it does not flow into is the same in each round.

use std::collections::BTreeSet;

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register, UsedMemory};
use stallbench_state::machine::{Registers, SystemRegisters};
use stallbench_state::memory::Memory;

use super::Ghost;
use super::effect::{self, Decode};
use super::trace::{self, End, Step, Trace, key};
use crate::register;

/// Number of RSP among the general registers.
const RSP: usize = 6;
/// Names of the general registers.
pub(super) const NAMES: [&str; 16] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
/// Longest round that is looked for.
const LONGEST: usize = 4096;
/// Most bytes that a store whose address is set aside may reach.
const REACH: u64 = 1 << 16;
/// Rounds of following, each of which sets something more aside.
const ROUNDS: usize = 256;
/// Rounds after which bounds that still grow are taken to be none.
const WIDEN: usize = 4;

/// The least and the greatest value that a register can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) least: u64,
    pub(super) most: u64,
}

impl Bounds {
    const ANY: Self = Self { least: 0, most: u64::MAX };
    const ANY_32: Self = Self::up_to(u32::MAX as u64);

    /// Of a register that a value of so many bytes was loaded into.
    const fn of_size(bytes: usize) -> Self {
        match bytes {
            1 => Self::up_to(u8::MAX as u64),
            2 => Self::up_to(u16::MAX as u64),
            4 => Self::ANY_32,
            _ => Self::ANY,
        }
    }

    const fn up_to(most: u64) -> Self {
        Self { least: 0, most }
    }

    const fn exactly(value: u64) -> Self {
        Self { least: value, most: value }
    }

    fn add(self, other: Self) -> Option<Self> {
        Some(Self { least: self.least.checked_add(other.least)?, most: self.most.checked_add(other.most)? })
    }

    /// Plus a number that may be negative.
    fn offset(self, by: i64) -> Option<Self> {
        Some(Self { least: self.least.checked_add_signed(by)?, most: self.most.checked_add_signed(by)? })
    }

    fn scaled(self, by: u64) -> Option<Self> {
        Some(Self { least: self.least.checked_mul(by)?, most: self.most.checked_mul(by)? })
    }

    fn hull(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), most: self.most.max(other.most) }
    }
}

/// What is set aside at one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    /// General registers, with their bounds.
    pub(super) registers: [Option<Bounds>; 16],
    /// Flags, as bits of RFLAGS.
    pub(super) flags: u64,
}

impl Unknown {
    /// Whatever one of two ways leads to; what still grows after a while is taken to be anything, so that this comes to an end.
    fn join(&mut self, other: &Self, from: &Registers, to: &Registers, widen: bool) -> bool {
        let before = *self;
        self.flags |= other.flags;
        for index in 0..self.registers.len() {
            let known = |registers| Bounds::exactly(register::general(registers, index));
            let joined = match (self.registers[index], other.registers[index]) {
                (None, None) => None,
                (ours, theirs) => {
                    let ours = ours.unwrap_or_else(|| known(to));
                    let hull = ours.hull(theirs.unwrap_or_else(|| known(from)));
                    Some(if hull != ours && widen { Bounds::ANY } else { hull })
                }
            };
            self.registers[index] = joined;
        }
        *self != before
    }
}

/// What a vCPU goes round in, and what is set aside of it.
#[derive(Clone, Debug)]
pub(super) struct Aside {
    /// The first step of the last round in the trace.
    pub(super) from: usize,
    /// What is set aside before each step of it.
    pub(super) at: Vec<Unknown>,
    /// Bytes that may hold anything.
    pub(super) memory: BTreeSet<u64>,
    /// Bytes that may be read at addresses that are set aside.
    pub(super) reads: BTreeSet<u64>,
}

/// Whether a trace that comes back looks at ghost memory or changes it.
pub(super) fn touches_ghost(trace: &Trace, ghost: &Ghost) -> bool {
    let touches = trace.cycle().iter().flat_map(|step| &step.effect.touches);
    !ghost.is_empty() && touches.flat_map(|touch| touch.bytes()).any(|at| trace::is_ghost(ghost, at))
}

impl Aside {
    /// Names of the registers that are set aside anywhere.
    pub(super) fn registers(&self) -> Vec<&'static str> {
        let is_aside = |index: &usize| self.at.iter().any(|unknown| unknown.registers[*index].is_some());
        (0..NAMES.len()).filter(is_aside).map(|index| NAMES[index]).collect()
    }

    /// Finds what can be set aside; else says what changes, and what it flows into. Ghost memory may hold anything, and so may
    /// foreign bytes: others change them.
    pub(super) fn of(
        trace: &mut Trace,
        system: &SystemRegisters,
        memory: &dyn Memory,
        ghost: &Ghost,
        foreign: &BTreeSet<u64>,
    ) -> Result<Self, String> {
        let Trace { steps, end, last, decode } = trace;
        let round = Round::of(steps, end, *last).ok_or_else(|| "its path does not repeat".to_owned())?;
        let names = round.names(ghost, foreign);
        let mut aside = round.changing_memory(ghost);
        aside.extend(foreign);
        let follow = Follow { decode, system, physical: memory, memory: aside, reads: BTreeSet::new(), round: &round };
        let why = |into: String| if names.is_empty() { into } else { format!("{names}, which {into}") };
        follow.until_stable().map_err(why)
    }
}

/// The last round of a trace, and the one before it.
struct Round<'t> {
    from: usize,
    before: &'t [Step],
    steps: &'t [Step],
    /// The registers behind it.
    last: Registers,
}

impl<'t> Round<'t> {
    /// The cycle of a trace that comes back, or the shortest round that its path has made three times at its end.
    fn of(steps: &'t [Step], end: &End, last: Registers) -> Option<Self> {
        if let End::Loops(from) = *end {
            return Some(Self { from, before: &steps[from..], steps: &steps[from..], last });
        }
        let count = steps.len();
        let rip = |back: usize| steps[count - back].registers.rip;
        let repeats = |length: usize| (1..=2 * length).all(|back| rip(back) == rip(back + length));
        let length = (1..=LONGEST.min(count / 3)).find(|length| repeats(*length))?;
        let from = count - length;
        Some(Self { from, before: &steps[from - length..from], steps: &steps[from..], last })
    }

    /// What differs between the beginnings of rounds.
    fn at_first(&self) -> Unknown {
        let mut unknown = Unknown::default();
        let (Some(before), Some(now)) = (self.before.first(), self.steps.first()) else { return unknown };
        for index in 0..unknown.registers.len() {
            let [a, b, c] = [&before.registers, &now.registers, &self.last].map(|r| register::general(r, index));
            unknown.registers[index] =
                (a != b || b != c).then(|| Bounds::exactly(a).hull(Bounds::exactly(b)).hull(Bounds::exactly(c)));
        }
        let flags = |registers: &Registers| Registers::from(&key(registers)).rflags;
        unknown.flags =
            (flags(&before.registers) ^ flags(&now.registers)) | (flags(&now.registers) ^ flags(&self.last));
        unknown
    }

    /// Bytes that differ between rounds, or belong to ghosts.
    fn changing_memory(&self, ghost: &Ghost) -> BTreeSet<u64> {
        let mut changing = BTreeSet::new();
        for (before, now) in self.before.iter().zip(self.steps) {
            let pairs = before.written().zip(now.written());
            changing.extend(pairs.filter(|(a, b)| a.0 == b.0 && a.2 != b.2).map(|(a, _)| a.0));
        }
        let touched = self.steps.iter().flat_map(|step| &step.effect.touches).flat_map(|touch| touch.bytes());
        changing.extend(touched.filter(|at| trace::is_ghost(ghost, *at)));
        changing
    }

    /// Names of what differs between rounds.
    fn names(&self, ghost: &Ghost, foreign: &BTreeSet<u64>) -> String {
        let unknown = self.at_first();
        let registers = (0..NAMES.len()).filter(|index| unknown.registers[*index].is_some()).map(|index| {
            let value = register::general(&self.last, index);
            format!("{} (now {value:#x})", NAMES[index])
        });
        let own = self.changing_memory(&[]);
        let ghosts = self.changing_memory(ghost).into_iter().filter(|at| trace::is_ghost(ghost, *at)).collect();
        let foreign = foreign.iter().copied().filter(|at| !own.contains(at)).collect();
        let kinds = [("", own), ("ghost memory, ", ghosts), ("what another one changes, ", foreign)];
        let words = kinds.iter().flat_map(|(kind, bytes)| {
            let spans = super::spans(bytes);
            spans.into_iter().map(move |span| format!("{kind}{} bytes at {}", span.size, span.address))
        });
        registers.chain(words).collect::<Vec<_>>().join(", ")
    }
}

/// Follows what is set aside through the instructions of a round.
struct Follow<'f> {
    decode: &'f mut Decode,
    system: &'f SystemRegisters,
    physical: &'f dyn Memory,
    memory: BTreeSet<u64>,
    reads: BTreeSet<u64>,
    round: &'f Round<'f>,
}

/// Where an instruction accesses memory, where addresses may be set aside.
struct Place {
    bytes: Vec<u64>,
    access: OpAccess,
    size: usize,
}

impl Place {
    fn is_read(&self) -> bool {
        !matches!(self.access, OpAccess::Write | OpAccess::CondWrite)
    }

    fn is_written(&self) -> bool {
        !matches!(self.access, OpAccess::Read | OpAccess::CondRead)
    }
}

impl Follow<'_> {
    /// Until a round sets nothing more aside.
    fn until_stable(mut self) -> Result<Aside, String> {
        let mut head = self.round.at_first();
        for round in 0..ROUNDS {
            let memory = self.memory.len();
            let (at, end) = self.once(head)?;
            let first = self.round.steps.first().map_or(self.round.last, |step| step.registers);
            let grown = head.join(&end, &self.round.last, &first, round >= WIDEN);
            if !grown && self.memory.len() == memory && !self.add_restless() {
                self.check(&at)?;
                return Ok(Aside { from: self.round.from, at, memory: self.memory, reads: self.reads });
            }
        }
        Err("flows into ever more".to_owned())
    }

    /// Once through all steps: what is set aside before each, and behind the last.
    fn once(&mut self, head: Unknown) -> Result<(Vec<Unknown>, Unknown), String> {
        let (mut now, mut at) = (head, Vec::with_capacity(self.round.steps.len()));
        for step in self.round.steps {
            at.push(now);
            now = self.behind(step, &now)?;
        }
        Ok((at, now))
    }

    /// Bytes that are known all through a round, and yet not what they were at its end: whether there were any.
    fn add_restless(&mut self) -> bool {
        let mut first = std::collections::BTreeMap::new();
        let mut last = std::collections::BTreeMap::new();
        for (at, before, after) in self.round.steps.iter().flat_map(Step::written) {
            first.entry(at).or_insert(before);
            last.insert(at, after);
        }
        let restless = first.iter().filter(|(at, before)| last[at] != **before).map(|(at, _)| *at);
        let count = self.memory.len();
        self.memory.extend(restless);
        self.memory.len() > count
    }

    /// What is not set aside was the same in both rounds, and nothing that is executed is set aside.
    fn check(&self, at: &[Unknown]) -> Result<(), String> {
        let rounds = self.round.before.iter().zip(self.round.steps).zip(at);
        for ((before, now), unknown) in rounds {
            let known = |index: &usize| unknown.registers[*index].is_none();
            let value = |step: &Step, index| register::general(&step.registers, index);
            if let Some(other) = (0..NAMES.len()).filter(known).find(|i| value(before, *i) != value(now, *i)) {
                return Err(format!("makes {} differ at {:#x}", NAMES[other], now.registers.rip));
            }
        }
        let is_code = |at: &u64| self.decode.fetched.iter().any(|page| (*page..page + super::PAGE).contains(at));
        let is_table = |at: &u64| self.decode.tables.iter().any(|entry| (*entry..entry + 8).contains(at));
        match self.memory.iter().find(|at| is_code(at) || is_table(at)) {
            Some(at) => Err(format!("flows into {at:#x}, beside code or page tables")),
            None => Ok(()),
        }
    }

    /// What is set aside behind an instruction.
    fn behind(&mut self, step: &Step, now: &Unknown) -> Result<Unknown, String> {
        let instruction = step.effect.instruction;
        let info = self.decode.info(&instruction).clone();
        let places =
            info.used_memory().iter().map(|used| self.place(step, used, now)).collect::<Result<Vec<_>, _>>()?;
        let places: Vec<_> = places.into_iter().flatten().collect();
        let from_memory = places.iter().any(|place| place.is_read() && self.holds_unknown(&place.bytes));
        let reads = |register: &&iced_x86::UsedRegister| {
            !matches!(register.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::None)
        };
        let is_unknown = |register: &iced_x86::UsedRegister| {
            register::index(register.register()).is_some_and(|index| now.registers[index].is_some())
        };
        let from_registers = info.used_registers().iter().filter(reads).any(is_unknown);
        let from_flags = now.flags & rflags(instruction.rflags_read()) != 0;
        let unknown = (from_memory || from_registers || from_flags) && !is_constant(&instruction, step, now);
        if unknown {
            refuse_decisions(&instruction)?;
        }
        let written = places.iter().filter(|place| place.is_written());
        let may_vary = |place: &&Place| unknown || place.bytes.len() > place.size;
        let bytes: Vec<_> = written.filter(may_vary).flat_map(|place| place.bytes.iter().copied()).collect();
        self.memory.extend(bytes);
        let loaded = places.iter().filter(|place| place.is_read()).map(|place| place.size).max();
        let mut behind = *now;
        for used in info.used_registers() {
            write_register(&mut behind, now, used, (unknown, loaded), step)?;
        }
        write_flags(&mut behind, &instruction, unknown);
        Ok(behind)
    }

    fn holds_unknown(&self, bytes: &[u64]) -> bool {
        bytes.iter().any(|at| self.memory.contains(at))
    }

    /// Where an operand lies: all places where it may.
    fn place(&mut self, step: &Step, used: &UsedMemory, now: &Unknown) -> Result<Option<Place>, String> {
        let size = used.memory_size().size();
        if matches!(used.access(), OpAccess::NoMemAccess | OpAccess::None) {
            return Ok(None);
        }
        // A bit string reaches as far as its index says.
        let bit = if effect::is_bit_string(&step.effect.instruction) {
            step.effect.instruction.op1_register()
        } else {
            Register::None
        };
        let registers = [used.base(), used.index(), bit];
        let is_unknown =
            |register: &Register| register::index(*register).is_some_and(|index| now.registers[index].is_some());
        if !registers.iter().any(is_unknown) {
            // As it was traced: all touches of the instruction, which errs on the side of more.
            let bytes: Vec<_> = step.effect.touches.iter().flat_map(|touch| touch.bytes()).collect();
            let size = bytes.len();
            return Ok(Some(Place { bytes, access: used.access(), size }));
        }
        let rip = step.registers.rip;
        let wide = || format!("flows into the address of an access at {rip:#x}");
        let is_plain =
            !effect::is_repeated(&step.effect.instruction) && !effect::is_bit_string(&step.effect.instruction);
        let bounds = self.address(step, used, now).filter(|_| is_plain);
        let bounds = bounds.filter(|bounds| bounds.most - bounds.least <= REACH).ok_or_else(wide)?;
        let mut bytes = Vec::new();
        for (linear, size) in effect::pieces(bounds.least, bounds.most - bounds.least + size as u64) {
            let physical = self.decode.physical(self.physical, self.system.cr3, linear).ok_or_else(wide)?;
            let there = |at: &u64| self.physical.read(*at, &mut [0]);
            if !there(&physical) || !there(&(physical + size - 1)) {
                return Err(wide());
            }
            bytes.extend(physical..physical + size);
        }
        self.reads.extend(&bytes);
        Ok(Some(Place { bytes, access: used.access(), size }))
    }

    fn address(&self, step: &Step, used: &UsedMemory, now: &Unknown) -> Option<Bounds> {
        let part = |register: Register| match register::index(register) {
            Some(index) => {
                now.registers[index].unwrap_or_else(|| Bounds::exactly(register::general(&step.registers, index)))
            }
            None => Bounds::exactly(0),
        };
        let segment = match used.segment() {
            Register::FS => self.system.fs.base,
            Register::GS => self.system.gs.base,
            _ => 0,
        };
        let is_wide = |register: Register| register == Register::None || register.is_gpr64();
        if !is_wide(used.base()) || !is_wide(used.index()) {
            return None;
        }
        let index = part(used.index()).scaled(used.scale().into())?;
        let sum = part(used.base()).add(index)?.add(Bounds::exactly(segment))?;
        sum.offset(used.displacement().cast_signed())
    }
}

/// Whether the result is the same whatever the operands are: `and` with 0, `xor` with itself.
fn is_constant(instruction: &Instruction, step: &Step, now: &Unknown) -> bool {
    let is_register = |n| instruction.op_kind(n) == OpKind::Register;
    let is_zero = |n| match instruction.op_kind(n) {
        OpKind::Register => register::index(instruction.op_register(n))
            .is_some_and(|index| now.registers[index].is_none() && register::general(&step.registers, index) == 0),
        OpKind::Memory => false,
        _ => instruction.try_immediate(n).is_ok_and(|value| value == 0),
    };
    match instruction.mnemonic() {
        Mnemonic::And | Mnemonic::Test => is_zero(0) || is_zero(1),
        Mnemonic::Xor | Mnemonic::Sub => {
            is_register(0) && is_register(1) && instruction.op0_register() == instruction.op1_register()
        }
        _ => false,
    }
}

/// What may be anything may decide nothing.
fn refuse_decisions(instruction: &Instruction) -> Result<(), String> {
    use iced_x86::FlowControl as F;
    let rip = instruction.ip();
    let decides = match instruction.flow_control() {
        F::ConditionalBranch => Some("branch"),
        F::IndirectBranch | F::IndirectCall | F::Return => Some("jump"),
        _ if matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) => Some("division"),
        _ if effect::is_repeated(instruction) => Some("repetition"),
        _ => None,
    };
    decides.map_or(Ok(()), |what| Err(format!("flows into the {what} at {rip:#x}")))
}

/// What an instruction leaves in a register that it writes.
fn write_register(
    behind: &mut Unknown,
    now: &Unknown,
    used: &iced_x86::UsedRegister,
    (unknown, loaded): (bool, Option<usize>),
    step: &Step,
) -> Result<(), String> {
    let Some(index) = register::index(used.register()) else { return Ok(()) };
    let keeps_some = match used.access() {
        OpAccess::Write | OpAccess::ReadWrite => !(used.register().is_gpr64() || used.register().is_gpr32()),
        OpAccess::CondWrite | OpAccess::ReadCondWrite => true,
        _ => return Ok(()),
    };
    let instruction = &step.effect.instruction;
    let is_operand = register::index(instruction.op0_register()) == Some(RSP);
    let moves_stack = index == RSP
        && !is_operand
        && matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop | Mnemonic::Call | Mnemonic::Ret);
    let unknown = match moves_stack {
        true => now.registers[RSP].is_some(),
        false => unknown || keeps_some && now.registers[index].is_some(),
    };
    if unknown && index == RSP {
        return Err(format!("flows into the stack pointer at {:#x}", step.registers.rip));
    }
    behind.registers[index] = unknown.then(|| {
        let widest = if used.register().is_gpr32() { Bounds::ANY_32 } else { Bounds::ANY };
        let kept = if keeps_some { None } else { result(step, now, loaded) };
        kept.filter(|bounds| bounds.most <= widest.most).unwrap_or(widest)
    });
    Ok(())
}

/// Bounds of the result of an instruction in its first operand, where they are easily told.
fn result(step: &Step, now: &Unknown, loaded: Option<usize>) -> Option<Bounds> {
    let instruction = &step.effect.instruction;
    let register = |n| {
        let index = register::index(instruction.op_register(n))?;
        let known = Bounds::exactly(register::general(&step.registers, index));
        // Of a part of a register nothing is told.
        instruction.op_register(n).is_gpr64().then(|| now.registers[index].unwrap_or(known))
    };
    let low = |n| {
        let bounds = register::index(instruction.op_register(n)).and_then(|index| now.registers[index])?;
        (bounds.most <= u64::from(u32::MAX)).then_some(bounds)
    };
    let operand = |n| match instruction.op_kind(n) {
        OpKind::Register => register(n).or_else(|| low(n)),
        OpKind::Memory => None,
        _ => instruction.try_immediate(n).ok().map(Bounds::exactly),
    };
    let immediate = |n| match instruction.op_kind(n) {
        OpKind::Register | OpKind::Memory => None,
        _ => instruction.try_immediate(n).ok(),
    };
    match instruction.mnemonic() {
        Mnemonic::And => {
            let narrower = [operand(0), operand(1)].into_iter().flatten().map(|bounds| bounds.most).min()?;
            Some(Bounds::up_to(narrower))
        }
        Mnemonic::Mov if instruction.op1_kind() == OpKind::Register => operand(1),
        Mnemonic::Mov | Mnemonic::Movzx => match instruction.op1_kind() {
            OpKind::Memory => loaded.map(Bounds::of_size),
            _ => Some(Bounds::of_size(instruction.op_register(1).size())),
        },
        Mnemonic::Add => operand(0)?.add(operand(1)?),
        Mnemonic::Inc => operand(0)?.offset(1),
        Mnemonic::Dec => operand(0)?.offset(-1),
        Mnemonic::Shl => operand(0)?.scaled(1 << (immediate(1)? & count_mask(instruction))),
        Mnemonic::Shr => {
            let (bounds, by) = (operand(0)?, immediate(1)? & count_mask(instruction));
            Some(Bounds { least: bounds.least >> by, most: bounds.most >> by })
        }
        _ => None,
    }
}

/// How much of the count of a shift counts (SDM 2B, SAL).
fn count_mask(instruction: &Instruction) -> u64 {
    if instruction.op0_register().is_gpr64() { 63 } else { 31 }
}

fn write_flags(behind: &mut Unknown, instruction: &Instruction, unknown: bool) {
    let fixed = rflags(instruction.rflags_cleared() | instruction.rflags_set());
    let modified = rflags(instruction.rflags_modified());
    if unknown {
        behind.flags = (behind.flags | modified) & !fixed;
    } else if !effect::keeps_flags(instruction) {
        // What is left undefined may be what it was.
        behind.flags &= !(modified & !rflags(instruction.rflags_undefined()));
    }
}

/// Flags as the decoder numbers them, as bits of RFLAGS.
pub(super) fn rflags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    const BITS: [(u32, u64); 8] = [
        (B::OF, 1 << 11),
        (B::SF, 1 << 7),
        (B::ZF, 1 << 6),
        (B::AF, 1 << 4),
        (B::CF, 1),
        (B::PF, 1 << 2),
        (B::DF, 1 << 10),
        (B::IF, 1 << 9),
    ];
    BITS.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |flags, (_, flag)| flags | flag)
}
