//! What the processor manual forbids about each register (SDM 3A 12.11.2, 12.11.4, 12.12.2).
//!
//! KVM refuses reserved bits and types. It takes masks with holes and bases that are no multiple of their size: only this finds
//! them.

use std::fmt;

use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;

use super::{ADDRESS, ENABLED, FIXED_ENABLED, MemoryType, MtrrState, Register, VALID, size_of_mask};

/// Address bits that the processor does not have.
const ABOVE: u64 = !((1 << MAX_PHYS_ADDR_BITS) - 1);

/// A value that the processor manual forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The register.
    pub register: Register,
    /// Its value.
    pub value: u64,
    /// What is wrong with it.
    pub why: Reason,
}

/// Why a value is forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A memory type that does not exist.
    ReservedType,
    /// A bit that must be zero, whatever the width of addresses.
    ReservedBits,
    /// An address bit from MAXPHYADDR on.
    AboveMaxPhysAddr,
    /// A mask whose ones are not contiguous up to the highest address bit: its size is no power of two.
    MaskNotContiguous,
    /// A base that is no multiple of the size.
    BaseNotAligned,
}

impl MtrrState {
    /// What the processor manual forbids about these values, in the order of the registers.
    pub fn invalid(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        for (register, value) in self.registers() {
            let mut add = |wrong: bool, why| {
                if wrong {
                    found.push(Invalid { register, value, why });
                }
            };
            match register {
                Register::DefaultType => {
                    add(value & !(ENABLED | FIXED_ENABLED | 0xff) != 0, Reason::ReservedBits);
                    add(!is_type(value as u8), Reason::ReservedType);
                }
                Register::Base(i) => {
                    add(value & 0xf00 != 0, Reason::ReservedBits);
                    add(value & ABOVE != 0, Reason::AboveMaxPhysAddr);
                    add(!is_type(value as u8), Reason::ReservedType);
                    add(is_misaligned(value, self.ranges[i].1), Reason::BaseNotAligned);
                }
                Register::Mask(_) => {
                    add(value & 0x7ff != 0, Reason::ReservedBits);
                    add(value & ABOVE != 0, Reason::AboveMaxPhysAddr);
                    add(value & VALID != 0 && size_of_mask(value).is_none(), Reason::MaskNotContiguous);
                }
                Register::Fixed(_) => add(value.to_le_bytes().iter().any(|code| !is_type(*code)), Reason::ReservedType),
                // PAT has one type more: 7, UC- (SDM 3A 12.12.2).
                Register::Pat => {
                    add(value.to_le_bytes().iter().any(|code| !is_type(*code) && *code != 7), Reason::ReservedType);
                }
            }
        }
        found
    }
}

fn is_type(code: u8) -> bool {
    MemoryType::of(code).is_some()
}

/// Of a range that is in use and has a size: with holes in its mask there is nothing that a base could be aligned to.
fn is_misaligned(base: u64, mask: u64) -> bool {
    mask & VALID != 0 && size_of_mask(mask).is_some_and(|size| base & ADDRESS & (size - 1) != 0)
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x}: {}", self.register, self.value, self.why)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservedType => "a reserved memory type",
            Self::ReservedBits => "reserved bits are set",
            Self::AboveMaxPhysAddr => "address bits above MAXPHYADDR are set",
            Self::MaskNotContiguous => "the mask has holes, its size is no power of two",
            Self::BaseNotAligned => "the base is no multiple of the size",
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn found(state: MtrrState) -> Vec<(Register, Reason)> {
        state.invalid().iter().map(|i| (i.register, i.why)).collect()
    }

    fn with_pair(base: u64, mask: u64) -> MtrrState {
        let mut state = MtrrState::at_start();
        state.ranges[2] = (base, mask);
        state
    }

    /// Masks of a range of 256 MiB.
    const MASK: u64 = 0x7f_f000_0800;

    #[test]
    fn valid_states_have_nothing_wrong() {
        assert_eq!(found(MtrrState::at_start()), []);
        assert_eq!(found(with_pair(0x1000_0006, MASK)), []);
        // The whole of the address space, its last page, and all that is out of use.
        assert_eq!(found(with_pair(6, VALID)), []);
        assert_eq!(found(with_pair(0x7f_ffff_f005, 0x7f_ffff_f800)), []);
        assert_eq!(found(with_pair(0x1234_5000, 0x0f0f_0000)), []);
    }

    #[test]
    fn each_rule_is_found_where_it_alone_is_broken() {
        let (base, mask) = (Register::Base(2), Register::Mask(2));
        for code in [2, 3, 7, 0x10, 0xff] {
            assert_eq!(found(with_pair(0x1000_0000 | code, MASK)), [(base, Reason::ReservedType)], "{code:#x}");
        }
        for bit in 8..12 {
            assert_eq!(found(with_pair(0x1000_0006 | 1 << bit, MASK)), [(base, Reason::ReservedBits)], "bit {bit}");
        }
        for bit in 0..11 {
            assert_eq!(found(with_pair(0x1000_0006, MASK | 1 << bit)), [(mask, Reason::ReservedBits)], "bit {bit}");
        }
        for bit in 39..64 {
            assert_eq!(found(with_pair(6 | 1 << bit, MASK)), [(base, Reason::AboveMaxPhysAddr)], "bit {bit}");
            assert_eq!(found(with_pair(6, MASK | 1 << bit)), [(mask, Reason::AboveMaxPhysAddr)], "bit {bit}");
        }
        // 768 MiB, and a hole in the middle.
        assert_eq!(found(with_pair(6, 0x7f_d000_0800)), [(mask, Reason::MaskNotContiguous)]);
        assert_eq!(found(with_pair(6, 0x7f_f0ff_f800)), [(mask, Reason::MaskNotContiguous)]);
        assert_eq!(found(with_pair(0x0800_0006, MASK)), [(base, Reason::BaseNotAligned)]);
    }

    #[test]
    fn default_type_fixed_ranges_and_pat_have_their_own_rules() {
        let start = MtrrState::at_start();
        for bit in [8, 9, 12, 39, 63] {
            let state = MtrrState { default_type: start.default_type | 1 << bit, ..start };
            assert_eq!(found(state), [(Register::DefaultType, Reason::ReservedBits)], "bit {bit}");
        }
        let state = MtrrState { default_type: 0xc07, ..start };
        assert_eq!(found(state), [(Register::DefaultType, Reason::ReservedType)]);
        for byte in 0..8 {
            let mut state = start;
            state.fixed[10] |= 2 << (8 * byte);
            assert_eq!(found(state), [(Register::Fixed(10), Reason::ReservedType)], "byte {byte}");
        }
        assert_eq!(found(MtrrState { pat: 0x0207_0406_0007_0406, ..start }), [(Register::Pat, Reason::ReservedType)]);
        assert_eq!(found(MtrrState { pat: 0x0707_0707_0707_0707, ..start }), []);
    }
}
