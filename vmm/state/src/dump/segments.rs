//! What gdb is told of memory: every page where vCPU 0 maps it, and where it maps none, at its physical address.
//!
//! gdb takes memory without content in a core for absent. So pages of zeros have content too: all of them the same block of the
//! file.

use std::ops::Range;

use super::file::MOST_HEADERS;
use super::memory::{DumpedMemory, end};
use crate::paging::Mapping;

/// Least and greatest size of the block of zeros: a file can announce any amount of memory.
const LEAST_BLOCK: u64 = 64 << 10;
const LARGEST_BLOCK: u64 = 4 << 20;
/// Program headers that zeros take, about, as long as the block is not the greatest.
const ZERO_HEADERS: u64 = 1024;

/// A piece of memory that gdb sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) linear: u64,
    pub(super) physical: u64,
    pub(super) size: u64,
    /// Where its content lies behind the first run; else it is zeros.
    pub(super) run: Option<u64>,
}

/// The size of the block of zeros that these segments want; 0: there are none.
pub(super) fn zero_block(memory: &DumpedMemory) -> u64 {
    let zeros: u64 = pieces(memory).iter().filter(|piece| piece.run.is_none()).map(|piece| piece.size).sum();
    match zeros {
        0 => 0,
        _ => (zeros / ZERO_HEADERS).next_power_of_two().clamp(LEAST_BLOCK, LARGEST_BLOCK),
    }
}

/// All of memory, as gdb sees it; no more than one core can hold.
pub(super) fn segments(memory: &DumpedMemory, mappings: &[Mapping]) -> Vec<Segment> {
    let (pieces, block) = (pieces(memory), zero_block(memory));
    let unmapped = unmapped(memory, mappings);
    let seen = mappings.iter().chain(&unmapped).flat_map(|mapping| seen(&pieces, mapping));
    seen.flat_map(|segment| in_blocks(segment, block)).take(MOST_HEADERS).collect()
}

/// All of memory at its physical address, by ascending address.
fn pieces(memory: &DumpedMemory) -> Vec<Segment> {
    let piece = |at: Range<u64>, run| {
        let (linear, size) = (at.start, at.end - at.start);
        Segment { linear, physical: linear, size, run }
    };
    let (mut pieces, mut offset) = (Vec::new(), 0);
    let mut runs = memory.runs.iter().peekable();
    for range in &memory.ranges {
        let mut at = range.start;
        while let Some(run) = runs.next_if(|run| run.base < range.end) {
            pieces.push(piece(at..run.base, None));
            pieces.push(piece(run.base..end(run), Some(offset)));
            offset += run.bytes.len() as u64;
            at = end(run);
        }
        pieces.push(piece(at..range.end, None));
    }
    pieces.retain(|piece| piece.size > 0);
    pieces
}

/// What of memory can be seen through a mapping.
fn seen(pieces: &[Segment], mapping: &Mapping) -> impl Iterator<Item = Segment> {
    let &Mapping { linear, physical, size } = mapping;
    let behind = physical.saturating_add(size);
    let first = pieces.partition_point(|piece| piece.physical + piece.size <= physical);
    pieces[first..].iter().take_while(move |piece| piece.physical < behind).map(move |piece| {
        let from = piece.physical.max(physical);
        let to = (piece.physical + piece.size).min(behind);
        let run = piece.run.map(|run| run + (from - piece.physical));
        Segment { linear: linear.wrapping_add(from - physical), physical: from, size: to - from, run }
    })
}

/// Zeros, no more than a block at a time.
fn in_blocks(segment: Segment, block: u64) -> impl Iterator<Item = Segment> {
    let step = if segment.run.is_some() { segment.size } else { block };
    (0..segment.size).step_by(step as usize).map(move |at| Segment {
        linear: segment.linear.wrapping_add(at),
        physical: segment.physical + at,
        size: step.min(segment.size - at),
        run: segment.run,
    })
}

/// Memory that no linear address leads to, as if it were mapped to its own address, unless something else is mapped there.
fn unmapped(memory: &DumpedMemory, mappings: &[Mapping]) -> Vec<Mapping> {
    let reached = mappings.iter().map(|mapping| mapping.physical..mapping.physical.saturating_add(mapping.size));
    let taken = mappings.iter().map(|mapping| mapping.linear..mapping.linear.saturating_add(mapping.size));
    let mut out: Vec<_> = reached.chain(taken).collect();
    out.sort_by_key(|range| range.start);
    let mut left = Vec::new();
    for range in &memory.ranges {
        let mut at = range.start;
        for out in out.iter().filter(|out| out.end > range.start && out.start < range.end) {
            left.push(at..out.start);
            at = at.max(out.end);
        }
        left.push(at..range.end);
    }
    left.retain(|range| !range.is_empty());
    left.into_iter().map(|at| Mapping { linear: at.start, physical: at.start, size: at.end - at.start }).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::memory::Snippet;

    fn memory() -> DumpedMemory {
        let runs =
            vec![Snippet { base: 0x2000, bytes: vec![1; 0x2000] }, Snippet { base: 0x9000, bytes: vec![2; 0x1000] }];
        DumpedMemory { ranges: vec![0x0..0x5000, 0x8000..0x4_0000], runs }
    }

    fn of(mappings: &[(u64, u64, u64)]) -> Vec<(u64, u64, u64, Option<u64>)> {
        let mapping = |&(linear, physical, size): &_| Mapping { linear, physical, size };
        let mappings: Vec<_> = mappings.iter().map(mapping).collect();
        segments(&memory(), &mappings).iter().map(|s| (s.linear, s.physical, s.size, s.run)).collect()
    }

    #[test]
    fn memory_without_tables_lies_at_its_physical_address() {
        let wanted = [
            (0, 0, 0x2000, None),
            (0x2000, 0x2000, 0x2000, Some(0)),
            (0x4000, 0x4000, 0x1000, None),
            (0x8000, 0x8000, 0x1000, None),
            (0x9000, 0x9000, 0x1000, Some(0x2000)),
            (0xa000, 0xa000, 0x1_0000, None),
            (0x1_a000, 0x1_a000, 0x1_0000, None),
            (0x2_a000, 0x2_a000, 0x1_0000, None),
            (0x3_a000, 0x3_a000, 0x6000, None),
        ];
        assert_eq!(of(&[]), wanted);
    }

    #[test]
    fn memory_of_any_size_takes_no_more_than_the_largest_block_and_the_most_headers() {
        let memory = DumpedMemory { ranges: std::iter::once(0..1 << 52).collect(), runs: Vec::new() };
        assert_eq!(zero_block(&memory), LARGEST_BLOCK);
        assert_eq!(segments(&memory, &[]).len(), MOST_HEADERS);
    }

    #[test]
    fn mapped_memory_lies_where_it_is_mapped_and_nowhere_else() {
        let high = 0xffff_ffff_8000_0000;
        let found = of(&[(0x9000, 0x3000, 0x1000), (high, 0x3000, 0x7000)]);
        assert_eq!(
            found,
            [
                (0x9000, 0x3000, 0x1000, Some(0x1000)),
                (high, 0x3000, 0x1000, Some(0x1000)),
                (high + 0x1000, 0x4000, 0x1000, None),
                (high + 0x5000, 0x8000, 0x1000, None),
                (high + 0x6000, 0x9000, 0x1000, Some(0x2000)),
                (0, 0, 0x2000, None),
                (0x2000, 0x2000, 0x1000, Some(0)),
                (0xa000, 0xa000, 0x1_0000, None),
                (0x1_a000, 0x1_a000, 0x1_0000, None),
                (0x2_a000, 0x2_a000, 0x1_0000, None),
                (0x3_a000, 0x3_a000, 0x6000, None),
            ]
        );
    }
}
