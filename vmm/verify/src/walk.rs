//! Page tables with four levels (SDM 3A 5.5): where a linear address lies, and which pages a walk may read.

use std::collections::BTreeSet;

use crate::memory::Memory;
use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;

const PRESENT: u64 = 1;
/// In an entry of levels 3 and 2: it maps a page.
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
/// Most tables of one vCPU: enough for 2 GiB of small pages.
const MOST_TABLES: usize = 1024 + 4;
const LEVELS: u32 = 4;

/// Bits of a physical address down to `low`.
fn physical(entry: u64, low: u32) -> u64 {
    entry & ((1 << MAX_PHYS_ADDR_BITS) - 1) & !((1 << low) - 1)
}

/// Bits of an address below those that index a level: 12 for level 1.
fn shift(level: u32) -> u32 {
    3 + 9 * level
}

/// Whether an entry of this level maps a page, and does not lead to another table.
fn maps_page(entry: u64, level: u32) -> bool {
    level == 1 || (level < LEVELS && entry & LARGE != 0)
}

/// The physical address of a linear one; `None` where it is not mapped by tables that are there.
pub(crate) fn translate(memory: &Memory, cr3: u64, linear: u64) -> Option<u64> {
    let extended = (linear as i64) << 16 >> 16;
    if extended as u64 != linear {
        return None;
    }
    let mut table = physical(cr3, 12);
    for level in (1..=LEVELS).rev() {
        let index = linear >> shift(level) & (ENTRIES - 1);
        let entry = memory.word(table + 8 * index).filter(|entry| entry & PRESENT != 0)?;
        if maps_page(entry, level) {
            let offset = linear & ((1 << shift(level)) - 1);
            return Some(physical(entry, shift(level)) | offset);
        }
        table = physical(entry, 12);
    }
    None
}

/// The pages of all tables that a walk from here can come to, as far as they are there; `None`: too many.
pub(crate) fn tables(memory: &Memory, cr3: u64) -> Option<BTreeSet<u64>> {
    let mut tables = BTreeSet::new();
    for_each_table(memory, cr3, |table, _| {
        tables.insert(table);
        tables.len() <= MOST_TABLES
    })
    .then_some(tables)
}

/// Which of these pages a walk from here maps, writable or not: CR0.WP may be off.
pub(crate) fn mapped(memory: &Memory, cr3: u64, pages: &BTreeSet<u64>) -> BTreeSet<u64> {
    let mut mapped = BTreeSet::new();
    for_each_table(memory, cr3, |table, level| {
        for entry in entries(memory, table).filter(|entry| maps_page(*entry, level)) {
            let start = physical(entry, shift(level));
            mapped.extend(pages.range(start..start + (1 << shift(level))));
        }
        true
    });
    mapped
}

/// Entries of a table that are present.
fn entries(memory: &Memory, table: u64) -> impl Iterator<Item = u64> {
    let entries = (0..ENTRIES).filter_map(move |index| memory.word(table + 8 * index));
    entries.filter(|entry| entry & PRESENT != 0)
}

/// Shows all tables that a walk can come to, with their levels, until `more` says no; then it is false.
fn for_each_table(memory: &Memory, cr3: u64, mut more: impl FnMut(u64, u32) -> bool) -> bool {
    let mut seen = BTreeSet::new();
    let mut ahead = vec![(physical(cr3, 12), LEVELS)];
    while let Some((table, level)) = ahead.pop() {
        // A page can be a table of several levels, each with other entries to follow.
        if memory.page_of(table).is_none() || !seen.insert((table, level)) {
            continue;
        }
        if !more(table, level) {
            return false;
        }
        let further = entries(memory, table).filter(|entry| !maps_page(*entry, level));
        ahead.extend(further.map(|entry| (physical(entry, 12), level - 1)));
    }
    true
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::certificate::{self, Bytes, Run, Word};

    fn memory(entries: &[(u64, u64)]) -> Memory {
        let pages = (1..6).map(|page| Word(page << 12)).collect();
        let run =
            |&(address, entry): &(u64, u64)| Run { address: Word(address), bytes: Bytes(entry.to_le_bytes().into()) };
        Memory::new(&certificate::Memory { pages, runs: entries.iter().map(run).collect() }).expect("five pages")
    }

    #[test]
    fn small_and_large_pages_are_found() {
        let entries = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x3008, 0x60_0083), (0x4008, 0x9003)];
        let memory = memory(&entries);
        assert_eq!(translate(&memory, 0x1000, 0x1234), Some(0x9234));
        assert_eq!(translate(&memory, 0x1000, 0x20_1234), Some(0x60_1234));
        assert_eq!(translate(&memory, 0x1000, 0x2234), None, "not present");
        assert_eq!(translate(&memory, 0x1000, 1 << 47), None, "not canonical");
        assert_eq!(translate(&memory, 0x7000, 0x1234), None, "no such table");
        assert_eq!(tables(&memory, 0x1000), Some([0x1000, 0x2000, 0x3000, 0x4000].into()));
        let pages = [0x4000, 0x9000, 0xa000, 0x5f_f000, 0x60_0000, 0x7f_f000, 0x80_0000].into();
        assert_eq!(mapped(&memory, 0x1000, &pages), [0x9000, 0x60_0000, 0x7f_f000].into());
    }

    #[test]
    fn tables_that_lead_to_themselves_are_followed_once() {
        let memory = memory(&[(0x1000, 0x1003), (0x1008, 0x7003)]);
        assert_eq!(tables(&memory, 0x1000), Some([0x1000].into()));
        assert_eq!(translate(&memory, 0x1000, 0), Some(0x1000));
    }
}
