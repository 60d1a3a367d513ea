//! Everything that a vCPU's page tables map.

use super::{ADDRESS, PAGE, PRESENT, SHIFTS, is_leaf, page_of};
use crate::memory::Memory;

/// Most tables that are read: a guest can have tables that contain each other, and 512^4 ways through them.
const MOST_TABLES: usize = 4096;

/// Linear addresses that are mapped to guest-physical ones, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First linear address, canonical.
    pub linear: u64,
    /// First guest-physical address.
    pub physical: u64,
    /// Bytes, at least a page.
    pub size: u64,
}

/// What is mapped, by ascending linear address; as much of it as the first few thousand tables tell.
pub fn mappings(memory: &dyn Memory, cr3: u64) -> Vec<Mapping> {
    let mut walk = Walk { memory, left: MOST_TABLES, found: Vec::new() };
    walk.table(cr3 & ADDRESS, 0, &SHIFTS);
    walk.found
}

struct Walk<'m> {
    memory: &'m dyn Memory,
    /// Tables that may still be read.
    left: usize,
    found: Vec<Mapping>,
}

impl Walk<'_> {
    /// Takes in a table, and those that hang on it.
    fn table(&mut self, base: u64, linear: u64, shifts: &[u32]) {
        let Some((&shift, below)) = shifts.split_first() else { return };
        let mut table = [0; PAGE as usize];
        if self.left == 0 || !self.memory.read(base, &mut table) {
            return;
        }
        self.left -= 1;
        for (index, entry) in (0..).zip(table.as_chunks().0) {
            let (entry, linear) = (u64::from_le_bytes(*entry), canonical(linear | index << shift));
            if entry & PRESENT == 0 {
                continue;
            }
            if is_leaf(entry, shift) {
                self.page(Mapping { linear, physical: page_of(entry, shift), size: 1 << shift });
            } else {
                self.table(entry & ADDRESS, linear, below);
            }
        }
    }

    /// Takes in a page, with the one before it where they meet.
    fn page(&mut self, page: Mapping) {
        match self.found.last_mut() {
            Some(last)
                if last.linear.wrapping_add(last.size) == page.linear && last.physical + last.size == page.physical =>
            {
                last.size += page.size;
            }
            _ => self.found.push(page),
        }
    }
}

/// An address of 48 bits, as the processor wants it: with bit 47 in all bits above (SDM 1 3.3.7.1).
fn canonical(linear: u64) -> u64 {
    ((linear << 16).cast_signed() >> 16).cast_unsigned()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::memory::Snippet;

    /// Memory from 0 on with these entries of tables.
    fn memory(entries: &[(usize, u64)]) -> Snippet {
        let mut bytes = vec![0; 0x6000];
        for (at, entry) in entries {
            bytes[*at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        Snippet { base: 0, bytes }
    }

    #[test]
    fn pages_that_meet_are_one_piece_and_high_ones_are_canonical() {
        let memory = memory(&[
            (0x1000, 0x2003),
            (0x1ff8, 0x2003),
            (0x2000, 0x3003),
            (0x3000, 0x4003),
            (0x3008, 0x20_0083),
            (0x4008, 0x1003),
            (0x4010, 0x2003),
            (0x4020, 0x5003),
        ]);
        let of = |linear| {
            [(0x1000, 0x1000, 0x2000), (0x4000, 0x5000, 0x1000), (0x20_0000, 0x20_0000, 0x20_0000)]
                .map(|(at, physical, size): (u64, u64, u64)| Mapping { linear: linear + at, physical, size })
        };
        let wanted: Vec<_> = of(0).into_iter().chain(of(0xffff_ff80_0000_0000)).collect();
        assert_eq!(mappings(&memory, 0x1000), wanted);
    }

    #[test]
    fn tables_that_contain_each_other_end() {
        let own: Vec<_> = (0..512).map(|index| (0x1000 + 8 * index, 0x1003)).collect();
        assert!(!mappings(&memory(&own), 0x1000).is_empty());
        assert_eq!(mappings(&memory(&[]), u64::MAX), []);
    }
}
