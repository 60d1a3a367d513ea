//! The memory note: where memory lies in the guest, and where what is not zero lies in the file.
//!
//! ```text
//! u64              offset in the file of the first run; the others follow without a gap
//! u32, u32         ranges, runs
//! (u64, u64)...    first address and end of each range, then of each run
//! ```

use std::ops::Range;

use super::error::malformed;
use super::file::{u32_at, u64_at, within};
use super::memory::{DumpedMemory, end};
use super::{DumpError, Part};
use crate::memory::Snippet;
use crate::paging::PAGE;

/// Bytes before the pairs, and of one.
const HEAD: usize = 16;
const PAIR: usize = 16;
/// End of what a guest-physical address can be (SDM 3A 4.1.4: MAXPHYADDR is at most 52).
const ADDRESSES: u64 = 1 << 52;

/// Bytes of the note.
pub(super) fn size(memory: &DumpedMemory) -> usize {
    HEAD + PAIR * (memory.ranges.len() + memory.runs.len())
}

/// The note of memory whose runs lie from that offset on.
pub(super) fn to_note(memory: &DumpedMemory, offset: u64) -> Vec<u8> {
    let mut note = offset.to_le_bytes().to_vec();
    note.extend((memory.ranges.len() as u32).to_le_bytes());
    note.extend((memory.runs.len() as u32).to_le_bytes());
    let ranges = memory.ranges.iter().map(|range| (range.start, range.end));
    let runs = memory.runs.iter().map(|run| (run.base, end(run)));
    for (start, end) in ranges.chain(runs) {
        note.extend(start.to_le_bytes());
        note.extend(end.to_le_bytes());
    }
    note
}

/// Memory as a file has it.
pub(super) fn read(bytes: &[u8], note: &[u8]) -> Result<DumpedMemory, DumpError> {
    let wrong = |reason: &str| malformed(Part::Memory, reason);
    let head = (u64_at(note, 0), u32_at(note, 8), u32_at(note, 12));
    let (Some(mut offset), Some(ranges), Some(runs)) = head else { return Err(wrong("it is shorter than its head")) };
    let pairs = pairs(&note[HEAD..]);
    // Counts of 32 bits each.
    if pairs.len() as u64 != u64::from(ranges) + u64::from(runs) || !note.len().is_multiple_of(PAIR) {
        return Err(wrong("its size is not that of the ranges and runs that it announces"));
    }
    let (ranges, runs) = pairs.split_at(ranges as usize);
    check(ranges, "range")?;
    check(runs, "run")?;
    let mut memory = DumpedMemory { ranges: ranges.to_vec(), runs: Vec::with_capacity(runs.len()) };
    for run in runs {
        let is_inside = |range: &Range<u64>| range.start <= run.start && run.end <= range.end;
        let at = ranges.partition_point(|range| range.end <= run.start);
        if !ranges.get(at).is_some_and(is_inside) {
            return Err(malformed(
                Part::Memory,
                format!("the run {:#x} to {:#x} lies in no range of memory", run.start, run.end),
            ));
        }
        let size = run.end - run.start;
        let content = within(bytes, Part::Memory, offset, size)?;
        memory.runs.push(Snippet { base: run.start, bytes: bytes[content].to_vec() });
        offset += size;
    }
    Ok(memory)
}

fn pairs(bytes: &[u8]) -> Vec<Range<u64>> {
    let (pairs, _) = bytes.as_chunks::<PAIR>();
    let word = |pair: &[u8; PAIR], at| u64_at(pair, at).unwrap_or_default();
    pairs.iter().map(|pair| word(pair, 0)..word(pair, 8)).collect()
}

/// Whole pages, ascending, none empty, none meets another.
fn check(ranges: &[Range<u64>], what: &str) -> Result<(), DumpError> {
    let mut behind = None;
    for range in ranges {
        let is_whole = range.start % PAGE == 0 && range.end % PAGE == 0;
        let is_behind = behind.is_none_or(|end| end < range.start);
        if !is_whole || range.is_empty() || range.end > ADDRESSES || !is_behind {
            let (from, to) = (range.start, range.end);
            let reason = format!("the {what} {from:#x} to {to:#x}: expected whole pages, by ascending address, apart");
            return Err(malformed(Part::Memory, reason));
        }
        behind = Some(range.end);
    }
    Ok(())
}
