//! The breakpoints of a processor, as KVM is asked for them (KVM api.rst 4.87, SDM 3B 18.2).

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
};

use crate::watch::Word;

/// Breakpoints that a processor has: DR0 to DR3.
pub(crate) const MOST: usize = 4;
/// How a vCPU is debugged that has breakpoints.
pub(crate) const BREAK: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
/// One instruction.
pub(crate) const STEP: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
/// One instruction, and no interrupt comes in between, whatever the guest's IF says.
pub(crate) const STEP_ALONE: u32 = STEP | KVM_GUESTDBG_BLOCKIRQ;

/// DR7: the bit that is always 1 (SDM 3B 18.2.4).
const ALWAYS: u64 = 1 << 10;
/// DR7: what a breakpoint is for, in the two lower of the four bits that each has from bit 16 on.
const WRITES: u64 = 0b01;
const WRITES_AND_READS: u64 = 0b11;

/// What a breakpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakpoint {
    /// Before the instruction at this linear address.
    Execute(u64),
    /// Behind an instruction that writes there.
    Write(Word),
    /// Behind an instruction that writes or reads there.
    Access(Word),
}

impl Breakpoint {
    /// Its address, and how DR7 has what it is for and its length.
    fn fields(&self) -> (u64, u64) {
        let of = |word, kind| {
            let (address, length) = covering(word);
            (address, kind | length << 2)
        };
        match self {
            Self::Execute(linear) => (*linear, 0),
            Self::Write(word) => of(word, WRITES),
            Self::Access(word) => of(word, WRITES_AND_READS),
        }
    }
}

/// How a vCPU is debugged that has these breakpoints, no more than [`MOST`], in DR0 and on.
pub(crate) fn debug(breakpoints: impl IntoIterator<Item = Breakpoint>) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug { control: BREAK, ..Default::default() };
    debug.arch.debugreg[7] = ALWAYS;
    for (index, breakpoint) in breakpoints.into_iter().take(MOST).enumerate() {
        let (address, fields) = breakpoint.fields();
        debug.arch.debugreg[index] = address;
        debug.arch.debugreg[7] |= 0b10 << (2 * index) | fields << (16 + 4 * index);
    }
    debug
}

/// The address of a breakpoint that covers a word, and how DR7 has its length: 1, 2, 8 or 4 bytes, aligned.
fn covering(word: &Word) -> (u64, u64) {
    let aligned = |size: u64| word.linear.is_multiple_of(size);
    match word.size {
        1 => (word.linear, 0b00),
        2 if aligned(2) => (word.linear, 0b01),
        4 if aligned(4) => (word.linear, 0b11),
        _ => (word.linear & !7, 0b10),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn word(linear: u64, size: usize) -> Word {
        Word { linear, physical: linear, size }
    }

    #[test]
    fn instructions_are_breakpoints_of_executions() {
        let debug = debug([0x1000, 0x3000].map(Breakpoint::Execute));
        assert_eq!((debug.control, debug.arch.debugreg), (BREAK, [0x1000, 0x3000, 0, 0, 0, 0, 0, 0x40a | ALWAYS]));
    }

    #[test]
    fn words_are_breakpoints_of_writes() {
        let words = [word(0x9001, 1), word(0x9002, 2), word(0x9004, 4), word(0x9008, 8), word(0x9010, 8)];
        let debug = debug(words.map(Breakpoint::Write));
        assert_eq!(debug.arch.debugreg, [0x9001, 0x9002, 0x9004, 0x9008, 0, 0, 0, 0x9d51_04aa]);
    }

    #[test]
    fn all_kinds_go_together() {
        let word = word(0x9004, 4);
        let debug = debug([Breakpoint::Execute(0x1000), Breakpoint::Access(word), Breakpoint::Write(word)]);
        assert_eq!(debug.arch.debugreg, [0x1000, 0x9004, 0x9004, 0, 0, 0, 0, 0x0df0_042a]);
    }

    #[test]
    fn word_that_is_not_aligned_is_covered() {
        assert_eq!(covering(&word(0x9003, 4)), (0x9000, 0b10));
        assert_eq!(covering(&word(0x9001, 2)), (0x9000, 0b10));
    }
}
