//! Memory type range registers (SDM 3A 12.11): values, validity, differences.
//!
//! KVM keeps these registers but does not let them change any memory's type: what is checked here is values and consistency,
//! never cacheability.

use std::fmt;

use serde::Serialize;
use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;

/// Variable ranges, as MTRRCAP of KVM says.
pub const RANGES: usize = 8;
/// IA32_MTRR_DEF_TYPE.
const DEFAULT_TYPE: u32 = 0x2ff;
/// IA32_PAT.
const PAT: u32 = 0x277;
/// IA32_MTRR_PHYSBASE0; the masks and the other ranges follow, one by one.
const FIRST_RANGE: u32 = 0x200;
/// The registers of the fixed ranges: eight ranges of 64 KiB, sixteen of 16 KiB, sixty-four of 4 KiB, a byte each.
pub const FIXED_MSRS: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// DEF_TYPE: MTRRs are on.
const ENABLED: u64 = 1 << 11;
/// DEF_TYPE: fixed ranges are on.
const FIXED_ENABLED: u64 = 1 << 10;
/// PHYSMASK: the range is in use.
const VALID: u64 = 1 << 11;
/// Address bits of PHYSBASE and PHYSMASK.
const ADDRESS: u64 = ((1 << MAX_PHYS_ADDR_BITS) - 1) & !0xfff;
/// Write-back.
const WRITE_BACK: u64 = 6;
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

/// One of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Register {
    /// IA32_MTRR_DEF_TYPE.
    DefaultType,
    /// IA32_MTRR_PHYSBASEn.
    Base(usize),
    /// IA32_MTRR_PHYSMASKn.
    Mask(usize),
    /// The fixed-range register at this place of [`FIXED_MSRS`].
    Fixed(usize),
    /// IA32_PAT.
    Pat,
}

/// A register in which two vCPUs, or a vCPU and what was expected, differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The register.
    pub register: Register,
    /// Its value here.
    pub here: u64,
    /// Its value there.
    pub there: u64,
}

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

/// Why a value is forbidden (SDM 3A 12.11.2, 12.11.4, 12.12.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A memory type that does not exist.
    ReservedType,
    /// A bit that must be zero.
    ReservedBits,
    /// A mask whose ones are not contiguous up to the highest address bit: the size is no power of two.
    SizeNotPowerOfTwo,
    /// A base that is no multiple of the size.
    BaseNotAligned,
}

impl MtrrState {
    /// What the VMM programs on each vCPU before it runs: all on, write-back but for the holes that firmware declares.
    pub fn at_start() -> Self {
        const UC: u64 = 0;
        const WP: u64 = 0x0505_0505_0505_0505;
        const WB: u64 = 0x0606_0606_0606_0606;
        let none = Self { pat: PAT_AT_RESET, default_type: ENABLED | FIXED_ENABLED | WRITE_BACK, ..Self::default() };
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

    /// What the processor manual forbids about these values.
    pub fn invalid(&self) -> Vec<Invalid> {
        let wrong = |(register, value): (Register, u64)| {
            self.wrong_with(register, value).map(|why| Invalid { register, value, why })
        };
        self.registers().filter_map(wrong).collect()
    }

    fn wrong_with(&self, register: Register, value: u64) -> Option<Reason> {
        match register {
            Register::DefaultType => default_type_wrong(value),
            Register::Base(i) => base_wrong(value, self.ranges[i].1),
            Register::Mask(_) => mask_wrong(value),
            Register::Fixed(_) => value.to_le_bytes().iter().any(|&t| !is_type(t)).then_some(Reason::ReservedType),
            // PAT has one type more: 7, UC- (SDM 3A 12.12.2).
            Register::Pat => value.to_le_bytes().iter().any(|&t| !is_type(t) && t != 7).then_some(Reason::ReservedType),
        }
    }
}

/// UC, WC, WT, WP or WB (SDM 3A 12.11.1).
fn is_type(byte: u8) -> bool {
    matches!(byte, 0 | 1 | 4 | 5 | 6)
}

fn default_type_wrong(value: u64) -> Option<Reason> {
    if value & !(ENABLED | FIXED_ENABLED | 0xff) != 0 {
        return Some(Reason::ReservedBits);
    }
    (!is_type(value as u8)).then_some(Reason::ReservedType)
}

/// A base is looked at together with its mask; out of use, only its reserved bits matter.
fn base_wrong(base: u64, mask: u64) -> Option<Reason> {
    if base & !(ADDRESS | 0xff) != 0 {
        return Some(Reason::ReservedBits);
    }
    if mask & VALID == 0 {
        return None;
    }
    if !is_type(base as u8) {
        return Some(Reason::ReservedType);
    }
    (base & ADDRESS & !mask != 0).then_some(Reason::BaseNotAligned)
}

fn mask_wrong(mask: u64) -> Option<Reason> {
    if mask & !(ADDRESS | VALID) != 0 {
        return Some(Reason::ReservedBits);
    }
    let size = (ADDRESS & !mask) + 0x1000;
    (mask & VALID != 0 && !size.is_power_of_two()).then_some(Reason::SizeNotPowerOfTwo)
}

impl Register {
    /// Its MSR index.
    pub fn msr(self) -> u32 {
        match self {
            Self::DefaultType => DEFAULT_TYPE,
            Self::Base(i) => FIRST_RANGE + 2 * i as u32,
            Self::Mask(i) => FIRST_RANGE + 2 * i as u32 + 1,
            Self::Fixed(i) => FIXED_MSRS[i],
            Self::Pat => PAT,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultType => f.write_str("default-type"),
            Self::Base(i) => write!(f, "base{i}"),
            Self::Mask(i) => write!(f, "mask{i}"),
            Self::Fixed(_) => write!(f, "fixed-{:x}", self.msr()),
            Self::Pat => f.write_str("pat"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#x} here, {:#x} there", self.register, self.here, self.there)
    }
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
            Self::SizeNotPowerOfTwo => "the size is not a power of two",
            Self::BaseNotAligned => "the base is not a multiple of the size",
        })
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

    #[test]
    fn values_that_the_manual_forbids_are_found() {
        let reasons = |state: MtrrState| state.invalid().iter().map(|i| (i.register, i.why)).collect::<Vec<_>>();
        let start = MtrrState::at_start();
        let not_aligned = start.with_range(2, 0x1000_0000, 0x2000_0000, 6);
        assert_eq!(reasons(not_aligned), [(Register::Base(2), Reason::BaseNotAligned)]);
        let not_power = start.with_range(2, 0, 0x3000, 6);
        assert_eq!(reasons(not_power), [(Register::Mask(2), Reason::SizeNotPowerOfTwo)]);
        let of_type = start.with_range(2, 0, 0x1000, 2);
        assert_eq!(reasons(of_type), [(Register::Base(2), Reason::ReservedType)]);
        let wide = MtrrState { default_type: 1 << 12, ..start };
        assert_eq!(reasons(wide), [(Register::DefaultType, Reason::ReservedBits)]);
        let pat = MtrrState { pat: 2, ..start };
        assert_eq!(reasons(pat), [(Register::Pat, Reason::ReservedType)]);
    }
}
