//! Memory of a machine, as a dump keeps it.

use std::ops::Range;

use crate::memory::{Memory, Snippet};

/// Guest-physical memory at one moment; what is zero takes no room.
///
/// All of [`ranges`](Self::ranges) can be read; what lies outside of [`runs`](Self::runs) reads as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpedMemory {
    ranges: Vec<Range<u64>>,
    runs: Vec<Snippet>,
}

impl DumpedMemory {
    /// Where there is memory: ascending, none overlaps another, none is empty.
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
        let behind = |end: u64| address.checked_add(bytes.len() as u64).is_some_and(|last| last <= end);
        if !self.ranges.iter().any(|range| range.start <= address && behind(range.end)) {
            return false;
        }
        bytes.fill(0);
        let first = self.runs.partition_point(|run| end(run) <= address);
        for run in self.runs.iter().skip(first) {
            let Some(at) = run.base.checked_sub(address).map_or(Some(0), |at| usize::try_from(at).ok()) else { break };
            let from = usize::try_from(address.saturating_sub(run.base)).unwrap_or(usize::MAX);
            let (Some(to), Some(from)) = (bytes.get_mut(at..), run.bytes.get(from..)) else { break };
            let length = to.len().min(from.len());
            to[..length].copy_from_slice(&from[..length]);
        }
        true
    }
}

fn end(run: &Snippet) -> u64 {
    run.base.saturating_add(run.bytes.len() as u64)
}
