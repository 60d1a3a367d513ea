//! The type that memory has by all registers together (SDM 3A 12.11.4.1), and the map of it.
//!
//! 1. MTRRs off (E=0): uncacheable, whatever else they say.
//! 2. Below 1 MiB, with the fixed ranges on (FE=1): what they say.
//! 3. The variable ranges that match, by the letter of base and mask: one type is that type; uncacheable wins over all others;
//!    write-through wins over write-back; any other overlap is undefined.
//! 4. Elsewhere the default type.
//!
//! Undefined is an answer of its own, never one of the types.

use std::fmt;

use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;

use super::{ADDRESS, ENABLED, FIXED_ENABLED, MemoryType, MtrrState, VALID, size_of_mask};

/// The byte behind the last that an address can name.
pub const ADDRESS_SPACE: u64 = 1 << MAX_PHYS_ADDR_BITS;
/// End of the fixed ranges.
pub const FIXED_END: u64 = 0x10_0000;

/// What type a byte of memory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effective {
    /// This one.
    Type(MemoryType),
    /// Ranges of these types overlap, and the manual says of them together: undefined.
    Overlap(TypeSet),
    /// A register that decides here names a type that is reserved.
    Reserved(u8),
}

/// A set of memory types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TypeSet(u8);

/// Bytes in a row that have the same type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
    /// Their type.
    pub effective: Effective,
}

impl MtrrState {
    /// The type of the byte at an address below [`ADDRESS_SPACE`].
    pub fn effective(&self, address: u64) -> Effective {
        if self.default_type & ENABLED == 0 {
            return Effective::Type(MemoryType::Uncacheable);
        }
        if address < FIXED_END && self.default_type & FIXED_ENABLED != 0 {
            return Effective::of_code(self.fixed_code(address));
        }
        let mut types = TypeSet::default();
        for range in self.matching(address) {
            match MemoryType::of(self.ranges[range].0 as u8) {
                Some(kind) => types.insert(kind),
                None => return Effective::Reserved(self.ranges[range].0 as u8),
            }
        }
        if types.is_empty() { Effective::of_code(self.default_type as u8) } else { types.together() }
    }

    /// The variable ranges in use that match an address, whether or not they decide its type.
    pub fn matching(&self, address: u64) -> impl Iterator<Item = usize> {
        let ranges = self.ranges.into_iter().enumerate();
        ranges
            .filter(move |(_, (base, mask))| mask & VALID != 0 && (address ^ base) & mask & ADDRESS == 0)
            .map(|(i, _)| i)
    }

    /// The code of the fixed range at an address below 1 MiB: 64 KiB up to 512 KiB, 16 KiB up to 768 KiB, 4 KiB from there on.
    fn fixed_code(&self, address: u64) -> u8 {
        let place = match address {
            0..0x8_0000 => address >> 16,
            0x8_0000..0xc_0000 => 8 + ((address - 0x8_0000) >> 14),
            _ => 24 + ((address - 0xc_0000) >> 12),
        };
        self.fixed[place as usize / 8].to_le_bytes()[place as usize % 8]
    }

    /// The type of all memory, as the largest regions that have one; they follow each other from 0 to [`ADDRESS_SPACE`].
    ///
    /// `None` where the mask of a range in use has holes: such a range matches up to 2^27 places, and its register is invalid.
    pub fn map(&self) -> Option<Vec<Region>> {
        let mut edges = vec![0];
        for (base, mask) in self.ranges.iter().filter(|(_, mask)| mask & VALID != 0) {
            let size = size_of_mask(*mask)?;
            let start = base & mask & ADDRESS;
            edges.extend([start, start + size]);
        }
        edges.extend((0..8).map(|i| i << 16));
        edges.extend((0..16).map(|i| 0x8_0000 + (i << 14)));
        edges.extend((0..=64).map(|i| 0xc_0000 + (i << 12)));
        edges.retain(|edge| *edge < ADDRESS_SPACE);
        edges.sort_unstable();
        edges.dedup();
        Some(self.merged(&edges))
    }

    /// Between two edges the type never changes.
    fn merged(&self, edges: &[u64]) -> Vec<Region> {
        let mut map: Vec<Region> = Vec::new();
        for (i, start) in edges.iter().copied().enumerate() {
            let end = edges.get(i + 1).copied().unwrap_or(ADDRESS_SPACE);
            let effective = self.effective(start);
            match map.last_mut() {
                Some(last) if last.effective == effective => last.end = end,
                _ => map.push(Region { start, end, effective }),
            }
        }
        map
    }
}

impl Effective {
    fn of_code(code: u8) -> Self {
        MemoryType::of(code).map_or(Self::Reserved(code), Self::Type)
    }

    /// The type, where there is one.
    pub const fn defined(self) -> Option<MemoryType> {
        match self {
            Self::Type(kind) => Some(kind),
            Self::Overlap(_) | Self::Reserved(_) => None,
        }
    }
}

impl TypeSet {
    /// Adds a type.
    pub fn insert(&mut self, kind: MemoryType) {
        self.0 |= 1 << kind.code();
    }

    /// Whether it holds a type.
    pub const fn contains(self, kind: MemoryType) -> bool {
        self.0 >> kind.code() & 1 == 1
    }

    /// Whether it holds none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its types, in the order of their codes.
    pub fn iter(self) -> impl Iterator<Item = MemoryType> {
        MemoryType::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }

    /// The type of memory for which variable ranges of all of these match.
    pub fn together(self) -> Effective {
        use MemoryType::{Uncacheable, WriteBack, WriteThrough};
        if self.contains(Uncacheable) {
            return Effective::Type(Uncacheable);
        }
        let mut types = self.iter();
        match (types.next(), types.next(), types.next()) {
            (Some(only), None, None) => Effective::Type(only),
            (Some(WriteThrough), Some(WriteBack), None) => Effective::Type(WriteThrough),
            _ => Effective::Overlap(self),
        }
    }
}

impl fmt::Display for TypeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(MemoryType::word).collect();
        f.write_str(&words.join(" and "))
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(kind) => write!(f, "{kind}"),
            Self::Overlap(types) => write!(f, "undefined ({types} overlap)"),
            Self::Reserved(code) => write!(f, "undefined (reserved type {code:#x})"),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} to {:#x} {}", self.start, self.end - 1, self.effective)
    }
}

#[cfg(test)]
mod test;
