//! The knobs of a case: values that the host hands it. Names are for people, numbers for the boot block.

/// Slots for knob values in a boot block.
pub const KNOB_SLOTS: usize = 64;

/// A value that the host hands a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knob {
    /// Slot in the boot block.
    pub number: u32,
    /// Name, in kebab-case.
    pub name: &'static str,
    /// What it decides, a fragment.
    pub what: &'static str,
    /// Its values; the first is the default.
    pub values: Values,
}

/// The values of a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Words. The raw value is the word's [code](Word::code), with the parameter, if it takes one, from bit 8 on.
    Words(&'static [Word]),
    /// A number, written in decimal or with `0x`; the raw value is itself.
    Number {
        /// What it is when nothing is said.
        default: u64,
        /// The least it can be.
        min: u64,
        /// The most it can be.
        max: u64,
    },
    /// The number of a vCPU, or the word `last`. The host resolves it, so the raw value is always a number.
    Vcpu,
}

/// A word that a knob can be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Raw value in bits 7:0.
    pub code: u8,
    /// The word, in kebab-case.
    pub word: &'static str,
    /// The most that N can be where `:N` follows the word, from 1 on; 0 where nothing follows it.
    pub most: u64,
    /// What it means, a fragment.
    pub what: &'static str,
}

impl Word {
    /// Whether `:N` follows it.
    pub const fn takes_number(&self) -> bool {
        self.most != 0
    }
}

/// Why a text is no value of a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadValue {
    /// No such word.
    UnknownWord,
    /// The word needs `:N`.
    NumberMissing,
    /// The word takes no `:N`.
    NumberUnexpected,
    /// It is not a number, or not in range.
    NotInRange,
}

impl Knob {
    /// The knob of that name.
    pub fn named(name: &str) -> Option<&'static Knob> {
        ALL.iter().copied().find(|knob| knob.name == name)
    }

    /// The raw value of a text. `vcpus` resolves `last`.
    pub fn parse(&self, text: &str, vcpus: usize) -> Result<u64, BadValue> {
        match self.values {
            Values::Number { min, max, .. } => parse_number(text, min, max),
            Values::Vcpu if text == "last" => Ok(vcpus.saturating_sub(1) as u64),
            Values::Vcpu => parse_number(text, 0, vcpus.saturating_sub(1) as u64),
            Values::Words(words) => parse_word(text, words),
        }
    }

    /// The raw value when nothing is said.
    pub fn default_value(&self) -> u64 {
        match self.values {
            Values::Number { default, .. } => default,
            Values::Vcpu => 0,
            Values::Words(words) => words[0].code as u64,
        }
    }

    /// The word of a raw value, and its parameter.
    pub fn word(&self, raw: u64) -> Option<(&'static Word, u64)> {
        let Values::Words(words) = self.values else { return None };
        let word = words.iter().find(|word| word.code as u64 == raw & 0xff)?;
        Some((word, raw >> 8))
    }
}

fn parse_word(text: &str, words: &[Word]) -> Result<u64, BadValue> {
    let (name, number) = match text.split_once(':') {
        Some((name, number)) => (name, Some(number)),
        None => (text, None),
    };
    let word = words.iter().find(|word| word.word == name).ok_or(BadValue::UnknownWord)?;
    match (word.takes_number(), number) {
        (false, None) => Ok(word.code as u64),
        (false, Some(_)) => Err(BadValue::NumberUnexpected),
        (true, None) => Err(BadValue::NumberMissing),
        (true, Some(number)) => Ok(word.code as u64 | parse_number(number, 1, word.most)? << 8),
    }
}

fn parse_number(text: &str, min: u64, max: u64) -> Result<u64, BadValue> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.ok().filter(|n| (min..=max).contains(n)).ok_or(BadValue::NotInRange)
}

const fn word(code: u8, word: &'static str, what: &'static str) -> Word {
    Word { code, word, most: 0, what }
}

const fn word_n(code: u8, word: &'static str, most: u64, what: &'static str) -> Word {
    Word { code, word, most, what }
}

macro_rules! knobs {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $text:literal, $what:literal, $values:expr;)*) => {
        $($(#[$meta])* pub static $name: Knob = Knob { number: $number, name: $text, what: $what, values: $values };)*

        /// Every knob.
        pub static ALL: &[&Knob] = &[$(&$name),*];
    };
}

/// Codes of the words of [`CALL`].
pub mod call {
    /// Multi-target calls fall back to a record on the stack.
    pub const KMALLOC_2_6_28: u8 = 0;
    /// Multi-target calls fall back to one target after the other.
    pub const KMALLOC_2_6_29: u8 = 1;
    /// The proposed `CSD_FLAG_RELEASE`.
    pub const RELEASE: u8 = 2;
    /// Records per CPU with a lock, merged in 2009.
    pub const PERCPU_LOCK: u8 = 3;
    /// Asynchronous records unlocked before their callback, 2015.
    pub const PERCPU_UNLOCK_FIRST: u8 = 4;
    /// Lock-free inboxes and record types, today.
    pub const LLIST: u8 = 5;
    /// Records per CPU whose multi-target record has no lock of its own, 2.6.32 to 2.6.38.
    pub const PERCPU_LOCKLESS: u8 = 6;
}

/// Codes of the words of [`ARCH`].
pub mod arch {
    /// The generic sender and handler.
    pub const GENERIC: u8 = 0;
    /// An architecture with its own smp_call_function().
    pub const OWN_HELPER: u8 = 1;
    /// The generic sender and a handler that predates RELEASE.
    pub const GENERIC_OLD_HANDLER: u8 = 2;
}

/// Codes of the words of [`ALLOC`].
pub mod alloc {
    /// No allocation fails.
    pub const OK: u8 = 0;
    /// Every allocation fails.
    pub const FAIL: u8 = 1;
    /// Only the Nth fails.
    pub const NTH: u8 = 2;
    /// The Nth and all later fail.
    pub const FROM: u8 = 3;
    /// N records exist, and earlier calls hold them.
    pub const POOL: u8 = 4;
    /// Each fails with a chance of N in 100.
    pub const RANDOM: u8 = 5;
}

/// Codes of the words of [`ALLOC_SITE`].
pub mod alloc_site {
    /// At every site.
    pub const ANY: u8 = 0;
    /// At the record of a multi-target call.
    pub const CALL_MANY: u8 = 1;
    /// At the record of a single-target call.
    pub const CALL_SINGLE: u8 = 2;
}

/// Codes of the words of [`TARGET`].
pub mod target {
    /// All other vCPUs.
    pub const ALL: u8 = 0;
    /// The lowest other vCPU.
    pub const SINGLE: u8 = 1;
    /// All other vCPUs but the last of them.
    pub const MANY: u8 = 2;
    /// The caller itself.
    pub const SELF: u8 = 3;
    /// A vCPU that is marked offline.
    pub const OFFLINE: u8 = 4;
}

/// Codes of the words of [`APIC`].
pub mod apic {
    /// Registers as MSRs.
    pub const X2APIC: u8 = 0;
    /// Registers in memory.
    pub const XAPIC: u8 = 1;
}

/// Codes of the words of [`SPIN`].
pub mod spin {
    /// PAUSE.
    pub const PAUSE: u8 = 0;
    /// A port write.
    pub const YIELD: u8 = 1;
}

/// Codes of the words of [`REFS`].
pub mod refs {
    /// Under the lock, if there are any.
    pub const CHECKED: u8 = 0;
    /// Under the lock.
    pub const LOCKED: u8 = 1;
    /// Before the lock.
    pub const EARLY: u8 = 2;
}

/// Codes of the words of [`CALLEE`].
pub mod callee {
    /// It waits for its caller.
    pub const NEEDS_CALLER: u8 = 0;
    /// It ends by itself.
    pub const ENDS: u8 = 1;
}

/// Codes of the words of [`MTRR`].
pub mod mtrr {
    /// One variable range.
    pub const RANGE: u8 = 0;
    /// The whole state.
    pub const ALL: u8 = 1;
}

/// Codes of the words of [`SIPIS`].
pub mod sipis {
    /// Two, as the manual asks.
    pub const TWO: u8 = 0;
    /// One.
    pub const ONE: u8 = 1;
}

/// A code of [`FENCE`] beside [`answer`]: MFENCE, and no LFENCE.
pub const MFENCE_ALONE: u8 = 2;

/// Codes of words that say no or yes: [`FENCE`], [`WAIT`].
pub mod answer {
    /// No, off.
    pub const NO: u8 = 0;
    /// Yes, on.
    pub const YES: u8 = 1;
}

/// Codes of the words of [`FLIP`].
pub mod flip {
    /// Nothing is changed.
    pub const NONE: u8 = 0;
    /// The initiator of a rendezvous does not open the gate.
    pub const NO_GATE_STORE: u8 = 1;
    /// The handler of a call does not clear RELEASE.
    pub const NO_RELEASE_CLEAR: u8 = 2;
    /// The sender of a call does not send its interrupt.
    pub const NO_IPI: u8 = 3;
    /// The initiator publishes a wait at which it is not.
    pub const FALSE_WAIT: u8 = 4;
    /// One vCPU does not program what the others program.
    pub const NO_MTRR_WRITE: u8 = 5;
    /// Initiators of rendezvous do not queue up.
    pub const NO_MUTEX: u8 = 6;
}

/// Codes of the words of [`MTRR_SAVED`].
pub mod mtrr_saved {
    /// In static variables, under a lock from prepare to post.
    pub const LOCKED: u8 = 0;
    /// In the same variables, without the lock.
    pub const SHARED: u8 = 1;
    /// In variables of each processor, without a lock.
    pub const PER_CPU: u8 = 2;
}

/// Codes of the words of [`CRASH`].
pub mod crash {
    /// A panic.
    pub const PANIC: u8 = 0;
    /// An instruction that is none.
    pub const UNDEFINED_OPCODE: u8 = 1;
    /// A read of page 0.
    pub const NULL: u8 = 2;
    /// A recursion without an end.
    pub const STACK_OVERFLOW: u8 = 3;
    /// A read of another vCPU's private area.
    pub const FOREIGN_MEMORY: u8 = 4;
    /// A write to the boot block.
    pub const READ_ONLY: u8 = 5;
    /// A reserved memory type in an MTRR.
    pub const RESERVED_TYPE: u8 = 6;
    /// An exception without a gate.
    pub const TRIPLE_FAULT: u8 = 7;
}

/// Codes of the words of [`MTRR_SKIP`]: the steps are those of SDM 3A 12.11.8.
pub mod skip {
    /// Nothing is left out.
    pub const NONE: u8 = 0;
    /// Step 2, by the initiator: the others are in an interrupt handler.
    pub const INTERRUPTS_OFF: u8 = 2;
    /// Step 3, by the last target: it programs before it comes.
    pub const BARRIER: u8 = 3;
    /// Step 4, by the last target, as all further ones.
    pub const NO_FILL: u8 = 4;
    /// Step 5.
    pub const WBINVD: u8 = 5;
    /// Step 6.
    pub const PGE: u8 = 6;
    /// Step 7.
    pub const CR3: u8 = 7;
    /// Step 8.
    pub const DISABLE: u8 = 8;
    /// Step 11.
    pub const FLUSH: u8 = 11;
    /// Step 12.
    pub const CACHES_ON: u8 = 12;
    /// Step 13.
    pub const PGE_BACK: u8 = 13;
}

/// Codes of the words of [`GLOBAL_PAGES`].
pub mod global_pages {
    /// As the machine starts.
    pub const ON: u8 = 0;
    /// Switched off by each vCPU before it comes online.
    pub const OFF: u8 = 1;
}

/// Codes of the words of [`LAYOUT`]; the others number the layouts of the host.
pub mod layout {
    /// A layout that the host was handed.
    pub const OWN: u8 = 0;
}

/// Codes of the words of [`INVALID`].
pub mod invalid {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// A range whose base is no multiple of its size.
    pub const MISALIGNED: u8 = 1;
    /// A range whose size is no power of two.
    pub const SIZE: u8 = 2;
    /// Two ranges of types that must not overlap.
    pub const OVERLAP: u8 = 3;
}

/// Codes of the words of [`EVENTS`].
pub mod events {
    /// All.
    pub const ALL: u8 = 0;
    /// Those of calls and of waits for their records.
    pub const CALLS: u8 = 1;
}

/// Codes of [`LITMUS`].
pub mod litmus {
    /// Store buffering.
    pub const SB: u8 = 0;
    /// Message passing.
    pub const MP: u8 = 1;
    /// Load buffering.
    pub const LB: u8 = 2;
    /// S.
    pub const S: u8 = 3;
    /// R.
    pub const R: u8 = 4;
    /// 2+2W.
    pub const TWO_PLUS_TWO_W: u8 = 5;
    /// Independent reads of independent writes.
    pub const IRIW: u8 = 6;
    /// Store buffering with a load of its own word.
    pub const SB_FORWARD: u8 = 7;
}

/// Codes of [`FLAG`].
pub mod flag {
    /// Up in front of CLI.
    pub const LEFT_UP: u8 = 0;
    /// Written with interrupts off.
    pub const HELD: u8 = 1;
    /// Before the first access behind the start line.
    pub const FIRST: u8 = 2;
    /// Behind the access that the interrupt answers.
    pub const ANSWERED: u8 = 3;
    /// Behind a HLT, from which a first interrupt wakes, and a second of that vector comes.
    pub const AGAIN: u8 = 5;
    /// No flag: the interrupt's own store, which is looked at in front of STI and behind it.
    pub const STORED: u8 = 4;
}

/// Codes of [`FENCES`].
pub mod fences {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// MFENCE.
    pub const MFENCE: u8 = 1;
    /// A locked instruction.
    pub const LOCK: u8 = 2;
    /// Locked stores.
    pub const XCHG: u8 = 3;
    /// A locked instruction with memory that others see.
    pub const LOCK_SHARED: u8 = 4;
}

use Values::{Number, Vcpu, Words};

const NO_YES: Values = Words(&[word(answer::NO, "0", "no"), word(answer::YES, "1", "yes")]);

knobs! {
    /// The call layer.
    CALL = 0, "call", "the implementation of smp_call_function()", Words(&[
        word(call::KMALLOC_2_6_28, "kmalloc-2.6.28", "2.6.28: without memory, a record on the stack for all, wait=1"),
        word(call::KMALLOC_2_6_29, "kmalloc-2.6.29", "2.6.29-rc: without memory, one target after the other"),
        word(call::RELEASE, "release", "the proposed CSD_FLAG_RELEASE: without memory, wait for acceptance only"),
        word(call::PERCPU_LOCK, "percpu-lock", "2.6.30: one record a CPU with a lock, unlocked after the callback"),
        word(call::PERCPU_LOCKLESS, "percpu-lockless", "2.6.32: the multi-target record has no lock (knob refs)"),
        word(call::PERCPU_UNLOCK_FIRST, "percpu-unlock-first", "2015: asynchronous records unlocked before the callback"),
        word(call::LLIST, "llist", "today: lock-free inboxes, record types"),
    ]);
    /// The architecture's part of the call layer.
    ARCH = 1, "arch", "the architecture's part of the call layer", Words(&[
        word(arch::GENERIC, "generic", "the generic sender and handler"),
        word(arch::OWN_HELPER, "own-helper", "an smp_call_function() of its own, one global call record"),
        word(arch::GENERIC_OLD_HANDLER, "generic-old-handler", "the generic sender, a handler that predates RELEASE (differs with call=release alone)"),
    ]);
    /// Injected allocation failure.
    ALLOC = 2, "alloc", "which allocations of call records fail (injected by the guest)", Words(&[
        word(alloc::OK, "ok", "none"),
        word(alloc::FAIL, "fail", "all"),
        word_n(alloc::NTH, "nth", u32::MAX as u64, "only the Nth"),
        word_n(alloc::FROM, "from", u32::MAX as u64, "the Nth and all later"),
        word_n(alloc::POOL, "pool", 64, "those beyond N records that earlier calls still hold"),
        word_n(alloc::RANDOM, "random", 100, "each with a chance of N in 100, seeded"),
    ]);
    /// Where allocation failure is injected.
    ALLOC_SITE = 3, "alloc-site", "where allocations fail", Words(&[
        word(alloc_site::ANY, "any", "at every site"),
        word(alloc_site::CALL_MANY, "call-many", "at the record of a multi-target call"),
        word(alloc_site::CALL_SINGLE, "call-single", "at the record of a single-target call"),
    ]);
    /// The mode of the local APICs.
    APIC = 4, "apic", "the mode of the local APICs", Words(&[
        word(apic::X2APIC, "x2apic", "registers as MSRs"),
        word(apic::XAPIC, "xapic", "registers in memory"),
    ]);
    /// The fences before an x2APIC ICR write.
    FENCE = 5, "fence", "MFENCE and LFENCE before an x2APIC ICR write (SDM 3A 11.12.3)", Words(&[
        word(answer::YES, "on", "as the manual asks"),
        word(answer::NO, "off", "omitted"),
        word(MFENCE_ALONE, "mfence", "MFENCE alone, which the write may pass by the letter of the manual"),
    ]);
    /// How a spin spins.
    SPIN = 6, "spin", "what a turn of a spin does", Words(&[
        word(spin::PAUSE, "pause", "PAUSE"),
        word(spin::YIELD, "yield", "a port write that the host answers by running another vCPU"),
    ]);
    /// The vCPU that begins.
    INITIATOR = 7, "initiator", "the vCPU that begins", Vcpu;
    /// The wait argument of the call.
    WAIT = 8, "wait", "the wait argument of the call", NO_YES;
    /// The targets of the call.
    TARGET = 9, "target", "the targets of the call", Words(&[
        word(target::ALL, "all", "all other vCPUs, by smp_call_function()"),
        word(target::SINGLE, "single", "the lowest other vCPU, by smp_call_function_single()"),
        word(target::MANY, "many", "all others but the last of them, by smp_call_function_many()"),
        word(target::SELF, "self", "the caller itself, by smp_call_function_single()"),
        word(target::OFFLINE, "offline", "a vCPU that is not online, by smp_call_function_single()"),
    ]);
    /// Whether the callback needs the caller.
    CALLEE = 10, "callee", "what the callback does", Words(&[
        word(callee::NEEDS_CALLER, "needs-caller", "waits for a word that the caller writes after the call returns"),
        word(callee::ENDS, "ends", "ends by itself"),
    ]);
    /// One deviation from the protocol.
    FLIP = 11, "flip", "one deviation from the protocol (injected by the guest)", Words(&[
        word(flip::NONE, "none", "no deviation"),
        word(flip::NO_GATE_STORE, "no-gate-store", "the initiator does not open the gate"),
        word(flip::NO_RELEASE_CLEAR, "no-release-clear", "the handler does not clear RELEASE"),
        word(flip::NO_IPI, "no-ipi", "the sender does not send its interrupt"),
        word(flip::FALSE_WAIT, "false-wait", "the initiator publishes a wait at which it is not, for ever"),
        word(flip::NO_MTRR_WRITE, "no-mtrr-write", "the last vCPU leaves out its MTRR write"),
        word(flip::NO_MUTEX, "no-mutex", "initiators of rendezvous do not queue up for mtrr_mutex"),
    ]);
    /// What of the MTRRs is programmed.
    MTRR = 12, "mtrr", "what set_mtrr() programs", Words(&[
        word(mtrr::RANGE, "range", "one variable range"),
        word(mtrr::ALL, "all", "the initiator's whole state, replicated (reg == ~0)"),
    ]);
    /// The variable range.
    MTRR_REG = 13, "mtrr-reg", "the variable range that is programmed", Number { default: 1, min: 0, max: 7 };
    /// The base of the range.
    MTRR_BASE = 14, "mtrr-base", "its base", Number { default: 0xd000_0000, min: 0, max: (1 << 39) - 1 };
    /// The size of the range.
    MTRR_SIZE = 15, "mtrr-size", "its size in bytes; 0 clears the range", Number { default: 0x100_0000, min: 0, max: 1 << 39 };
    /// The type of the range.
    MTRR_TYPE = 16, "mtrr-type", "its memory type", Words(&[
        word(1, "wc", "write-combining"),
        word(0, "uc", "uncacheable"),
        word(4, "wt", "write-through"),
        word(5, "wp", "write-protected"),
        word(6, "wb", "write-back"),
    ]);
    /// How many calls in a row.
    CALLS = 17, "calls", "how many calls are made in a row", Number { default: 2, min: 1, max: 64 };
    /// The bound of the initiator's wait.
    BOUND = 18, "bound", "turns after which smp_call_function() gives up; 0 never", Number { default: 0, min: 0, max: 1 << 32 };
    /// What a vCPU does that it must not.
    CRASH = 19, "crash", "what a vCPU does that it must not", Words(&[
        word(crash::PANIC, "panic", "panics"),
        word(crash::UNDEFINED_OPCODE, "undefined-opcode", "executes UD2"),
        word(crash::NULL, "null", "reads page 0"),
        word(crash::STACK_OVERFLOW, "stack-overflow", "calls itself until its stack ends"),
        word(crash::FOREIGN_MEMORY, "foreign-memory", "reads another vCPU's private area"),
        word(crash::READ_ONLY, "read-only", "writes to the boot block"),
        word(crash::RESERVED_TYPE, "reserved-type", "writes a reserved memory type to an MTRR"),
        word(crash::TRIPLE_FAULT, "triple-fault", "takes an exception without a gate"),
    ]);
    /// Whether a pattern's historical fix is in.
    FIX = 20, "fix", "whether the fix of the pattern is in: the one step that it changed", Words(&[
        word(answer::NO, "absent", "as it was"),
        word(answer::YES, "present", "as it was fixed"),
    ]);
    /// The budget of sections with interrupts off.
    IRQ_OFF_BUDGET = 21, "irq-off-budget", "visible steps (events of all vCPUs) that interrupts may be off for in one section; 0: no limit", Number { default: 0, min: 0, max: 1 << 32 };
    /// Where the programming of the MTRRs keeps what it has to restore.
    MTRR_SAVED = 24, "mtrr-saved", "where CR4 and the default type are saved while the MTRRs are programmed", Words(&[
        word(mtrr_saved::LOCKED, "locked", "in static variables, under a lock until they are restored"),
        word(mtrr_saved::SHARED, "shared", "in static variables, without the lock"),
        word(mtrr_saved::PER_CPU, "per-cpu", "in variables of each vCPU, without a lock"),
    ]);
    /// What a WBINVD writes back.
    CACHE_LINES = 25, "cache-lines", "what a WBINVD stands for, in visible steps", Number { default: 0, min: 0, max: 400 };
    /// Whether the caches keep themselves current.
    SELF_SNOOP = 26, "self-snoop", "whether the caches keep themselves current, so that WBINVD can be left out", NO_YES;
    /// The references of a multi-target record.
    REFS = 32, "refs", "when the references of a multi-target record are stored (call=percpu-lockless)", Words(&[
        word(refs::CHECKED, "checked", "under the lock of the list, and not if there are none"),
        word(refs::LOCKED, "locked", "under the lock of the list"),
        word(refs::EARLY, "early", "before the lock of the list is taken"),
    ]);
    /// Whether a call that is not answered sends its interrupt again.
    CSD_DEBUG = 33, "csd-debug", "whether a synchronous call sends its interrupt again when it is not answered (call=llist)", Words(&[
        word(answer::NO, "off", "it waits, and nothing else"),
        word(answer::YES, "on", "it sends the interrupt again after a number of turns, as CONFIG_CSD_LOCK_WAIT_DEBUG does"),
    ]);
    /// How long the monarch of a machine check waits.
    MONARCH_TURNS = 40, "monarch-turns", "turns after which the monarch of a machine check gives up waiting for the others; 0 never", Number { default: 0, min: 0, max: 1 << 32 };
    /// How many start-up interrupts start a vCPU.
    SIPIS = 41, "sipis", "start-up interrupts to each vCPU at bring-up", Words(&[
        word(sipis::TWO, "two", "two behind an INIT, as the manual asks"),
        word(sipis::ONE, "one", "one behind an INIT"),
    ]);
    /// The step of the MTRR procedure that is left out.
    MTRR_SKIP = 48, "mtrr-skip", "the step of SDM 3A 12.11.8 that one vCPU leaves out (injected by the guest)", Words(&[
        word(skip::NONE, "none", "no step"),
        word(skip::INTERRUPTS_OFF, "irq-off", "2, the initiator: interrupts off"),
        word(skip::BARRIER, "barrier", "3, the last target: wait until all have come"),
        word(skip::NO_FILL, "cd", "4, the last target: CR0.CD=1"),
        word(skip::WBINVD, "wbinvd", "5, the last target: WBINVD"),
        word(skip::PGE, "pge", "6, the last target: CR4.PGE=0"),
        word(skip::CR3, "cr3", "7, the last target: reload CR3"),
        word(skip::DISABLE, "disable", "8, the last target: MTRRs off"),
        word(skip::FLUSH, "flush-after", "11, the last target: flush translations once the MTRRs are on"),
        word(skip::CACHES_ON, "cd-back", "12, the last target: CR0.CD=0"),
        word(skip::PGE_BACK, "pge-back", "13, the last target: CR4.PGE=1"),
    ]);
    /// Whether the guest uses global pages.
    GLOBAL_PAGES = 49, "global-pages", "CR4.PGE, from the start on", Words(&[
        word(global_pages::ON, "on", "on: to clear it flushes all translations"),
        word(global_pages::OFF, "off", "off: a reload of CR3 does"),
    ]);
    /// The layout that is programmed.
    LAYOUT = 50, "layout", "the memory layout that is programmed (docs/layouts.md)", Words(&[
        word(1, "surface-book-3", "Microsoft Surface Book 3, 2021"),
        word(2, "aptio-j1900", "a board with an Intel J1900, 2024"),
        word(3, "openssd-host", "a machine with 12 GiB and eight ranges in use"),
        word(4, "thinkpad-r50p", "IBM ThinkPad R50p, 2004"),
        word(5, "emachines-mvp3", "a Cyrix M II on a VIA MVP3, 2005"),
        word(6, "asus-trl-dls", "Asus TRL-DLS, 2003"),
        word(7, "x86-64-8g", "an x86-64 machine with 8 GiB, 2004"),
        word(8, "athlon64-x2", "an Athlon 64 X2 with 4 GiB"),
        word(layout::OWN, "own", "that of --layout FILE"),
    ]);
    /// What is programmed behind a layout that the manual forbids.
    INVALID = 51, "invalid", "what is programmed behind the layout that the manual forbids and KVM takes (injected by the guest)", Words(&[
        word(invalid::NONE, "none", "nothing"),
        word(invalid::MISALIGNED, "misaligned", "range 7 gets a base that is no multiple of its size"),
        word(invalid::SIZE, "size", "range 7 gets a size that is no power of two"),
        word(invalid::OVERLAP, "overlap", "ranges 6 and 7 overlap, write-combining and write-protected"),
    ]);
    /// How many vCPUs begin.
    INITIATORS = 52, "initiators", "how many vCPUs change MTRRs at once, vCPU 0 and those behind it", Number { default: 1, min: 1, max: 8 };
    /// How many rendezvous each of them begins.
    ROUNDS = 53, "rounds", "how many rendezvous each initiator begins in a row", Number { default: 100, min: 1, max: 100_000 };
    /// Which events are recorded.
    EVENTS = 54, "events", "which events are recorded, of a ring that holds the last 1024", Words(&[
        word(events::ALL, "all", "all"),
        word(events::CALLS, "calls", "calls and waits for their records: long programmes fit, and the kind of a stall is told less well"),
    ]);
    /// Which litmus test.
    LITMUS = 55, "test", "which litmus test (the names are those of herdtools7)", Words(&[
        word(litmus::SB, "sb", "store buffering: each stores to one word and loads the other's"),
        word(litmus::MP, "mp", "message passing: data and a flag"),
        word(litmus::LB, "lb", "load buffering: each loads one word and stores to the other's"),
        word(litmus::S, "s", "two stores against a load and a store to the first of them"),
        word(litmus::R, "r", "two stores against a store to the second of them and a load of the first"),
        word(litmus::TWO_PLUS_TWO_W, "2+2w", "each stores to both words, in another order"),
        word(litmus::IRIW, "iriw", "independent reads of independent writes, of four vCPUs"),
        word(litmus::SB_FORWARD, "sb-forward", "store buffering where each loads its own word first"),
    ]);
    /// What stands between the accesses of a litmus test.
    FENCES = 56, "fences", "what orders the accesses of a litmus test", Words(&[
        word(fences::NONE, "none", "nothing"),
        word(fences::MFENCE, "mfence", "MFENCE between any two"),
        word(fences::LOCK, "lock", "a locked instruction with private memory between any two"),
        word(fences::LOCK_SHARED, "lock-shared", "a locked instruction with shared memory between any two"),
        word(fences::XCHG, "xchg", "stores by XCHG"),
    ]);
    /// When a flag is up that an interrupt looks for.
    FLAG = 57, "flag", "when a vCPU has its flag up that an interrupt looks for", Words(&[
        word(flag::LEFT_UP, "left-up", "it goes up with interrupts on, right before they are turned off"),
        word(flag::HELD, "held", "it goes up and down with interrupts off, which are on in between"),
        word(flag::FIRST, "first", "right behind the start line with interrupts off, where an NMI finds it"),
        word(flag::ANSWERED, "answered", "right behind an access of its vCPU's that the interrupt waits for"),
        word(flag::AGAIN, "again", "behind a HLT, and two interrupts of one vector are sent"),
        word(flag::STORED, "stored", "there is none: an NMI counts itself, and its vCPU looks in front of STI and in the shadow of that"),
    ]);
}

const _: () = {
    let mut i = 0;
    while i < ALL.len() {
        let follows = i == 0 || ALL[i].number > ALL[i - 1].number;
        assert!(follows && (ALL[i].number as usize) < KNOB_SLOTS, "knobs are in the order of their numbers");
        i += 1;
    }
};

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words_parse_to_their_codes_and_parameters() {
        assert_eq!(ALLOC.parse("ok", 4), Ok(0));
        assert_eq!(ALLOC.parse("nth:3", 4), Ok(alloc::NTH as u64 | 3 << 8));
        assert_eq!(ALLOC.word(ALLOC.parse("nth:3", 4).unwrap()).map(|(w, n)| (w.word, n)), Some(("nth", 3)));
    }

    #[test]
    fn wrong_words_say_what_is_wrong() {
        assert_eq!(ALLOC.parse("never", 4), Err(BadValue::UnknownWord));
        assert_eq!(ALLOC.parse("nth", 4), Err(BadValue::NumberMissing));
        assert_eq!(ALLOC.parse("ok:1", 4), Err(BadValue::NumberUnexpected));
        assert_eq!(ALLOC.parse("nth:0", 4), Err(BadValue::NotInRange));
        assert_eq!(ALLOC.parse("random:101", 4), Err(BadValue::NotInRange));
        assert_eq!(MTRR_REG.parse("8", 4), Err(BadValue::NotInRange));
    }

    #[test]
    fn vcpus_resolve_last_and_refuse_those_that_are_not_there() {
        assert_eq!(INITIATOR.parse("last", 4), Ok(3));
        assert_eq!(INITIATOR.parse("3", 4), Ok(3));
        assert_eq!(INITIATOR.parse("4", 4), Err(BadValue::NotInRange));
    }
}
