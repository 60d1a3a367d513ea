//! Structures of the guest's source, by the DWARF in its own file: where their fields lie.

use gimli::{AttributeValue, DebuggingInformationEntry, Dwarf, Reader as _, Unit, UnitOffset};

use crate::source::{Reader, dwarf};

/// Most fields of a structure, those of its structures counted in.
const MOST_FIELDS: usize = 512;
/// Most elements of an array that are shown.
const MOST_ELEMENTS: u64 = 64;
/// How deep structures may lie in each other.
const DEEPEST: usize = 12;
/// Longest path of a structure.
const LONGEST: usize = 512;

/// The structures of a file; none where it has no DWARF, or damaged.
pub(crate) struct Types {
    dwarf: Option<Dwarf<Reader>>,
    units: Vec<Unit<Reader>>,
    all: Vec<Structure>,
}

/// A structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Structure {
    /// Its path: `stallbench_payload::call::record::CallSingle`.
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    at: Place,
}

/// Where an entry lies: unit, and offset in it.
type Place = (usize, UnitOffset<usize>);

/// A number in a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// How it is reached: `single.flags`, `words[2]`.
    pub(crate) path: String,
    /// Where it lies in the structure.
    pub(crate) offset: u64,
    /// Bytes: 1, 2, 4, or 8.
    pub(crate) size: u64,
}

impl Types {
    pub(crate) fn of(elf: &[u8]) -> Self {
        let Some(dwarf) = dwarf(elf) else { return Self { dwarf: None, units: Vec::new(), all: Vec::new() } };
        let mut units = Vec::new();
        let mut headers = dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            units.extend(dwarf.unit(header).ok());
        }
        let mut types = Self { dwarf: Some(dwarf), units, all: Vec::new() };
        let mut all: Vec<_> =
            (0..types.units.len()).flat_map(|unit| types.structures(unit).unwrap_or_default()).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all.dedup_by(|a, b| (&a.path, a.size) == (&b.path, b.size));
        types.all = all;
        types
    }

    /// Those that have a name, by path.
    pub(crate) fn all(&self) -> &[Structure] {
        &self.all
    }

    /// The structures of a path, or of the last parts of one.
    pub(crate) fn named(&self, name: &str) -> Vec<&Structure> {
        let is = |structure: &&Structure| {
            structure.path.strip_suffix(name).is_some_and(|path| path.is_empty() || path.ends_with("::"))
        };
        self.all.iter().filter(is).collect()
    }

    /// The numbers that a structure consists of, by ascending offset.
    pub(crate) fn fields(&self, structure: &Structure) -> Vec<Field> {
        let mut fields = Vec::new();
        self.flatten(structure.at, &Prefix { path: String::new(), offset: 0, depth: 0 }, &mut fields);
        fields.retain(|field| field.offset.checked_add(field.size).is_some_and(|end| end <= structure.size));
        fields.sort_by_key(|field| field.offset);
        fields
    }

    /// The structures of a unit.
    fn structures(&self, number: usize) -> Option<Vec<Structure>> {
        let unit = self.units.get(number)?;
        let (mut found, mut path): (Vec<Structure>, Vec<String>) = Default::default();
        let mut entries = unit.entries();
        while let Ok(Some(entry)) = entries.next_dfs() {
            path.truncate(usize::try_from(entry.depth()).ok()?.saturating_sub(1));
            path.push(self.name(unit, entry).unwrap_or_default());
            let size = entry.attr_value(gimli::DW_AT_byte_size).and_then(|size| size.udata_value());
            if let (gimli::DW_TAG_structure_type, Some(size @ 1..)) = (entry.tag(), size) {
                let path =
                    path.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("::");
                let named = !path.is_empty() && path.len() <= LONGEST;
                found.extend(named.then(|| Structure { path, size, at: (number, entry.offset()) }));
            }
        }
        Some(found)
    }

    fn name(&self, unit: &Unit<Reader>, entry: &DebuggingInformationEntry<Reader>) -> Option<String> {
        if !matches!(entry.tag(), gimli::DW_TAG_namespace | gimli::DW_TAG_structure_type | gimli::DW_TAG_member) {
            return None;
        }
        let name = self.dwarf.as_ref()?.attr_string(unit, entry.attr_value(gimli::DW_AT_name)?).ok()?;
        Some(name.to_string_lossy().ok()?.into_owned())
    }

    /// Where the type of an entry lies.
    fn of_type(&self, unit: usize, entry: &DebuggingInformationEntry<Reader>) -> Option<Place> {
        match entry.attr_value(gimli::DW_AT_type)? {
            AttributeValue::UnitRef(offset) => Some((unit, offset)),
            AttributeValue::DebugInfoRef(offset) => {
                let within =
                    |(number, unit): (usize, &Unit<Reader>)| Some((number, offset.to_unit_offset(&unit.header)?));
                self.units.iter().enumerate().find_map(within)
            }
            _ => None,
        }
    }

    fn flatten(&self, (number, offset): Place, prefix: &Prefix, fields: &mut Vec<Field>) -> Option<()> {
        let unit = self.units.get(number)?;
        let entry = unit.entry(offset).ok()?;
        if prefix.depth > DEEPEST || fields.len() >= MOST_FIELDS {
            return None;
        }
        match entry.tag() {
            gimli::DW_TAG_structure_type => self.flatten_members(number, offset, prefix, fields),
            gimli::DW_TAG_array_type => self.flatten_array(number, offset, prefix, fields),
            gimli::DW_TAG_base_type | gimli::DW_TAG_enumeration_type | gimli::DW_TAG_pointer_type => {
                let size = entry.attr_value(gimli::DW_AT_byte_size).and_then(|size| size.udata_value()).unwrap_or(8);
                let field = Field { path: prefix.path.clone(), offset: prefix.offset, size };
                fields.extend(matches!(size, 1 | 2 | 4 | 8).then_some(field));
                Some(())
            }
            _ => None,
        }
    }

    /// The members of a structure; the only one of a wrapper goes by the wrapper's name.
    fn flatten_members(
        &self,
        number: usize,
        offset: UnitOffset<usize>,
        prefix: &Prefix,
        fields: &mut Vec<Field>,
    ) -> Option<()> {
        let unit = self.units.get(number)?;
        let mut members = Vec::new();
        let mut entries = unit.entries_at_offset(offset).ok()?;
        entries.next_dfs().ok()?;
        while let Ok(Some(entry)) = entries.next_dfs() {
            if entry.depth() <= 0 || members.len() >= MOST_FIELDS {
                break;
            }
            if entry.depth() == 1 && entry.tag() == gimli::DW_TAG_member {
                let at =
                    entry.attr_value(gimli::DW_AT_data_member_location).and_then(|at| at.udata_value()).unwrap_or(0);
                let kind = self.of_type(number, entry)?;
                members.push((self.name(unit, entry).unwrap_or_default(), at, kind, self.size_of(kind)));
            }
        }
        let sized = members.iter().filter(|(.., size)| *size > 0).count();
        for (name, at, kind, _) in members.into_iter().filter(|(.., size)| *size > 0) {
            let path = match (prefix.path.as_str(), sized) {
                ("", _) => name,
                (_, 1) => prefix.path.clone(),
                (path, _) => format!("{path}.{name}"),
            };
            let prefix = Prefix { path, offset: prefix.offset.checked_add(at)?, depth: prefix.depth + 1 };
            self.flatten(kind, &prefix, fields);
        }
        Some(())
    }

    fn flatten_array(
        &self,
        number: usize,
        offset: UnitOffset<usize>,
        prefix: &Prefix,
        fields: &mut Vec<Field>,
    ) -> Option<()> {
        let unit = self.units.get(number)?;
        let element = self.of_type(number, &unit.entry(offset).ok()?)?;
        let size = self.size_of(element);
        for index in 0..self.length(number, offset)?.min(MOST_ELEMENTS) {
            let offset = prefix.offset.checked_add(index.checked_mul(size)?)?;
            let prefix = Prefix { path: format!("{}[{index}]", prefix.path), offset, depth: prefix.depth + 1 };
            self.flatten(element, &prefix, fields);
        }
        Some(())
    }

    /// Elements of an array.
    fn length(&self, number: usize, offset: UnitOffset<usize>) -> Option<u64> {
        let mut entries = self.units.get(number)?.entries_at_offset(offset).ok()?;
        entries.next_dfs().ok()?;
        let range = entries.next_dfs().ok()?.filter(|entry| entry.tag() == gimli::DW_TAG_subrange_type)?;
        let count = range.attr_value(gimli::DW_AT_count).and_then(|count| count.udata_value());
        count.or_else(|| range.attr_value(gimli::DW_AT_upper_bound)?.udata_value()?.checked_add(1))
    }

    /// Bytes of a type; of an array 0 where it has no elements.
    fn size_of(&self, (number, offset): Place) -> u64 {
        let entry = self.units.get(number).and_then(|unit| unit.entry(offset).ok());
        let Some(entry) = entry else { return 0 };
        let size = entry.attr_value(gimli::DW_AT_byte_size).and_then(|size| size.udata_value());
        match entry.tag() {
            gimli::DW_TAG_array_type => self.length(number, offset).unwrap_or(0),
            gimli::DW_TAG_pointer_type => size.unwrap_or(8),
            _ => size.unwrap_or(0),
        }
    }
}

/// Where a field of a field lies.
struct Prefix {
    path: String,
    offset: u64,
    depth: usize,
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn structure_of_the_payload_has_its_fields_where_they_lie() {
        let types = Types::of(stallbench_image::PAYLOAD);
        let records = types.named("record::CallSingle");
        let fields = types.fields(records.first().expect("the payload has records"));
        let field = |path: &str| fields.iter().find(|field| field.path == path).map(|field| (field.offset, field.size));
        assert_eq!(field("flags").map(|(_, size)| size), Some(4), "{fields:?}");
        assert_eq!(field("number").map(|(_, size)| size), Some(8), "{fields:?}");
        let links = fields.iter().filter(|field| field.path.starts_with("link")).count();
        assert!(links > 0 && fields[0].offset == 0, "{fields:?}");
    }

    #[test]
    fn file_without_types_has_none() {
        assert!(Types::of(b"").all().is_empty());
        assert!(Types::of(&stallbench_image::PAYLOAD[..4096]).all().is_empty());
    }
}
