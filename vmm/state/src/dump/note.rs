//! Notes: how they lie in a file, and which ones are stallbench's own.

use std::ops::Range;

use super::error::malformed;
use super::file::u32_at;
use super::{DumpError, Part};

/// Owner of the notes that gdb knows.
pub(super) const CORE: &str = "CORE";
/// Owner of the notes that only stallbench knows.
pub(super) const STALLBENCH: &str = "stallbench";

/// What a note of stallbench holds, by its type. The types are far from those of other owners: readers of cores do not all look at the
/// owner.
pub(super) mod kind {
    /// Version of the layout, then the CRC-32 (IEEE 802.3) of the file in which these four bytes are zero. It never changes its
    /// place in the note, so that any version can tell a damaged file from a newer one.
    pub(in super::super) const VERSION: u32 = 0x5342_0001;
    /// What the dump is of: JSON.
    pub(in super::super) const ABOUT: u32 = 0x5342_0002;
    /// A vCPU: JSON, one note each, by ascending index.
    pub(in super::super) const VCPU: u32 = 0x5342_0003;
    /// Where memory lies, in the guest and in the file.
    pub(in super::super) const MEMORY: u32 = 0x5342_0004;
    /// The guest's ELF file, compressed.
    pub(in super::super) const PAYLOAD: u32 = 0x5342_0005;
}

/// A note of a file.
pub(super) struct Note {
    /// Whether stallbench owns it.
    pub(super) is_own: bool,
    pub(super) kind: u32,
    /// Where its content lies in the file.
    pub(super) content: Range<usize>,
}

/// Appends a note; where its content begins in `out`.
pub(super) fn append(out: &mut Vec<u8>, owner: &str, kind: u32, content: &[u8]) -> usize {
    for word in [owner.len() as u32 + 1, content.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    out.extend(owner.as_bytes());
    out.push(0);
    out.resize(padded(out.len()), 0);
    let at = out.len();
    out.extend(content);
    out.resize(padded(out.len()), 0);
    at
}

/// The notes that lie there.
pub(super) fn read(bytes: &[u8], all: Range<usize>) -> Result<Vec<Note>, DumpError> {
    let (mut at, mut found) = (all.start, Vec::new());
    while at < all.end {
        let note = bytes.get(..all.end).and_then(|bytes| one(bytes, at));
        let wrong = || malformed(Part::Notes, format!("the one at {at:#x} does not end before {:#x}", all.end));
        let note = note.ok_or_else(wrong)?;
        at = all.start + padded(note.content.end - all.start);
        found.push(note);
    }
    Ok(found)
}

/// The note at that offset.
fn one(bytes: &[u8], at: usize) -> Option<Note> {
    let (owner, content, kind) = (u32_at(bytes, at)?, u32_at(bytes, at + 4)?, u32_at(bytes, at + 8)?);
    let start = at.checked_add(12)?;
    let owner = start..start.checked_add(usize::try_from(owner).ok()?)?;
    let start = at.checked_add(padded(owner.end.checked_sub(at)?))?;
    let content = start..start.checked_add(usize::try_from(content).ok()?)?;
    bytes.get(content.clone())?;
    let is_own = bytes.get(owner)?.strip_suffix(b"\0") == Some(STALLBENCH.as_bytes());
    Some(Note { is_own, kind, content })
}

/// Up to the next multiple of 4; where there is none, the largest number.
fn padded(size: usize) -> usize {
    size.checked_next_multiple_of(4).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn notes_come_back_and_one_that_does_not_end_is_refused() {
        let mut out = vec![9; 8];
        append(&mut out, CORE, 7, b"abc");
        append(&mut out, STALLBENCH, kind::ABOUT, b"{}");
        let notes = read(&out, 8..out.len()).unwrap();
        let found: Vec<_> = notes.iter().map(|note| (note.is_own, note.kind, &out[note.content.clone()])).collect();
        assert_eq!(found, [(false, 7, &b"abc"[..]), (true, kind::ABOUT, &b"{}"[..])]);
        for end in [9, 19, 30, out.len() - 3] {
            assert!(read(&out, 8..end).is_err(), "{end}");
        }
        out[8..12].fill(0xff);
        assert!(read(&out, 8..out.len()).is_err());
    }
}
