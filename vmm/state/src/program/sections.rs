//! The records that a program keeps in sections of its own: cases, wait sites, and the code of the sites.

use std::collections::HashSet;

use object::read::elf::SectionHeader;
use stallbench_abi::image::{Case, Edge, Site, SiteRange};
use stallbench_abi::pause::Point;
use stallbench_abi::{Plain, text};

use super::error::section_name;
use super::file::{File, LE};
use super::segments::{Segment, has_code};
use super::{CaseInfo, PointInfo, ProgramError, Record, SiteInfo};

/// The cases, at least one, each with a name of its own and an entry in code.
pub(super) fn cases(file: &File<'_>, segments: &[Segment]) -> Result<Vec<CaseInfo>, ProgramError> {
    let (_, records) = records::<Case>(file, Record::Case)?.ok_or(ProgramError::SectionMissing(Record::Case))?;
    let cases = records.iter().enumerate().map(case).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    for case in &cases {
        if !names.insert(&case.name) {
            return Err(ProgramError::CaseTwice { name: case.name.clone() });
        }
        if !has_code(segments, case.entry, case.entry.saturating_add(1)) {
            return Err(ProgramError::CaseEntry { name: case.name.clone(), entry: case.entry });
        }
    }
    if cases.is_empty() { Err(ProgramError::SectionMissing(Record::Case)) } else { Ok(cases) }
}

/// The wait sites; a program without any has no section.
pub(super) fn sites(file: &File<'_>) -> Result<Vec<SiteInfo>, ProgramError> {
    let Some((address, records)) = records::<Site>(file, Record::Site)? else { return Ok(Vec::new()) };
    if address.checked_add((records.len() * Site::SIZE) as u64).is_none() {
        return Err(ProgramError::SectionOutside(Record::Site));
    }
    records.iter().enumerate().map(|(index, site)| describe(index, address, site)).collect()
}

/// The pause points, each with a name of its own; a program without any has no section.
pub(super) fn points(file: &File<'_>) -> Result<Vec<PointInfo>, ProgramError> {
    let Some((base, records)) = records::<Point>(file, Record::Point)? else { return Ok(Vec::new()) };
    let mut names = HashSet::new();
    let mut points = Vec::with_capacity(records.len());
    for (index, point) in records.iter().enumerate() {
        let bad = ProgramError::Text { section: Record::Point, index, field: "name" };
        let name = words(&point.name).filter(|name| !name.is_empty()).ok_or(bad)?;
        if !names.insert(name.clone()) {
            return Err(ProgramError::PointTwice { name });
        }
        let address = base.checked_add((index * Point::SIZE) as u64);
        points.push(PointInfo { address: address.ok_or(ProgramError::SectionOutside(Record::Point))?, name });
    }
    Ok(points)
}

/// The code of the wait sites, by ascending address.
pub(super) fn ranges(
    file: &File<'_>,
    segments: &[Segment],
    sites: &[SiteInfo],
) -> Result<Vec<SiteRange>, ProgramError> {
    let Some((_, mut ranges)) = records::<SiteRange>(file, Record::Range)? else { return Ok(Vec::new()) };
    for &SiteRange { start, end, site } in &ranges {
        if !has_code(segments, start, end) {
            return Err(ProgramError::Range { start, end });
        }
        if sites.binary_search_by_key(&site, |site| site.address).is_err() {
            return Err(ProgramError::RangeSite { start, site });
        }
    }
    ranges.sort_by_key(|range| range.start);
    match ranges.windows(2).find(|pair| pair[1].start < pair[0].end) {
        Some(pair) => Err(ProgramError::RangesOverlap { first: pair[0].start, second: pair[1].start }),
        None => Ok(ranges),
    }
}

/// The edges of the procedure that programs MTRRs; a program that has no such procedure, or does not tell, has no section.
pub(super) fn edges(file: &File<'_>, segments: &[Segment]) -> Result<Vec<Edge>, ProgramError> {
    let edges = records::<Edge>(file, Record::Edge)?.map_or_else(Vec::new, |(_, edges)| edges);
    match edges.iter().find(|edge| !has_code(segments, edge.address, edge.address.saturating_add(1))) {
        Some(&Edge { address, .. }) => Err(ProgramError::Edge { address }),
        None => Ok(edges),
    }
}

/// The address of a section and the records in it; `None` where the file has no such section.
fn records<T: Plain>(file: &File<'_>, record: Record) -> Result<Option<(u64, Vec<T>)>, ProgramError> {
    let mut found = file.sections_named(section_name(record));
    let Some(section) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(ProgramError::SectionTwice(record));
    }
    // A section without bytes in the file (SHT_NOBITS) reads as an empty one.
    let bytes = section.data(LE, file.bytes).map_err(|_| ProgramError::SectionOutside(record))?;
    if bytes.len() as u64 != section.sh_size(LE) {
        return Err(ProgramError::SectionOutside(record));
    }
    if !bytes.len().is_multiple_of(T::SIZE) {
        return Err(ProgramError::SectionSize { section: record, size: bytes.len(), record_size: T::SIZE });
    }
    Ok(Some((section.sh_addr(LE), bytes.chunks_exact(T::SIZE).filter_map(T::read).collect())))
}

fn case((index, case): (usize, &Case)) -> Result<CaseInfo, ProgramError> {
    let bad = |field| ProgramError::Text { section: Record::Case, index, field };
    let name = words(&case.name).filter(|name| is_kebab_case(name)).ok_or(bad("name"))?;
    let summary = words(&case.summary).ok_or(bad("summary"))?;
    Ok(CaseInfo { name, summary, entry: case.entry, knobs: case.knobs })
}

fn describe(index: usize, base: u64, site: &Site) -> Result<SiteInfo, ProgramError> {
    let bad = |field| ProgramError::Text { section: Record::Site, index, field };
    let function = words(&site.function).filter(|name| !name.is_empty()).ok_or(bad("function"))?;
    let step = words(&site.step).ok_or(bad("step"))?;
    let word = words(&site.word).ok_or(bad("word"))?;
    Ok(SiteInfo { address: base + (index * Site::SIZE) as u64, function, step, word, kind: site.kind })
}

/// The text of a field, if all of it is text that can be printed: it ends up on terminals.
fn words(field: &[u8]) -> Option<String> {
    let written = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let text = text::of(field);
    (text.len() == written && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

fn is_kebab_case(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(allowed)
}
