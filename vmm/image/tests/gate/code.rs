//! Where the code of an image lies, and in which mode the processor runs it.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use object::elf::{FileHeader64, PF_X, PT_LOAD, SHF_ALLOC, SHF_EXECINSTR, SectionFlags as ElfSectionFlags};
use object::endian::LittleEndian;
use object::read::elf::{ElfFile, FileHeader, ProgramHeader};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags};
use stallbench_abi::layout::TRAMPOLINE;

type File<'a> = ElfFile<'a, FileHeader64<LittleEndian>>;

/// Symbols of the trampoline: a processor comes to it in real mode, goes to 64-bit mode at the first, and the second ends the
/// code.
const TRAMPOLINE_64: &str = "stallbench_trampoline_64";
const TRAMPOLINE_DATA: &str = "stallbench_trampoline_gdt";

/// A stretch of code.
pub(crate) struct Piece<'a> {
    file: File<'a>,
    address: u64,
    bytes: &'a [u8],
    bits: u32,
}

impl Piece<'_> {
    pub(crate) fn instructions(&self) -> impl Iterator<Item = Instruction> + '_ {
        Decoder::with_ip(self.bits, self.bytes, self.address, DecoderOptions::NONE).into_iter()
    }

    pub(crate) fn describe(&self, instruction: &Instruction, reason: String) -> String {
        let mut text = String::new();
        IntelFormatter::new().format(instruction, &mut text);
        format!("{:#x} {}: {text}: {reason}", instruction.ip(), function(&self.file, instruction.ip()))
    }
}

fn function(file: &File<'_>, address: u64) -> String {
    let holds = |start: u64, size: u64| (start..start + size).contains(&address);
    let symbol = file.symbols().find(|symbol| holds(symbol.address(), symbol.size()));
    symbol.and_then(|symbol| symbol.name().ok().map(str::to_owned)).unwrap_or_else(|| "?".into())
}

fn parse(image: &[u8]) -> File<'_> {
    File::parse(image).expect("an ELF file")
}

/// All code of an image.
pub(crate) fn pieces(image: &[u8]) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for (address, bytes) in code_sections(image) {
        if (address..address + bytes.len() as u64).contains(&TRAMPOLINE) {
            pieces.extend(trampoline(image, address, bytes));
        } else {
            pieces.push(Piece { file: parse(image), address, bytes, bits: 64 });
        }
    }
    pieces
}

fn code_sections(image: &[u8]) -> Vec<(u64, &[u8])> {
    let file = parse(image);
    let sections = file.sections().filter(|section| has_flag(section, SHF_EXECINSTR));
    sections.map(|section| (section.address(), section.data().expect("bytes of a section"))).collect()
}

fn has_flag<'a>(section: &impl ObjectSection<'a>, flag: ElfSectionFlags) -> bool {
    matches!(section.flags(), SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(flag))
}

fn trampoline<'a>(image: &'a [u8], address: u64, bytes: &'a [u8]) -> [Piece<'a>; 2] {
    let at = |name| {
        let file = parse(image);
        let symbol =
            file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap_or_else(|| panic!("no symbol {name}"));
        (symbol.address() - address) as usize
    };
    let (long_mode, data) = (at(TRAMPOLINE_64), at(TRAMPOLINE_DATA));
    let piece = |range: std::ops::Range<usize>, bits| Piece {
        file: parse(image),
        address: address + range.start as u64,
        bytes: &bytes[range],
        bits,
    };
    [piece(0..long_mode, 16), piece(long_mode..data, 64)]
}

/// Bytes that can be executed but lie in no section, so that nobody knows what they are. Zeros pad. A table between code, as
/// the interrupt descriptors are, is a section that is not code.
pub(crate) fn hidden(image: &[u8]) -> Vec<String> {
    let file = parse(image);
    let loaded = file.sections().filter(|section| has_flag(section, SHF_ALLOC));
    let sections: Vec<_> = loaded.map(|section| section.address()..section.address() + section.size()).collect();
    let covered = |address: u64| sections.iter().any(|section| section.contains(&address));
    let mut found = Vec::new();
    for (start, bytes) in executable_segments(image) {
        let mut bytes = (start..).zip(bytes);
        let first = bytes.find(|&(address, &byte)| byte != 0 && !covered(address));
        found.extend(first.map(|(address, _)| format!("{address:#x}: executable, but in no section")));
    }
    found
}

fn executable_segments(image: &[u8]) -> Vec<(u64, &[u8])> {
    let header = FileHeader64::<LittleEndian>::parse(image).expect("an ELF file");
    let headers = header.program_headers(LittleEndian, image).expect("program headers").iter();
    let executable =
        headers.filter(|header| header.p_type(LittleEndian) == PT_LOAD && header.p_flags(LittleEndian).contains(PF_X));
    executable
        .map(|header| (header.p_vaddr(LittleEndian), header.data(LittleEndian, image).expect("bytes of a segment")))
        .collect()
}
