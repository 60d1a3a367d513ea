//! A guest as a static ELF64 file: its code, its data, and where it starts its processors itself, their first code.

use iced_x86::IcedError;

use crate::code::{Built, CODE, Code, DATA, DATA_SIZE, STARTED_AT, TRAMPOLINE};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// Segment flags: all of it may be written and executed.
const FLAGS: u32 = 7;

/// A loadable segment.
struct Segment {
    address: u64,
    bytes: Vec<u8>,
    size: u64,
}

/// The file of a guest with this code.
pub(crate) fn file(code: impl FnOnce(&mut Code) -> Built) -> Result<Vec<u8>, IcedError> {
    let bytes = Code::assemble(64, CODE, code)?;
    let code = Segment { address: CODE, size: bytes.len() as u64, bytes };
    let data = Segment { address: DATA, bytes: Vec::new(), size: DATA_SIZE };
    let bytes = trampoline()?;
    let trampoline = Segment { address: TRAMPOLINE, bytes, size: 0x1000 };
    Ok(with_segments(&[trampoline, code, data]))
}

fn with_segments(segments: &[Segment]) -> Vec<u8> {
    let mut offset = HEADER + PROGRAM_HEADER * segments.len();
    let mut file = header(segments.len());
    for segment in segments {
        file.extend(program_header(segment, offset as u64));
        offset += segment.bytes.len();
    }
    file.extend(segments.iter().flat_map(|segment| &segment.bytes));
    file
}

fn header(segments: usize) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for x86-64.
    header.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    header.extend(1u32.to_le_bytes());
    header.extend([CODE, HEADER as u64, 0].iter().flat_map(|word| word.to_le_bytes()));
    header.extend(0u32.to_le_bytes());
    let sizes = [HEADER, PROGRAM_HEADER, segments, 64, 0, 0].map(|size| size as u16);
    header.extend(sizes.iter().flat_map(|half| half.to_le_bytes()));
    header
}

fn program_header(segment: &Segment, offset: u64) -> Vec<u8> {
    let mut header: Vec<u8> = [1, FLAGS].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    let Segment { address, bytes, size } = segment;
    let words = [offset, *address, *address, bytes.len() as u64, *size, 1];
    header.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    header
}

/// Where a processor that is started begins: real mode, CS at the page. It goes on in long mode, with the page tables of
/// vCPU 0, at the address that vCPU 0 left for it, with its number in RDI.
fn trampoline() -> Result<Vec<u8>, IcedError> {
    use iced_x86::code_asm::{cr0, cr3, cr4, qword_ptr};
    use iced_x86::code_asm::{ds, eax, ebx, ecx, edi, edx, es, rax, ss};
    const TABLES: u64 = 0x80;
    const LONG: u64 = 0xc0;

    let mut bytes = Code::assemble(16, 0, |c| {
        c.cli()?;
        c.xor(eax, eax)?;
        c.mov(ds, iced_x86::code_asm::ax)?;
        c.mov(eax, 1)?;
        c.cpuid()?;
        c.shr(ebx, 24)?;
        c.mov(eax, 0x20)?;
        c.mov(cr4, eax)?;
        c.mov(eax, 0x1000)?;
        c.mov(cr3, eax)?;
        c.mov(ecx, 0xc000_0080u32)?;
        c.xor(edx, edx)?;
        c.mov(eax, 0x900)?;
        c.wrmsr()?;
        c.lgdt(iced_x86::code_asm::ptr(TRAMPOLINE + TABLES + 0x18))?;
        c.mov(eax, 0x8001_0033u32)?;
        c.mov(cr0, eax)?;
        // A far jump with a 32-bit offset to selector 8.
        let target = (TRAMPOLINE + LONG).to_le_bytes();
        c.db(&[0x66, 0xea, target[0], target[1], target[2], target[3], 8, 0])
    })?;
    bytes.resize(TABLES as usize, 0);
    // 64-bit code and data, accessed already, and what LGDT reads.
    bytes.extend([0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].iter().flat_map(|entry| entry.to_le_bytes()));
    bytes.extend(0x17u16.to_le_bytes());
    bytes.extend(((TRAMPOLINE + TABLES) as u32).to_le_bytes());
    bytes.resize(LONG as usize, 0);
    bytes.extend(Code::assemble(64, TRAMPOLINE + LONG, |c| {
        c.mov(eax, 0x10)?;
        c.mov(ds, eax)?;
        c.mov(es, eax)?;
        c.mov(ss, eax)?;
        c.mov(edi, ebx)?;
        c.mov(rax, qword_ptr(STARTED_AT))?;
        c.jmp(rax)
    })?);
    Ok(bytes)
}
