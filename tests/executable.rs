//! The smallest static executable: a few bytes of code at one address.

/// Where it is loaded and entered.
pub(crate) const CODE: u64 = 0x10_0000;

/// An ELF file of this code, with zeros behind it up to `memory` bytes where those are more.
pub(crate) fn executable(code: &[u8], memory: usize) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([CODE, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 64, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    file.extend([1_u32, 7].map(u32::to_le_bytes).concat());
    let size = code.len() as u64;
    file.extend([120, CODE, CODE, size, size.max(memory as u64), 1].map(u64::to_le_bytes).concat());
    file.extend(code);
    file
}
