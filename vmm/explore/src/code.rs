//! What the instructions are at which vCPUs stop.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits,
};
use rustc_hash::FxHashMap;
use stallbench_abi::image::SiteKind;
use stallbench_core::controlled::ProcessorState;
use stallbench_stall::register;
use stallbench_state::machine::Registers;
use stallbench_state::memory::Memory;
use stallbench_state::program::Program;

/// The longest instruction (SDM 2A 2.3.11).
const LONGEST: usize = 15;
/// The status flags, as the decoder has them and as RFLAGS does.
const STATUS_BITS: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;
/// The status flags in RFLAGS: CF, PF, AF, ZF, SF, OF (SDM 3A 2.3).
pub(crate) const STATUS_FLAGS: u64 = 0x8d5;
/// RFLAGS.TF.
pub(crate) const TF: u64 = 1 << 8;
/// Instructions that are looked at for who reads a flag.
const MOST_LOOKED_AT: usize = 32;
/// The longest function that is looked through, in bytes.
const LONGEST_FUNCTION: u64 = 1 << 16;

/// The code of a guest, which does not change.
#[derive(Debug)]
pub(crate) struct Code<'p> {
    program: &'p Program,
    /// Where the instruction begins that ends at an address.
    begins: RefCell<HashMap<u64, Option<u64>>>,
    /// The flags that are read from an address on.
    live: RefCell<HashMap<u64, u64>>,
    /// The instructions of the image that were executed.
    known: RefCell<FxHashMap<u64, Instruction>>,
    /// Where an instruction without effect lies.
    pause: OnceCell<Option<u64>>,
}

impl<'p> Code<'p> {
    pub(crate) fn of(program: &'p Program) -> Self {
        Self {
            program,
            begins: RefCell::default(),
            live: RefCell::default(),
            known: RefCell::default(),
            pause: OnceCell::new(),
        }
    }

    /// Whether the read at this instruction and the write behind it are one: a locked instruction, or an exchange with memory (SDM 3A
    /// 9.1.2.2).
    pub(crate) fn is_locked(&self, memory: &dyn Memory, rip: u64) -> bool {
        instruction(memory, rip).is_some_and(|it| {
            let exchanges =
                it.mnemonic() == Mnemonic::Xchg && (0..it.op_count()).any(|op| it.op_kind(op) == OpKind::Memory);
            it.has_lock_prefix() || exchanges
        })
    }

    /// The instruction at an address; what the image holds does not change.
    pub(crate) fn at(&self, memory: &dyn Memory, rip: u64) -> Option<Instruction> {
        if let Some(known) = self.known.borrow().get(&rip) {
            return Some(*known);
        }
        let it = instruction(memory, rip)?;
        let mut text = self.program.segments().iter().filter(|segment| segment.executable);
        if text.any(|segment| (segment.address..segment.end()).contains(&rip)) {
            self.known.borrow_mut().insert(rip, it);
        }
        Some(it)
    }

    /// Whether an instruction is STI.
    pub(crate) fn is_sti(&self, memory: &dyn Memory, rip: u64) -> bool {
        instruction(memory, rip).is_some_and(|it| it.mnemonic() == Mnemonic::Sti)
    }

    /// The state behind an instruction that some KVM steps over together with the next one (docs/hosts.md): IRETQ, by the frame that it pops
    /// (SDM 2A, IRET), or a fence. `None` of any other.
    pub(crate) fn behind(&self, memory: &dyn Memory, state: &ProcessorState) -> Option<ProcessorState> {
        let it = self.at(memory, state.general.rip)?;
        match it.mnemonic() {
            Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => {
                let general = Registers { rip: it.next_ip(), ..state.general };
                Some(ProcessorState { general, shadow: false, ..*state })
            }
            Mnemonic::Iretq => {
                let word = |at: u64| memory.read_u64(state.general.rsp.wrapping_add(8 * at));
                let (rip, rflags, rsp) = (word(0)?, word(2)? & !TF, word(3)?);
                let general = Registers { rip, rflags, rsp, ..state.general };
                Some(ProcessorState { general, shadow: false, nmi_masked: false, ..*state })
            }
            _ => None,
        }
    }

    /// The status flags that the instructions from an address on may read before they write them. Others differ from one processor
    /// to the next where the manual leaves them undefined, and decide nothing.
    pub(crate) fn live_flags(&self, memory: &dyn Memory, rip: u64) -> u64 {
        *self.live.borrow_mut().entry(rip).or_insert_with(|| live_flags(memory, rip))
    }

    /// Where the plain store begins that a vCPU has just executed: with the registers as they are, at that address, an interrupt would
    /// have found it. `None` where it is anything but a `mov` of these bytes.
    pub(crate) fn before_store(&self, memory: &dyn Memory, after: &Registers, address: u64, size: u8) -> Option<u64> {
        let store = instruction(memory, self.begins(memory, after.rip)?)?;
        let is_move =
            store.mnemonic() == Mnemonic::Mov && store.op0_kind() == OpKind::Memory && !store.has_rep_prefix();
        let there = store.virtual_address(0, 0, |register, _, _| value(after, register));
        let is_it = is_move && there == Some(address) && store.memory_size().size() == usize::from(size);
        // In the shadow of an STI no interrupt comes.
        (is_it && !self.follows_sti(memory, store.ip())).then(|| store.ip())
    }

    /// Where a PAUSE lies, an instruction without effect.
    pub(crate) fn pause(&self, memory: &dyn Memory) -> Option<u64> {
        *self.pause.get_or_init(|| {
            let text = self.program.segments().iter().filter(|segment| segment.executable);
            let mut all = text.flat_map(|segment| steps(memory, segment.address, segment.end()));
            all.find(|it| it.mnemonic() == Mnemonic::Pause).map(|it| it.ip())
        })
    }

    /// Whether the instruction in front of that one is STI.
    pub(crate) fn follows_sti(&self, memory: &dyn Memory, rip: u64) -> bool {
        self.begins(memory, rip).is_some_and(|before| self.is_sti(memory, before))
    }

    /// Whether an instruction is HLT.
    pub(crate) fn is_hlt(&self, memory: &dyn Memory, rip: u64) -> bool {
        instruction(memory, rip).is_some_and(|it| it.mnemonic() == Mnemonic::Hlt)
    }

    /// Whether a read of that size is all that its instruction reads there. KVM tells an access that crosses a page in two.
    pub(crate) fn reads_whole(&self, memory: &dyn Memory, at: &Registers, address: u64, size: u8) -> bool {
        instruction(memory, at.rip).is_none_or(|it| is_whole(&it, at, address, size))
    }

    /// The same of a write, behind its instruction.
    pub(crate) fn writes_whole(&self, memory: &dyn Memory, after: &Registers, address: u64, size: u8) -> bool {
        let it = self.begins(memory, after.rip).and_then(|begin| instruction(memory, begin));
        it.is_none_or(|it| is_whole(&it, after, address, size))
    }

    /// An instruction that cannot be explored: where, which, and why not. `holds_back`: where stores are held back in their order.
    pub(crate) fn unexplored(&self, memory: &dyn Memory, holds_back: bool) -> Option<(u64, Mnemonic, &'static str)> {
        let text = self.program.segments().iter().filter(|segment| segment.executable);
        let mut steps = text.flat_map(|segment| steps(memory, segment.address, segment.end()));
        steps.find_map(|it| Some((it.ip(), it.mnemonic(), unexplored(&it, holds_back)?)))
    }

    fn begins(&self, memory: &dyn Memory, end: u64) -> Option<u64> {
        *self.begins.borrow_mut().entry(end).or_insert_with(|| self.begin(memory, end))
    }

    /// Where the instruction begins that ends at an address: the function is read from its start.
    fn begin(&self, memory: &dyn Memory, end: u64) -> Option<u64> {
        let (_, offset) = self.program.symbol(end.checked_sub(1)?)?;
        if offset > LONGEST_FUNCTION {
            return None;
        }
        let mut at = end - 1 - offset;
        loop {
            let next = instruction(memory, at)?.next_ip();
            match next {
                next if next == end => return Some(at),
                next if next > end => return None,
                next => at = next,
            }
        }
    }

    /// What kind of wait is published by this descriptor.
    pub(crate) fn site_kind(&self, descriptor: u64) -> Option<SiteKind> {
        self.program.site_at(descriptor).map(|site| site.kind)
    }

    /// An address for people: `function+0x12`.
    pub(crate) fn place(&self, address: u64) -> String {
        stallbench_stall::code::place(self.program, address)
    }

    /// The address of what [`place`](Self::place) writes.
    pub(crate) fn address(&self, place: &str) -> Option<u64> {
        let (function, offset) = place.rsplit_once("+0x")?;
        let symbols = self.program.symbols();
        let begin = symbols.iter().find(|symbol| symbol.name == function)?.address;
        begin.checked_add(u64::from_str_radix(offset, 16).ok()?)
    }
}

/// Straight on from an address: to where all are written, to a call or a return, over which the ABI keeps none, or to any other jump,
/// behind which those that were not written may be read.
fn live_flags(memory: &dyn Memory, rip: u64) -> u64 {
    let (mut live, mut dead, mut at) = (0, 0, rip);
    for _ in 0..MOST_LOOKED_AT {
        let Some(it) = instruction(memory, at) else { break };
        live |= it.rflags_read() & !dead;
        dead |= it.rflags_modified();
        match it.flow_control() {
            _ if dead & STATUS_BITS == STATUS_BITS => return in_rflags(live),
            FlowControl::Next => at = it.next_ip(),
            FlowControl::Call | FlowControl::Return => return in_rflags(live),
            FlowControl::UnconditionalBranch => at = it.near_branch_target(),
            _ => break,
        }
    }
    in_rflags(live | STATUS_BITS & !dead)
}

/// Bits of the decoder, where RFLAGS has them (SDM 3A 2.3).
fn in_rflags(bits: u32) -> u64 {
    let at = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ];
    at.into_iter().filter(|(bit, _)| bits & bit != 0).fold(0, |flags, (_, at)| flags | 1 << at)
}

/// Of an instruction whose operand lies elsewhere nothing can be said: one that repeats stands at itself.
fn is_whole(it: &Instruction, registers: &Registers, address: u64, size: u8) -> bool {
    let operand = (0..it.op_count()).find(|operand| it.op_kind(*operand) == OpKind::Memory);
    let there = operand.and_then(|operand| it.virtual_address(operand, 0, |register, _, _| value(registers, register)));
    there != Some(address) || it.memory_size().size() <= usize::from(size)
}

/// Why an instruction cannot be explored.
fn unexplored(it: &Instruction, holds_back: bool) -> Option<&'static str> {
    use Mnemonic::{Movnti, Rdpmc, Rdrand, Rdseed, Rdtsc, Rdtscp, Swapgs};
    match it.mnemonic() {
        Rdtsc | Rdtscp | Rdrand | Rdseed | Rdpmc => Some("which gives something else each time"),
        // Not in the order of other stores (SDM 3A 9.2.2).
        Movnti if holds_back => Some("which stores past what is held back"),
        Swapgs => Some("which uses registers that are part of no state"),
        _ if uses_other_registers(it) => Some("which uses registers that are part of no state"),
        _ => None,
    }
}

/// Whether it uses debug registers, or those of the FPU and of vectors: hosts keep them, and nobody looks at them here.
fn uses_other_registers(it: &Instruction) -> bool {
    let is_other = |register: Register| {
        register.is_dr() || register.is_st() || register.is_mm() || register.is_vector_register() || register.is_k()
    };
    let of_fpu =
        |feature: &CpuidFeature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387);
    (0..it.op_count()).any(|operand| is_other(it.op_register(operand))) || it.cpuid_features().iter().any(of_fpu)
}

/// All instructions from an address to another; bytes that are none are passed by one by one.
fn steps(memory: &dyn Memory, from: u64, to: u64) -> impl Iterator<Item = Instruction> {
    let mut bytes = vec![0; (to - from) as usize];
    let read = memory.read(from, &mut bytes);
    debug_assert!(read, "segments of the image are memory");
    let mut decoder_at = 0;
    std::iter::from_fn(move || {
        let mut decoder =
            Decoder::with_ip(64, bytes.get(decoder_at..)?, from + decoder_at as u64, DecoderOptions::NONE);
        let it = decoder.can_decode().then(|| decoder.decode())?;
        decoder_at += it.len().max(1);
        Some(it)
    })
}

/// The instruction at an address.
pub(crate) fn instruction(memory: &dyn Memory, rip: u64) -> Option<Instruction> {
    let mut bytes = [0; LONGEST];
    let read = (1..=LONGEST).rev().find(|count| memory.read(rip, &mut bytes[..*count]))?;
    let decoded = Decoder::with_ip(64, &bytes[..read], rip, DecoderOptions::NONE).decode();
    (!decoded.is_invalid()).then_some(decoded)
}

/// A register that addresses are made of; no guest of the contract has a segment with a base.
pub(crate) fn value(registers: &Registers, register: Register) -> Option<u64> {
    let is_flat = register.is_segment_register();
    if is_flat { Some(0) } else { register::value(registers, register) }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn instruction_that_uses_what_is_part_of_no_state_is_not_explored() {
        let of = |code: &[u8], holds_back| {
            unexplored(&Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode(), holds_back).is_some()
        };
        // mov dr7, rax; mov rax, dr6; fld1; fnstcw [rax]; movd mm0, eax; movaps xmm0, xmm1; swapgs; rdtsc
        for code in [
            &[0x0f, 0x23, 0xf8][..],
            &[0x0f, 0x21, 0xf0],
            &[0xd9, 0xe8],
            &[0xd9, 0x38],
            &[0x0f, 0x6e, 0xc0],
            &[0x0f, 0x28, 0xc1],
            &[0x0f, 0x01, 0xf8],
            &[0x0f, 0x31],
        ] {
            assert!(of(code, false), "{code:x?}");
        }
        // mov cr0, rax; mfence; pause; mov rax, [rbx]; rep stosb
        for code in [&[0x0f, 0x22, 0xc0][..], &[0x0f, 0xae, 0xf0], &[0xf3, 0x90], &[0x48, 0x8b, 0x03], &[0xf3, 0xaa]] {
            assert!(!of(code, true), "{code:x?}");
        }
        // movnti [rbx], eax
        assert_eq!([true, false].map(|holds_back| of(&[0x0f, 0xc3, 0x03], holds_back)), [true, false]);
    }
}
