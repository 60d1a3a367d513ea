//! Minimal ELF files around some bytes of code, for tests.

/// A file of executable segments, each with its address; the first byte of the first is the entry point.
pub(crate) fn elf(segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut offset = 64 + 56 * segments.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([segments[0].0, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64, 56, segments.len() as u16, 64, 0, 0].map(u16::to_le_bytes).concat());
    for &(base, code) in segments {
        let size = code.len() as u64;
        file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
        file.extend([offset, base, base, size, size, 1].map(u64::to_le_bytes).concat());
        offset += size;
    }
    segments.iter().for_each(|(_, code)| file.extend(*code));
    file
}
