//! Lines and inlined functions of the guest's source, by the DWARF in its own file; read when they are first asked for.

use std::collections::BTreeMap;
use std::rc::Rc;

use addr2line::{Context, Location};
use gimli::{Dwarf, EndianReader, LittleEndian, SectionId};
use object::{Object, ObjectSection};

/// What DWARF is read from.
pub(crate) type Reader = EndianReader<LittleEndian, Rc<[u8]>>;

/// Prefix of the paths of the built-in image, which is built under it wherever that was.
const PREFIX: &str = "/stallbench/";
/// Nothing is asked of an address from here on: addr2line adds to it, unchecked.
const LAST: u64 = u64::MAX - 4096;
/// Most inlined functions of one address.
const MOST_INLINED: usize = 64;

/// What a file says of its source; nothing where it has no DWARF, or damaged.
pub(crate) struct Source(Option<Context<Reader>>);

/// A function of the source that an address belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Its name, demangled, where the DWARF has one.
    pub(crate) function: Option<String>,
    /// `file:line`.
    pub(crate) line: Option<String>,
}

impl Source {
    pub(crate) fn of(elf: &[u8]) -> Self {
        Self(dwarf(elf).and_then(|dwarf| Context::from_dwarf(dwarf).ok()))
    }

    /// The line of an address.
    pub(crate) fn line(&self, address: u64) -> Option<String> {
        let location = self.0.as_ref().filter(|_| address < LAST)?.find_location(address).ok()??;
        in_words(&location)
    }

    /// Where the code of a line lies: of that line, or the next that has some, in each file of that name; a path's last parts are a
    /// name.
    pub(crate) fn addresses(&self, file: &str, line: u32) -> Vec<u64> {
        let Some(locations) = self.0.as_ref().and_then(|context| context.find_location_range(0, LAST).ok()) else {
            return Vec::new();
        };
        let is = |path: &str| path.strip_suffix(file).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
        let mut nearest: BTreeMap<&str, (u32, Vec<u64>)> = BTreeMap::new();
        for (address, _, location) in locations {
            let (Some(path), Some(at)) = (location.file, location.line) else { continue };
            if at < line || !is(path) {
                continue;
            }
            let (first, addresses) = nearest.entry(path).or_insert((at, Vec::new()));
            if at < *first {
                (*first, *addresses) = (at, Vec::new());
            }
            if at == *first {
                addresses.push(address);
            }
        }
        nearest.into_values().flat_map(|(_, addresses)| addresses).collect()
    }

    /// The functions that an address belongs to, the innermost of the inlined first.
    pub(crate) fn spots(&self, address: u64) -> Vec<Spot> {
        let Some(context) = self.0.as_ref().filter(|_| address < LAST) else { return Vec::new() };
        let Ok(mut frames) = context.find_frames(address).skip_all_loads() else { return Vec::new() };
        let mut spots = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            let function =
                frame.function.as_ref().and_then(|function| function.raw_name().ok().map(|name| demangled(&name)));
            spots.push(Spot { function, line: frame.location.as_ref().and_then(in_words) });
            if spots.len() == MOST_INLINED {
                break;
            }
        }
        spots
    }
}

/// The DWARF sections of an ELF file.
pub(crate) fn dwarf(elf: &[u8]) -> Option<Dwarf<Reader>> {
    let file = object::File::parse(elf).ok()?;
    let section = |id: SectionId| {
        let data = file.section_by_name(id.name()).and_then(|section| section.data().ok()).unwrap_or_default();
        Ok::<_, gimli::Error>(EndianReader::new(Rc::from(data), LittleEndian))
    };
    Dwarf::load(section).ok()
}

/// `file:line`, as short as it can be.
fn in_words(location: &Location<'_>) -> Option<String> {
    let file = location.file.map(|file| file.strip_prefix(PREFIX).unwrap_or(file))?;
    Some(match location.line {
        Some(line) if line != 0 => format!("{file}:{line}"),
        _ => file.to_owned(),
    })
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn instruction_of_the_image_has_a_line_and_its_functions() {
        let program = stallbench_image::program();
        let source = Source::of(program.bytes());
        let spots = source.spots(program.ranges()[0].start);
        let wait = &spots[0];
        assert!(wait.line.as_deref().is_some_and(|line| line.starts_with("guest/rt/src/wait.rs:")), "{spots:?}");
        assert!(spots.iter().all(|spot| spot.function.is_some()), "{spots:?}");
        assert_eq!(source.line(0xdead_0000_0000), None);
        assert!(source.spots(u64::MAX).is_empty());
    }

    #[test]
    fn file_without_lines_has_none() {
        for elf in [&b""[..], b"\x7fELF", &[0; 200]] {
            assert_eq!(Source::of(elf).line(0x1000), None);
        }
    }
}
