//! Memory type range registers (SDM 3A 12.11): values, validity, and the types that they give to memory.
//!
//! KVM keeps these registers but does not let them change any memory's type: what is checked here is values and consistency,
//! never cacheability.

mod effective;
mod kind;
mod register;
mod valid;

use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;

pub use effective::{ADDRESS_SPACE, Effective, FIXED_END, Region, TypeSet};
pub use kind::MemoryType;
pub use register::{Difference, FIXED_MSRS, Register};
pub use valid::{Invalid, Reason};

/// Variable ranges, as MTRRCAP of KVM says.
pub const RANGES: usize = 8;

/// DEF_TYPE: MTRRs are on.
pub const ENABLED: u64 = 1 << 11;
/// DEF_TYPE: fixed ranges are on.
pub const FIXED_ENABLED: u64 = 1 << 10;
/// PHYSMASK: the range is in use.
pub const VALID: u64 = 1 << 11;
/// Address bits of PHYSBASE and PHYSMASK.
const ADDRESS: u64 = ((1 << MAX_PHYS_ADDR_BITS) - 1) & !0xfff;
/// Power-on value of IA32_PAT (SDM 3A 12.12.4).
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

/// The memory type range registers of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MtrrState {
    /// IA32_MTRR_DEF_TYPE.
    pub default_type: u64,
    /// IA32_MTRR_PHYSBASEn and PHYSMASKn.
    pub ranges: [(u64, u64); RANGES],
    /// The fixed ranges, in the order of [`FIXED_MSRS`].
    pub fixed: [u64; FIXED_MSRS.len()],
    /// IA32_PAT.
    pub pat: u64,
}

/// The size of a range by its mask; `None` where the mask has holes.
pub fn size_of_mask(mask: u64) -> Option<u64> {
    let size = (ADDRESS & !mask) + 0x1000;
    size.is_power_of_two().then_some(size)
}

impl MtrrState {
    /// What the VMM programs on each vCPU before it runs: all on, write-back but for the holes that firmware declares.
    pub fn at_start() -> Self {
        const UC: u64 = 0;
        const WP: u64 = 0x0505_0505_0505_0505;
        const WB: u64 = 0x0606_0606_0606_0606;
        let none = Self {
            pat: PAT_AT_RESET,
            default_type: ENABLED | FIXED_ENABLED | MemoryType::WriteBack as u64,
            ..Self::default()
        };
        Self { fixed: [WB, WB, UC, WP, WP, WP, WP, WP, WP, WP, WP], ..none }.with_range(0, 0xc000_0000, 0x4000_0000, 0)
    }

    /// This state after `mtrr_set` of Linux (generic.c) has programmed one range; a size of 0 only takes it out of use.
    ///
    /// A register that does not exist changes nothing.
    #[must_use]
    pub fn with_range(mut self, register: usize, base: u64, size: u64, kind: u8) -> Self {
        if let Some(range) = self.ranges.get_mut(register) {
            match size.checked_sub(1) {
                None => range.1 = 0,
                Some(last) => *range = (base & ADDRESS | u64::from(kind), !last & ADDRESS | VALID),
            }
        }
        self
    }

    /// This state with another value in one register.
    #[must_use]
    pub fn with_register(self, register: Register, value: u64) -> Self {
        let former = |wanted| self.registers().find(|(register, _)| *register == wanted).map_or(0, |(_, value)| value);
        Self::from_registers(|wanted| if wanted == register { value } else { former(wanted) })
    }

    /// Every register with its value, in the order in which they are numbered here.
    pub fn registers(&self) -> impl Iterator<Item = (Register, u64)> {
        let ranges = self.ranges.into_iter().enumerate();
        std::iter::once((Register::DefaultType, self.default_type))
            .chain(ranges.flat_map(|(i, (base, mask))| [(Register::Base(i), base), (Register::Mask(i), mask)]))
            .chain(self.fixed.into_iter().enumerate().map(|(i, value)| (Register::Fixed(i), value)))
            .chain(std::iter::once((Register::Pat, self.pat)))
    }

    /// Every register by its MSR index, with its value.
    pub fn msrs(&self) -> impl Iterator<Item = (u32, u64)> {
        self.registers().map(|(register, value)| (register.msr(), value))
    }

    /// The state in which each register has the value that `read` gives for it.
    pub fn from_registers(read: impl Fn(Register) -> u64) -> Self {
        Self {
            default_type: read(Register::DefaultType),
            ranges: std::array::from_fn(|i| (read(Register::Base(i)), read(Register::Mask(i)))),
            fixed: std::array::from_fn(|i| read(Register::Fixed(i))),
            pat: read(Register::Pat),
        }
    }

    /// The registers in which `other` differs.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let pairs = self.registers().zip(other.registers());
        let differing = pairs.filter(|((_, here), (_, there))| here != there);
        differing.map(|((register, here), (_, there))| Difference { register, here, there }).collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn state_at_start_is_valid() {
        let start = MtrrState::at_start();
        assert_eq!(start.default_type, 0xc06);
        assert_eq!(start.ranges[0], (0xc000_0000, 0x7f_c000_0800));
        assert_eq!(start.invalid(), []);
    }

    #[test]
    fn msrs_name_each_register_once() {
        let mut indices: Vec<u32> = MtrrState::at_start().msrs().map(|(index, _)| index).collect();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), 1 + 2 * RANGES + FIXED_MSRS.len() + 1);
    }

    #[test]
    fn state_read_register_by_register_is_the_same() {
        let start = MtrrState::at_start();
        let values: Vec<_> = start.registers().collect();
        let read = |register| values.iter().find(|(r, _)| *r == register).map_or(0, |(_, value)| *value);
        assert_eq!(MtrrState::from_registers(read), start);
    }

    #[test]
    fn range_programmed_differs_in_its_two_registers() {
        let start = MtrrState::at_start();
        let changed = start.with_range(1, 0xe000_0000, 0x1000_0000, 1);
        let registers: Vec<_> = start.differences(&changed).iter().map(|d| d.register).collect();
        assert_eq!(registers, [Register::Base(1), Register::Mask(1)]);
        assert_eq!(changed.ranges[1], (0xe000_0001, 0x7f_f000_0800));
    }

    #[test]
    fn range_of_size_zero_keeps_its_base() {
        let start = MtrrState::at_start();
        assert_eq!(start.with_range(0, 0x1000, 0, 6).ranges[0], (start.ranges[0].0, 0));
    }

    #[test]
    fn register_that_does_not_exist_changes_nothing() {
        assert_eq!(MtrrState::at_start().with_range(RANGES, 0, 0x1000, 0), MtrrState::at_start());
    }
}
