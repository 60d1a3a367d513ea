//! Memory of a machine, as a dump keeps it.

use std::ops::Range;

use crate::memory::{Memory, Snippet};
use crate::paging::PAGE;

/// Guest-physical memory at one moment; what is zero takes no room.
///
/// All of [`ranges`](Self::ranges) can be read; what lies outside of [`runs`](Self::runs) reads as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpedMemory {
    pub(super) ranges: Vec<Range<u64>>,
    pub(super) runs: Vec<Snippet>,
}

impl DumpedMemory {
    /// Memory at these places, whole pages by ascending address, all of it zero so far.
    pub fn zeroed(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match merged.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => merged.push(range),
            }
        }
        Self { ranges: merged, runs: Vec::new() }
    }

    /// Copies the pages of a part that are not zero. Parts come by ascending address.
    pub fn copy(&mut self, memory: &dyn Memory, part: Range<u64>) {
        let mut page = [0; PAGE as usize];
        for address in part.step_by(PAGE as usize) {
            if memory.read(address, &mut page) && !is_zero(&page) {
                self.append(address, &page);
            }
        }
    }

    fn append(&mut self, address: u64, page: &[u8]) {
        match self.runs.last_mut() {
            Some(last) if end(last) == address => last.bytes.extend_from_slice(page),
            _ => self.runs.push(Snippet { base: address, bytes: page.to_vec() }),
        }
    }

    /// Where there is memory: ascending, none meets another, none is empty.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// The memory that is not zero, whole pages: ascending, none meets another.
    pub fn runs(&self) -> &[Snippet] {
        &self.runs
    }
}

impl Memory for DumpedMemory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let Some(behind) = address.checked_add(bytes.len() as u64) else { return false };
        if !self.ranges.iter().any(|range| range.start <= address && behind <= range.end) {
            return false;
        }
        bytes.fill(0);
        let first = self.runs.partition_point(|run| end(run) <= address);
        for run in self.runs[first..].iter().take_while(|run| run.base < behind) {
            // Both are offsets within something that is in memory here.
            let to = &mut bytes[run.base.saturating_sub(address) as usize..];
            let from = &run.bytes[address.saturating_sub(run.base) as usize..];
            let length = to.len().min(from.len());
            to[..length].copy_from_slice(&from[..length]);
        }
        true
    }
}

/// Address behind the last byte.
pub(super) fn end(run: &Snippet) -> u64 {
    run.base + run.bytes.len() as u64
}

fn is_zero(page: &[u8]) -> bool {
    page.as_chunks().0.iter().all(|word| u64::from_ne_bytes(*word) == 0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pages_that_are_not_zero_are_kept_and_all_of_it_can_be_read() {
        let mut bytes = vec![0; 0x5000];
        (bytes[0x1fff], bytes[0x2000], bytes[0x4010]) = (1, 2, 3);
        let live = Snippet { base: 0x1000, bytes };
        let mut memory = DumpedMemory::zeroed([0x1000..0x2000, 0x2000..0x6000, 0x9000..0x9000]);
        memory.copy(&live, 0x1000..0x6000);
        assert_eq!(memory.ranges(), std::slice::from_ref(&(0x1000..0x6000)));
        let runs: Vec<_> = memory.runs().iter().map(|run| run.base..end(run)).collect();
        assert_eq!(runs, [0x2000..0x4000, 0x5000..0x6000]);
        for size in [1, 8, 0x1001, 0x3000] {
            for address in (0xf00..0x6100).step_by(0xf) {
                let (mut wanted, mut found) = (vec![9; size], vec![9; size]);
                let is_there = live.read(address, &mut wanted);
                assert_eq!(memory.read(address, &mut found), is_there, "{address:#x}");
                assert!(!is_there || wanted == found, "{address:#x}");
            }
        }
        assert!(!memory.read(u64::MAX, &mut [0; 2]));
    }
}
