//! The guest's ELF file, compressed.

use std::borrow::Cow;
use std::fmt;

use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

use super::error::malformed;
use super::{DumpError, Part};

/// The largest ELF file that is kept: what [`crate::program`] reads.
const LIMIT: usize = 64 << 20;
/// Level of compression: less makes a dump of the built-in image larger than a megabyte, more saves nothing.
const LEVEL: u8 = 6;

/// An ELF file, compressed once for all dumps of its runs.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the file.
    size: u64,
    /// The file, as RFC 1950 has it (zlib).
    stream: Cow<'static, [u8]>,
}

impl Packed {
    /// Compresses a file.
    pub fn of(payload: &[u8]) -> Self {
        Self::ready(payload.len(), compress_to_vec_zlib(payload, LEVEL))
    }

    /// A file of so many bytes that is compressed already, as RFC 1950 has it.
    pub fn ready(size: usize, stream: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { size: size as u64, stream: stream.into() }
    }

    /// As a note: the size, then the stream.
    pub(super) fn to_note(&self) -> Vec<u8> {
        [self.size.to_le_bytes().as_slice(), &self.stream].concat()
    }

    /// The file in a note.
    pub(super) fn unpack(note: &[u8]) -> Result<Vec<u8>, DumpError> {
        let wrong = |reason: String| malformed(Part::Payload, reason);
        let (size, stream) = note.split_first_chunk().ok_or_else(|| wrong("it is shorter than a size".into()))?;
        let size = u64::from_le_bytes(*size);
        let limit = usize::try_from(size).ok().filter(|size| *size <= LIMIT);
        let limit = limit.ok_or_else(|| wrong(format!("a file of {size} bytes, expected at most {LIMIT}")))?;
        let file = decompress_to_vec_zlib_with_limit(stream, limit);
        let file = file.map_err(|error| wrong(format!("it cannot be unpacked to {size} bytes: {error}")))?;
        match file.len() {
            found if found == limit => Ok(file),
            found => Err(wrong(format!("{found} bytes are in it, expected {size}"))),
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("size", &self.size).field("packed", &self.stream.len()).finish()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn file_comes_back_and_a_lie_about_its_size_is_told() {
        let note = Packed::of(&[7; 10_000]).to_note();
        assert!(note.len() < 200);
        assert_eq!(Packed::unpack(&note).unwrap(), [7; 10_000]);
        for size in [9_999, 10_001, u64::MAX] {
            let lie = [&u64::to_le_bytes(size), &note[8..]].concat();
            assert!(matches!(Packed::unpack(&lie), Err(DumpError::Malformed { part: Part::Payload, .. })), "{size}");
        }
        assert!(Packed::unpack(&note[..7]).is_err() && Packed::unpack(&note[..20]).is_err());
    }
}
