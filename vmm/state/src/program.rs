//! A guest program: an ELF file of the contract, read without running it.
//!
//! Owns what the file says: segments, entry, cases, wait sites with their code, symbols. It does not load anything. A file may
//! come from anywhere, so nothing in it is believed: each number is checked before it is used, work and memory are bounded by
//! the file's size, and whatever is wrong is named with the value that was found. Plain data, used from any thread.

mod error;
mod file;
mod notes;
mod plain;
mod sections;
mod segments;
mod symbols;

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

use stallbench_abi::image::{Edge, EdgeKind, SiteKind, SiteRange};

pub use error::{Dynamic, ProgramError, Record};
pub use plain::{Loaded, Payload, PlainProgram, Taken};
pub use segments::Segment;
pub use symbols::Symbol;
use symbols::Symbols;

/// A program that keeps the contract.
pub struct Program {
    bytes: Cow<'static, [u8]>,
    entry: u64,
    segments: Vec<Segment>,
    cases: Vec<CaseInfo>,
    sites: Vec<SiteInfo>,
    points: Vec<PointInfo>,
    ranges: Vec<SiteRange>,
    edges: Vec<Edge>,
    symbols: OnceLock<Symbols>,
}

/// A case that a program declares. Its place in [`Program::cases`] is the number that the boot block wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseInfo {
    /// Name, in kebab-case.
    pub name: String,
    /// What happens in it, one line.
    pub summary: String,
    /// Address of the function that every vCPU calls.
    pub entry: u64,
    /// The knobs that it takes, a bit for each [number](stallbench_abi::knob::Knob::number).
    pub knobs: u64,
}

impl CaseInfo {
    /// Whether it takes the knob of that [number](stallbench_abi::knob::Knob::number).
    pub fn takes(&self, knob: u32) -> bool {
        self.knobs.checked_shr(knob).is_some_and(|bits| bits & 1 == 1)
    }
}

/// A place in a program that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteInfo {
    /// Address of its [descriptor](stallbench_abi::image::Site), by which a vCPU names it.
    pub address: u64,
    /// The function of the protocol that waits.
    pub function: String,
    /// Its step, where the protocol numbers them; else empty.
    pub step: String,
    /// What the waited word is.
    pub word: String,
    /// What the wait is for.
    pub kind: SiteKind,
}

/// A place in a program where a vCPU can be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointInfo {
    /// Address of its [descriptor](stallbench_abi::pause::Point), by which the boot block names it.
    pub address: u64,
    /// Its name, `function/step`.
    pub name: String,
}

impl Program {
    /// Reads an ELF file.
    ///
    /// # Errors
    ///
    /// [`ProgramError`] names what is wrong with the file, and the value found. Another version of the contract comes before
    /// everything that a version may lay out in its own way.
    pub fn parse(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ProgramError> {
        let bytes = bytes.into();
        let file = file::File::open(&bytes)?;
        notes::check_version(&file)?;
        let segments = segments::read(&file)?;
        let entry = segments::entry(&file, &segments)?;
        let cases = sections::cases(&file, &segments)?;
        let sites = sections::sites(&file)?;
        let ranges = sections::ranges(&file, &segments, &sites)?;
        let points = sections::points(&file)?;
        let edges = sections::edges(&file, &segments)?;
        Ok(Self { bytes, entry, segments, cases, sites, points, ranges, edges, symbols: OnceLock::new() })
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Address at which vCPU 0 starts.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// What is loaded, by ascending address; at least one, none overlaps another.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The cases, in the order of their numbers; at least one.
    pub fn cases(&self) -> &[CaseInfo] {
        &self.cases
    }

    /// The wait sites, by ascending address of their descriptors.
    pub fn sites(&self) -> &[SiteInfo] {
        &self.sites
    }

    /// The pause points, by ascending address of their descriptors; each name once.
    pub fn points(&self) -> &[PointInfo] {
        &self.points
    }

    /// The code of the wait sites, by ascending address; none overlaps another.
    pub fn ranges(&self) -> &[SiteRange] {
        &self.ranges
    }

    /// Where a vCPU enters or leaves the procedure that programs MTRRs; nothing where the program does not tell.
    pub fn edges(&self, kind: EdgeKind) -> Vec<u64> {
        self.edges.iter().filter(|edge| edge.kind == kind).map(|edge| edge.address).collect()
    }

    /// The case of that name, and its number.
    pub fn case(&self, name: &str) -> Option<(usize, &CaseInfo)> {
        self.cases.iter().enumerate().find(|(_, case)| case.name == name)
    }

    /// The wait site whose descriptor lies at exactly that address.
    pub fn site_at(&self, descriptor: u64) -> Option<&SiteInfo> {
        let index = self.sites.binary_search_by_key(&descriptor, |site| site.address).ok()?;
        self.sites.get(index)
    }

    /// The wait site in whose spin that instruction lies.
    pub fn site_of_rip(&self, rip: u64) -> Option<&SiteInfo> {
        let behind = self.ranges.partition_point(|range| range.start <= rip);
        let range = self.ranges.get(behind.checked_sub(1)?)?;
        (rip < range.end).then(|| self.site_at(range.site))?
    }

    /// The function in which an address lies, demangled, and the offset in it.
    ///
    /// Symbols are read when this is first called. A file whose symbols are damaged has none.
    pub fn symbol(&self, address: u64) -> Option<(String, u64)> {
        self.table().find(&self.bytes, address)
    }

    /// The functions and labels in code, by ascending address; read when this is first called.
    pub fn symbols(&self) -> Vec<Symbol> {
        self.table().all(&self.bytes)
    }

    fn table(&self) -> &Symbols {
        self.symbols.get_or_init(|| Symbols::read(&self.bytes, &self.segments))
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("bytes", &self.bytes.len())
            .field("entry", &format_args!("{:#x}", self.entry))
            .field("segments", &self.segments)
            .field("cases", &self.cases.len())
            .field("sites", &self.sites.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod test;
