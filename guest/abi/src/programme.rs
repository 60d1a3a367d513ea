//! Programmes of many rendezvous: what each initiator programs in each round, by the seed alone.
//!
//! The guest executes a programme, and the host works out beforehand where it must end: both have it from here, and nothing that
//! the guest did is asked about it. Whatever the order in which initiators take turns, the end is one, since no register has
//! two owners; and no overlap is ever undefined, since registers that can overlap have types that go together.

use crate::knob::invalid;
use crate::layout::MAX_PHYS_ADDR_BITS;
use crate::mtrr::{RANGES, RangeInput, WholeInput};

/// Codes of the memory types.
const TYPES: [u8; 5] = [0, 1, 4, 5, 6];
/// Uncacheable.
const UC: u8 = 0;
/// E and FE of IA32_MTRR_DEF_TYPE.
const ENABLED: u64 = 1 << 11 | 1 << 10;
/// IA32_PAT after a reset. What the guest's own page tables select stays as it is: hosts may honour it.
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;
/// Address bits of a window: two ranges can overlap within theirs, and those of two windows cannot.
const WINDOW_BITS: u32 = MAX_PHYS_ADDR_BITS as u32 - 2;

/// Numbers that a seed decides (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed and a stream of it.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// The next number below `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    const fn memory_type(&mut self) -> u8 {
        TYPES[self.below(TYPES.len() as u64) as usize]
    }
}

/// What initiator `initiator` of `initiators` programs in its round `round`: a range that it alone owns, or none in its place.
pub const fn range(seed: u64, initiator: u32, initiators: u32, round: u32) -> RangeInput {
    let mut random = Random::new(seed, ((1 + initiator as u64) << 32) | round as u64);
    let owned = (RANGES as u32 - initiator).div_ceil(initiators);
    let register = initiator + random.below(owned as u64) as u32 * initiators;
    let window = register / 2;
    let order = 12 + random.below(WINDOW_BITS as u64 - 11);
    let size = if random.below(8) == 0 { 0 } else { 1u64 << order };
    let place = random.next() >> (64 - WINDOW_BITS) & !((1 << order) - 1);
    let memory_type = type_in_window(seed, register, &mut random);
    RangeInput { base: (window as u64) << WINDOW_BITS | place, size, register, memory_type: memory_type as u32 }
}

/// The two registers of a window may overlap, so their types are such that the manual says what comes of it.
const fn type_in_window(seed: u64, register: u32, random: &mut Random) -> u8 {
    let mut of_window = Random::new(seed, register as u64 / 2);
    match of_window.below(3) {
        // Uncacheable wins over anything.
        0 if register.is_multiple_of(2) => UC,
        0 => random.memory_type(),
        // Write-through wins over write-back.
        1 => [4, 6][random.below(2) as usize],
        // One type for both.
        _ => of_window.memory_type(),
    }
}

/// The fixed ranges, default type and PAT that the first initiator replicates before its first round.
pub const fn whole(seed: u64) -> WholeInput {
    let mut random = Random::new(seed, u64::MAX);
    let default_type = ENABLED | random.memory_type() as u64;
    let mut fixed = [0; 11];
    let mut register = 0;
    while register < fixed.len() {
        let mut byte = 0;
        while byte < 8 {
            fixed[register] |= (random.memory_type() as u64) << (8 * byte);
            byte += 1;
        }
        register += 1;
    }
    let pat = PAT_AT_RESET & 0xffff_ffff | (random.memory_type() as u64) << 40 | (random.memory_type() as u64) << 56;
    WholeInput { default_type, fixed, pat }
}

/// What is programmed behind a layout that the manual forbids, by the word of knob `invalid`: each breaks one rule and no other.
/// It lies far above what layouts hold.
pub const fn against_the_manual(word: u8) -> &'static [RangeInput] {
    const MIB: u64 = 1 << 20;
    const HIGH: u64 = 0x7e_0000_0000;
    const fn range(register: u32, base: u64, size: u64, memory_type: u32) -> RangeInput {
        RangeInput { base, size, register, memory_type }
    }
    const MISALIGNED: [RangeInput; 1] = [range(7, HIGH + MIB, 2 * MIB, 0)];
    const SIZE: [RangeInput; 1] = [range(7, HIGH, 3 * MIB, 0)];
    const OVERLAP: [RangeInput; 2] = [range(6, HIGH, 4 * MIB, 1), range(7, HIGH + 2 * MIB, 2 * MIB, 5)];
    match word {
        invalid::MISALIGNED => &MISALIGNED,
        invalid::SIZE => &SIZE,
        invalid::OVERLAP => &OVERLAP,
        _ => &[],
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn same_seed_is_the_same_programme_and_another_is_another() {
        let programme = |seed| (0..50).map(|round| range(seed, 1, 3, round)).collect::<Vec<_>>();
        extern crate std;
        use std::vec::Vec;
        assert_eq!(programme(7), programme(7));
        assert_ne!(programme(7), programme(8));
        assert_eq!(whole(7), whole(7));
        assert_ne!(whole(7), whole(8));
    }

    #[test]
    fn no_register_has_two_owners_and_each_has_one() {
        for initiators in 1..=8 {
            let mut owners = [None; RANGES];
            for initiator in 0..initiators {
                for round in 0..200 {
                    let register = range(1, initiator, initiators, round).register as usize;
                    assert!(owners[register].is_none_or(|owner| owner == initiator), "{initiators} {register}");
                    owners[register] = Some(initiator);
                }
            }
            assert!(owners.iter().all(Option::is_some), "{initiators}: {owners:?}");
        }
    }

    #[test]
    fn every_range_is_aligned_and_within_the_address_space_and_its_window() {
        for round in 0..5000 {
            let range = range(u64::from(round) / 100, 0, 1, round);
            assert!(range.size == 0 || range.size.is_power_of_two() && range.size >= 4096, "{range:x?}");
            assert!(range.size == 0 || range.base.is_multiple_of(range.size), "{range:x?}");
            assert_eq!(range.base >> WINDOW_BITS, u64::from(range.register) / 2, "{range:x?}");
            assert!(TYPES.contains(&(range.memory_type as u8)), "{range:x?}");
        }
    }
}
