//! Names of functions and of data, read when first asked for.

use std::ops::Range;

use object::elf::{SHT_SYMTAB, STT_FUNC, STT_NOTYPE, STT_OBJECT, Sym64};
use object::endian::LittleEndian;
use object::read::elf::{SectionHeader, Sym};

use super::file::{File, LE, range};
use super::segments::{Segment, has_code, has_data};

/// Longest name that is shown, in bytes.
const NAME_LIMIT: usize = 512;

/// The symbols of a program, by ascending address.
#[derive(Default)]
pub(super) struct Symbols {
    functions: Vec<Named>,
    objects: Vec<Named>,
    /// Where the names lie in the file.
    names: Range<usize>,
}

/// A function or an object.
struct Named {
    address: u64,
    /// 0 for a label in assembly, which lasts until the next symbol.
    size: u64,
    /// Offset of the name among the names.
    name: usize,
}

/// A function of a program, or a label in its assembly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name, demangled.
    pub name: String,
    /// Virtual address of its first byte.
    pub address: u64,
    /// Bytes; 0 for a label, which lasts until the next symbol.
    pub size: u64,
}

impl Symbols {
    /// Reads the symbols that lie in what is loaded; none if the table is missing or damaged.
    pub(super) fn read(bytes: &[u8], segments: &[Segment]) -> Self {
        Self::table(bytes, segments).unwrap_or_default()
    }

    fn table(bytes: &[u8], segments: &[Segment]) -> Option<Self> {
        let file = File::open(bytes).ok()?;
        let table = file.sections().iter().find(|section| section.sh_type(LE) == SHT_SYMTAB)?;
        let names = file.sections().get(table.sh_link(LE) as usize)?;
        let symbols: &[Sym64<LittleEndian>] = table.data_as_array(LE, bytes).ok()?;
        let (offset, size) = names.file_range(LE)?;
        Some(Self {
            functions: sorted(symbols.iter().filter(|symbol| is_function(symbol, segments))),
            objects: sorted(symbols.iter().filter(|symbol| is_object(symbol, segments))),
            names: range(bytes, offset, size)?,
        })
    }

    /// The function in which `address` lies, and the offset in it.
    pub(super) fn find(&self, bytes: &[u8], address: u64) -> Option<(String, u64)> {
        self.find_in(&self.functions, bytes, address)
    }

    /// The object in which `address` lies, and the offset in it.
    pub(super) fn find_object(&self, bytes: &[u8], address: u64) -> Option<(String, u64)> {
        self.find_in(&self.objects, bytes, address)
    }

    fn find_in(&self, symbols: &[Named], bytes: &[u8], address: u64) -> Option<(String, u64)> {
        let behind = symbols.partition_point(|symbol| symbol.address <= address);
        let symbol = symbols.get(behind.checked_sub(1)?)?;
        let offset = address - symbol.address;
        let inside = symbol.size == 0 || offset < symbol.size;
        let name = self.name(bytes, symbol.name)?;
        inside.then_some((name, offset))
    }

    /// All functions, by ascending address.
    pub(super) fn all(&self, bytes: &[u8]) -> Vec<Symbol> {
        self.symbols(&self.functions, bytes)
    }

    /// All objects, by ascending address.
    pub(super) fn objects(&self, bytes: &[u8]) -> Vec<Symbol> {
        self.symbols(&self.objects, bytes)
    }

    fn symbols(&self, all: &[Named], bytes: &[u8]) -> Vec<Symbol> {
        let symbol = |named: &Named| {
            let name = self.name(bytes, named.name)?;
            Some(Symbol { name, address: named.address, size: named.size })
        };
        all.iter().filter_map(symbol).collect()
    }

    fn name(&self, bytes: &[u8], at: usize) -> Option<String> {
        let names = bytes.get(self.names.clone())?.get(at..)?;
        let name = &names[..names.len().min(NAME_LIMIT)];
        let end = name.iter().position(|&byte| byte == 0)?;
        let mangled = std::str::from_utf8(&name[..end]).ok().filter(|name| !name.is_empty())?;
        let name = format!("{:#}", rustc_demangle::demangle(mangled));
        (!name.chars().any(char::is_control)).then_some(name)
    }
}

/// By ascending address. Of several names for one address the longest symbol wins, and is found last.
fn sorted<'s>(symbols: impl Iterator<Item = &'s Sym64<LittleEndian>>) -> Vec<Named> {
    let named = |symbol: &Sym64<LittleEndian>| Named {
        address: symbol.st_value(LE),
        size: symbol.st_size(LE),
        name: symbol.st_name(LE) as usize,
    };
    let mut symbols: Vec<_> = symbols.map(named).collect();
    symbols.sort_by_key(|symbol| (symbol.address, symbol.size));
    symbols
}

fn is_function(symbol: &Sym64<LittleEndian>, segments: &[Segment]) -> bool {
    let address = symbol.st_value(LE);
    symbol.st_name(LE) != 0
        && matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE)
        && has_code(segments, address, address.saturating_add(1))
}

fn is_object(symbol: &Sym64<LittleEndian>, segments: &[Segment]) -> bool {
    symbol.st_name(LE) != 0
        && matches!(symbol.st_type(), STT_OBJECT | STT_NOTYPE)
        && has_data(segments, symbol.st_value(LE))
}
