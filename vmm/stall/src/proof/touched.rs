//! The memory that a vCPU depends on: what its instructions access, the pages that they are fetched from, and the entries of page
//! tables that lead there.

use std::collections::BTreeSet;

use stallbench_state::paging::PAGE;

use super::effect::Decode;

/// Bytes that are touched. Pages of code count as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    bytes: BTreeSet<u64>,
    pages: BTreeSet<u64>,
    /// What may hold anything: whoever changes it hinders nobody.
    aside: BTreeSet<u64>,
}

impl Touched {
    /// Nothing but what these instructions take to be fetched.
    pub(super) fn by_fetching(decode: &Decode) -> Self {
        /// Size of an entry of a page table.
        const ENTRY: u64 = 8;
        let tables = decode.tables.iter().flat_map(|entry| *entry..entry + ENTRY);
        Self { bytes: tables.collect(), pages: decode.fetched.iter().copied().collect(), aside: BTreeSet::new() }
    }

    /// And these bytes.
    pub(super) fn and(mut self, bytes: impl IntoIterator<Item = u64>) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// But for these bytes, which may hold anything.
    pub(super) fn but_for(mut self, aside: &BTreeSet<u64>) -> Self {
        self.aside.extend(aside);
        self
    }

    /// Whether it matters what this byte holds.
    pub(super) fn contains(&self, at: u64) -> bool {
        (self.bytes.contains(&at) || self.pages.contains(&(at & !(PAGE - 1)))) && !self.aside.contains(&at)
    }

    /// The pages that all of it lies in, what is set aside too.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        let pages = self.bytes.iter().chain(&self.aside).map(|at| at & !(PAGE - 1));
        pages.chain(self.pages.iter().copied())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn page_of_code_counts_as_a_whole_but_for_what_is_set_aside() {
        let mut decode = Decode::new();
        decode.fetched.push(0x1000);
        decode.tables.push(0x3008);
        let touched = Touched::by_fetching(&decode).and([0x5004]).but_for(&BTreeSet::from([0x1010, 0x7000]));
        for (at, is_touched) in
            [(0x1000, true), (0x1fff, true), (0x1010, false), (0x300f, true), (0x3010, false), (0x5004, true)]
        {
            assert_eq!(touched.contains(at), is_touched, "{at:#x}");
        }
        let pages: BTreeSet<_> = touched.pages().collect();
        assert_eq!(pages, BTreeSet::from([0x1000, 0x3000, 0x5000, 0x7000]));
    }
}
