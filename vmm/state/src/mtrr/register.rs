//! The registers by name, and how two states differ in them.

use std::fmt;

use super::RANGES;

/// IA32_MTRR_DEF_TYPE.
const DEFAULT_TYPE: u32 = 0x2ff;
/// IA32_PAT.
const PAT: u32 = 0x277;
/// IA32_MTRR_PHYSBASE0; the masks and the other ranges follow, one by one.
const FIRST_RANGE: u32 = 0x200;
/// The registers of the fixed ranges: eight ranges of 64 KiB, sixteen of 16 KiB, sixty-four of 4 KiB, a byte each.
pub const FIXED_MSRS: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

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

impl Register {
    /// The register of that MSR index.
    pub fn of_msr(msr: u32) -> Option<Self> {
        let fixed = || FIXED_MSRS.iter().position(|fixed| *fixed == msr).map(Self::Fixed);
        match msr {
            DEFAULT_TYPE => Some(Self::DefaultType),
            PAT => Some(Self::Pat),
            _ => match msr.checked_sub(FIRST_RANGE).map(|offset| offset as usize) {
                Some(offset) if offset < 2 * RANGES && offset % 2 == 0 => Some(Self::Base(offset / 2)),
                Some(offset) if offset < 2 * RANGES => Some(Self::Mask(offset / 2)),
                _ => fixed(),
            },
        }
    }

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

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#x} here, {:#x} there", self.register, self.here, self.there)
    }
}
