//! A small ELF file of the contract, made up field by field so that a test can break any one of them.

use stallbench_abi::image::{CASES_SECTION, Case, Note, RANGES_SECTION, SITES_SECTION, Site, SiteKind, SiteRange};
use stallbench_abi::layout::IMAGE;
use stallbench_abi::{Plain, VERSION, text};

/// A program header.
#[derive(Clone)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) address: u64,
    pub(super) physical: u64,
    pub(super) memory: u64,
    pub(super) bytes: Vec<u8>,
}

/// A section, with its bytes in no segment.
#[derive(Clone)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) kind: u32,
    pub(super) address: u64,
    pub(super) link: u32,
    pub(super) bytes: Vec<u8>,
}

/// The file.
#[derive(Clone)]
pub(super) struct Elf {
    pub(super) class: u8,
    pub(super) data: u8,
    pub(super) kind: u16,
    pub(super) machine: u16,
    pub(super) entry: u64,
    pub(super) headers: Vec<Header>,
    pub(super) sections: Vec<Section>,
}

/// Where the descriptors of the wait sites lie.
pub(super) const SITES: u64 = IMAGE + 0x2000;

impl Elf {
    /// A proper file: a page of code, a page of data, two cases, two wait sites, three ranges, two symbols.
    pub(super) fn proper() -> Self {
        let code = Header::load(5, IMAGE, vec![0x90; 0x100]);
        let data = Header::load(4, SITES, records(&sites()));
        let note = Header { kind: 4, flags: 4, address: 0, physical: 0, memory: 0, bytes: note(VERSION) };
        let strings = b"\0_ZN7payload4wait17h0123456789abcdefE\0stub\0".to_vec();
        let symbols = [symbol(1, IMAGE + 0x20, 0x10), symbol(38, IMAGE + 0x80, 0), symbol(1, 7, 9)].concat();
        let sections = vec![
            Section::records(CASES_SECTION, 0, &cases()),
            Section::records(SITES_SECTION, SITES, &sites()),
            Section::records(RANGES_SECTION, 0, &ranges()),
            Section { name: ".symtab", kind: 2, address: 0, link: 5, bytes: symbols },
            Section { name: ".strtab", kind: 3, address: 0, link: 0, bytes: strings },
        ];
        Self { class: 2, data: 1, kind: 2, machine: 62, entry: IMAGE, headers: vec![code, data, note], sections }
    }

    pub(super) fn section(&mut self, name: &str) -> &mut Section {
        self.sections.iter_mut().find(|section| section.name == name).unwrap()
    }

    /// Header, program headers, contents, section headers.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let names: Vec<u8> =
            self.sections.iter().flat_map(|s| [b"\0", s.name.as_bytes()].concat()).chain([0]).collect();
        let mut sections = vec![Section { name: "", kind: 0, address: 0, link: 0, bytes: vec![] }];
        sections.extend(self.sections.iter().cloned());
        sections.push(Section { name: "", kind: 3, address: 0, link: 0, bytes: names });

        let mut contents = Vec::new();
        let start = 64 + 56 * self.headers.len();
        let (mut headers, mut table) = (Vec::new(), Vec::new());
        for header in &self.headers {
            headers.extend(header.entry((start + contents.len()) as u64));
            contents.extend(&header.bytes);
        }
        let mut name = 1;
        for (index, section) in sections.iter().enumerate() {
            table
                .extend(section.entry(if section.name.is_empty() { 0 } else { name }, (start + contents.len()) as u64));
            name += if index == 0 { 0 } else { section.name.len() as u32 + 1 };
            contents.extend(&section.bytes);
        }
        let mut file = self.file_header((start + contents.len()) as u64, sections.len() as u16);
        file.extend([headers, contents, table].concat());
        file
    }

    fn file_header(&self, section_headers: u64, sections: u16) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', self.class, self.data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([self.kind.to_le_bytes(), self.machine.to_le_bytes()].concat());
        file.extend(1u32.to_le_bytes());
        file.extend([self.entry, 64, section_headers].map(u64::to_le_bytes).concat());
        file.extend(0u32.to_le_bytes());
        let halves = [64, 56, self.headers.len() as u16, 64, sections, sections - 1];
        file.extend(halves.map(u16::to_le_bytes).concat());
        file
    }
}

impl Header {
    pub(super) fn load(flags: u32, address: u64, bytes: Vec<u8>) -> Self {
        Self { kind: 1, flags, address, physical: address, memory: bytes.len() as u64, bytes }
    }

    fn entry(&self, offset: u64) -> Vec<u8> {
        let words = [offset, self.address, self.physical, self.bytes.len() as u64, self.memory, 4];
        [[self.kind, self.flags].map(u32::to_le_bytes).concat(), words.map(u64::to_le_bytes).concat()].concat()
    }
}

impl Section {
    pub(super) fn records<T: Plain>(name: &'static str, address: u64, all: &[T]) -> Self {
        Self { name, kind: 1, address, link: 0, bytes: records(all) }
    }

    fn entry(&self, name: u32, offset: u64) -> Vec<u8> {
        let mut entry = [name, self.kind].map(u32::to_le_bytes).concat();
        entry.extend([0, self.address, offset, self.bytes.len() as u64].map(u64::to_le_bytes).concat());
        entry.extend([self.link, 0].map(u32::to_le_bytes).concat());
        entry.extend([1u64, 0].map(u64::to_le_bytes).concat());
        entry
    }
}

pub(super) fn records<T: Plain>(all: &[T]) -> Vec<u8> {
    let mut bytes = vec![0; T::SIZE * all.len()];
    for (record, bytes) in all.iter().zip(bytes.chunks_exact_mut(T::SIZE)) {
        record.write(bytes).unwrap();
    }
    bytes
}

pub(super) fn note(version: u32) -> Vec<u8> {
    let name = b"stallbench\0\0";
    let sizes = [11, Note::SIZE as u32, 1].map(u32::to_le_bytes).concat();
    [sizes, name.to_vec(), records(&[Note { version, reserved: 0 }])].concat()
}

pub(super) fn cases() -> Vec<Case> {
    let case = |name, entry, knobs| Case {
        name: text::field(name),
        summary: text::field("what happens in it"),
        entry,
        knobs,
        reserved: [0; 3],
    };
    vec![case("set-mtrr", IMAGE + 0x20, 0b101), case("plain", IMAGE + 0x80, 0)]
}

pub(super) fn sites() -> Vec<Site> {
    let site = |function, step, word, kind| Site {
        function: text::field(function),
        step: text::field(step),
        word: text::field(word),
        kind,
        reserved: 0,
    };
    vec![
        site("call_many", "", "flag WAIT of record", SiteKind::COMPLETION),
        site("ipi_handler", "B3", "gate", SiteKind::GATE),
    ]
}

pub(super) fn ranges() -> Vec<SiteRange> {
    let range = |start, end, site: u64| SiteRange { start: IMAGE + start, end: IMAGE + end, site: SITES + site * 96 };
    vec![range(0x60, 0x68, 1), range(0x28, 0x30, 0), range(0x30, 0x38, 1)]
}

fn symbol(name: u32, address: u64, size: u64) -> Vec<u8> {
    [name.to_le_bytes().to_vec(), vec![2, 0, 1, 0], address.to_le_bytes().to_vec(), size.to_le_bytes().to_vec()]
        .concat()
}
