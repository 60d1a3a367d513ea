//! The trace of one vCPU: single steps until it is where it was before, with nothing changed.

use std::collections::{BTreeMap, HashMap};

use stallbench_state::certificate::Word;
use stallbench_state::machine::{Registers, SystemRegisters};

use iced_x86::Mnemonic;

use super::effect::{self, Decode, Effect, Refusal, Touch};
use super::{Ghost, Steps, Unproved};

/// Flags that stepping itself uses: TF and RF (SDM 3B 18.3.1).
const OF_STEPS: u64 = 1 << 8 | 1 << 16;
/// How often a step that changes nothing is made again: a jump to itself, or steps at the first touch of a page (up to four were seen
/// of an emulated kvm_intel).
const AGAIN: usize = 8;

/// General registers as they are compared.
pub(super) type Key = [Word; 18];

/// General registers, without what stepping shows in them.
pub(super) fn key(registers: &Registers) -> Key {
    Key::from(&Registers { rflags: registers.rflags & !OF_STEPS, ..*registers })
}

/// One instruction of a trace.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The registers before it.
    pub(super) registers: Registers,
    pub(super) effect: Effect,
    /// What the memory that it writes holds behind it, a buffer for each touch that writes.
    pub(super) after: Vec<Vec<u8>>,
}

impl Step {
    /// The bytes that it wrote: address, before, after.
    pub(super) fn written(&self) -> impl Iterator<Item = (u64, u8, u8)> + '_ {
        self.effect.touches.iter().zip(&self.after).filter(|(touch, _)| touch.writes).flat_map(|(touch, after)| {
            touch.bytes().zip(touch.before.iter().zip(after)).map(|(at, (before, after))| (at, *before, *after))
        })
    }
}

/// How a trace ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is where it was before this step, and memory is what it was.
    Loops(usize),
    /// It was at its limit.
    Changes,
}

/// Single steps of one vCPU.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
    /// The registers behind the last step.
    pub(super) last: Registers,
    pub(super) decode: Decode,
}

/// Whether a byte belongs to what the guest declared ghost.
pub(super) fn is_ghost(ghost: &Ghost, address: u64) -> bool {
    ghost.iter().any(|span| (span.address.0..span.address.0.saturating_add(span.size)).contains(&address))
}

impl Trace {
    /// Traces a vCPU for `limit` steps at most.
    pub(super) fn of(
        vcpu: &mut dyn Steps,
        system: &SystemRegisters,
        ghost: &Ghost,
        limit: usize,
    ) -> Result<Self, Unproved> {
        if vcpu.has_breakpoints() {
            return Err(cannot_step(vcpu, "it has breakpoints of its own".to_owned()));
        }
        let mut registers = vcpu.registers().map_err(|why| cannot_step(vcpu, why))?;
        let mut trace = Self { steps: Vec::new(), end: End::Changes, last: registers, decode: Decode::new() };
        let mut seen: HashMap<(Key, u64), usize> = HashMap::new();
        let mut memory = 0;
        while trace.steps.len() < limit {
            // A digest says which step to look at, and decides nothing.
            let before = seen.insert((key(&registers), memory), trace.steps.len());
            if let Some(from) = before.filter(|from| trace.is_restored(*from, ghost)) {
                trace.end = End::Loops(from);
                break;
            }
            let effect = trace.decode.at(&registers, system, vcpu.memory());
            let effect = effect.map_err(|refusal| refused(vcpu.vcpu(), &registers, refusal))?;
            if effect.instruction.mnemonic() == Mnemonic::Hlt {
                return Err(Unproved::Halting { vcpu: vcpu.vcpu() });
            }
            let (step, after) = execute(vcpu, registers, effect)?;
            registers = after;
            memory ^= step.written().fold(0, |sum, (at, before, after)| match is_ghost(ghost, at) {
                true => sum,
                false => sum ^ digest(at, before) ^ digest(at, after),
            });
            trace.steps.push(step);
        }
        trace.last = registers;
        Ok(trace)
    }

    /// Whether memory holds now what it held before step `from`, but for ghosts.
    fn is_restored(&self, from: usize, ghost: &Ghost) -> bool {
        let mut first = BTreeMap::new();
        let mut last = BTreeMap::new();
        for (at, before, after) in self.steps[from..].iter().flat_map(Step::written) {
            first.entry(at).or_insert(before);
            last.insert(at, after);
        }
        first.iter().all(|(at, before)| last[at] == *before || is_ghost(ghost, *at))
    }

    /// The steps that it repeats for ever.
    pub(super) fn cycle(&self) -> &[Step] {
        match self.end {
            End::Loops(from) => &self.steps[from..],
            End::Changes => &[],
        }
    }
}

/// A number for a byte of memory; the digest of memory is the sum of those of its bytes.
fn digest(address: u64, byte: u8) -> u64 {
    // The finalizer of splitmix64.
    let mixed = (address << 8 | u64::from(byte)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Executes the instruction whose effect is known, all turns of it.
pub(super) fn execute(vcpu: &mut dyn Steps, before: Registers, effect: Effect) -> Result<(Step, Registers), Unproved> {
    let repeated = effect::is_repeated(&effect.instruction);
    let (mut registers, mut idle) = (before, 0);
    loop {
        let after = vcpu.step().map_err(|why| cannot_step(vcpu, why))?;
        let moved = after.rip != registers.rip;
        let changed = key(&after) != key(&registers);
        registers = after;
        // A turn of a `rep`, or a step that executed nothing.
        if moved || (changed && !repeated) {
            break;
        }
        idle = if changed { 0 } else { idle + 1 };
        if idle == AGAIN {
            break;
        }
    }
    if !effect::leads_to(&effect.instruction, &before, &registers) {
        return Err(Unproved::Exception { vcpu: vcpu.vcpu(), rip: before.rip });
    }
    let after = |touch: &Touch| {
        let mut bytes = touch.before.clone();
        let _ = !touch.writes || vcpu.memory().read(touch.address, &mut bytes);
        bytes
    };
    let after = effect.touches.iter().map(after).collect();
    Ok((Step { registers: before, effect, after }, registers))
}

pub(super) fn cannot_step(vcpu: &dyn Steps, why: String) -> Unproved {
    Unproved::NoSteps { vcpu: vcpu.vcpu(), why }
}

pub(super) fn refused(vcpu: usize, registers: &Registers, refusal: Refusal) -> Unproved {
    let rip = registers.rip;
    match refusal {
        Refusal::Instruction(name) => Unproved::Instruction { vcpu, rip, name },
        Refusal::Device(address) => Unproved::Device { vcpu, rip, address },
        Refusal::Unreadable => Unproved::Exception { vcpu, rip },
    }
}
