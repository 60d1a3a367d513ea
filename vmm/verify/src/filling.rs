//! Values of what is set aside: the ends of its bounds, numbers at which arithmetic turns, and some by chance, the same each time.

use stallbench_state::certificate::{RFLAGS, VcpuState};

/// How often a transition is tried where something is set aside.
pub(crate) const WITH_ASIDE: usize = 14;
/// How often it is tried where nothing is: what comes of it must be the same both times.
pub(crate) const WITHOUT: usize = 2;

/// What is tried first, where it lies within the bounds.
const TURNS: [u64; 10] =
    [0, u64::MAX, 1, 0x7f, 0x7fff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 1 << 63];

/// The values of one try.
#[derive(Debug)]
pub(crate) struct Filling {
    turn: usize,
    seed: u64,
}

impl Filling {
    /// Those of the try of this number.
    pub(crate) fn new(turn: usize) -> Self {
        Self { turn, seed: 0x9e37_79b9_7f4a_7c15 ^ turn as u64 }
    }

    /// A vCPU's registers with this try's values in those that are set aside.
    pub(crate) fn registers(&mut self, vcpu: &VcpuState) -> [u64; 18] {
        let mut registers = vcpu.registers.map(|word| word.0);
        for aside in &vcpu.aside {
            let register = &mut registers[aside.register];
            *register = match aside.register {
                RFLAGS => *register & !aside.most.0 | self.flags() & aside.most.0,
                _ => self.within(aside.least.0, aside.most.0),
            };
        }
        registers
    }

    /// Bytes for memory that is set aside.
    pub(crate) fn bytes(&mut self, bytes: &mut [u8]) {
        match self.turn {
            0 => bytes.fill(0),
            1 => bytes.fill(0xff),
            _ => bytes.iter_mut().for_each(|byte| *byte = self.chance() as u8),
        }
    }

    fn flags(&mut self) -> u64 {
        match self.turn {
            0 => 0,
            1 => u64::MAX,
            _ => self.chance(),
        }
    }

    /// A number from `least` to `most`.
    fn within(&mut self, least: u64, most: u64) -> u64 {
        match self.turn {
            0 => least,
            1 => most,
            turn => match TURNS.get(turn - 2) {
                Some(&value) => value.clamp(least, most),
                None => least + self.chance_below(most - least),
            },
        }
    }

    fn chance_below(&mut self, most: u64) -> u64 {
        let chance = self.chance();
        most.checked_add(1).map_or(chance, |count| chance % count)
    }

    /// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    fn chance(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::certificate::{Aside, Word};

    fn vcpu(register: usize, least: u64, most: u64) -> VcpuState {
        let aside = vec![Aside { register, least: Word(least), most: Word(most) }];
        let mut vcpu = VcpuState { aside, ..VcpuState::default() };
        vcpu.registers[RFLAGS] = Word(0x246);
        vcpu
    }

    #[test]
    fn values_keep_their_bounds_and_meet_both_ends() {
        for (least, most) in [(3, 9), (0, u64::MAX), (5, 5), (u64::MAX - 1, u64::MAX)] {
            let vcpu = vcpu(1, least, most);
            let values: Vec<_> = (0..WITH_ASIDE).map(|turn| Filling::new(turn).registers(&vcpu)[1]).collect();
            assert!(values.iter().all(|value| (least..=most).contains(value)), "{least}..={most}: {values:?}");
            assert!(values.contains(&least) && values.contains(&most), "{least}..={most}: {values:?}");
        }
    }

    #[test]
    fn flags_that_are_not_set_aside_stay() {
        let vcpu = vcpu(RFLAGS, 0, 0x41);
        let values: Vec<_> = (0..WITH_ASIDE).map(|turn| Filling::new(turn).registers(&vcpu)[RFLAGS]).collect();
        assert!(values.iter().all(|flags| flags & !0x41 == 0x206), "{values:x?}");
        assert!(values.contains(&0x206) && values.contains(&0x247), "{values:x?}");
    }
}
