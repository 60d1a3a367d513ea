//! The smallest image that has code: one segment, one section.

use stallbench_abi::layout::IMAGE;

const SECTION_HEADERS: usize = 64 + 56;
const CODE: usize = SECTION_HEADERS + 3 * 64;
const NAMES: &[u8] = b"\0.text\0.shstrtab\0";

/// An ELF file whose code is `code`.
pub(crate) fn image_of(code: &[u8]) -> Vec<u8> {
    let (size, names) = (code.len() as u64, (CODE + code.len()) as u64);
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0];
    image.extend([IMAGE, 64, SECTION_HEADERS as u64].map(u64::to_le_bytes).concat());
    image.extend([0u16, 0, 64, 56, 1, 64, 3, 2].map(u16::to_le_bytes).concat());
    image.extend([1u32, 5].map(u32::to_le_bytes).concat());
    image.extend([CODE as u64, IMAGE, IMAGE, size, size, 16].map(u64::to_le_bytes).concat());
    image.extend([0; 64]);
    image.extend(section_header(1, 1, 6, IMAGE, CODE as u64, size));
    image.extend(section_header(7, 3, 0, 0, names, NAMES.len() as u64));
    image.extend(code);
    image.extend(NAMES);
    image
}

/// Makes the section of the code shorter, and the segment not.
pub(crate) fn shrink_section(image: &mut [u8], size: u64) {
    image[SECTION_HEADERS + 64 + 32..][..8].copy_from_slice(&size.to_le_bytes());
}

fn section_header(name: u32, kind: u32, flags: u64, address: u64, offset: u64, size: u64) -> Vec<u8> {
    let start = [name, kind].map(u32::to_le_bytes).concat();
    [start, [flags, address, offset, size, 0, 1, 0].map(u64::to_le_bytes).concat()].concat()
}
