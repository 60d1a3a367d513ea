//! Memory layouts: what the MTRRs of a machine say, as its owner wrote it down, and what a guest makes of them.
//!
//! ```text
//! file or built-in text ── file, lines ──► Draft ── check ──► Layout ──► LayoutInput (boot block), MtrrState and map (oracle)
//! ```
//!
//! docs/layouts.md tells the format to users. Nothing here runs anything.

mod built_in;
mod check;
mod error;
mod file;
mod lines;
mod number;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use stallbench_abi::mtrr::{LayoutInput, RangeInput, WholeInput};
use stallbench_state::mtrr::{
    ADDRESS_SPACE, Effective, FIXED_ENABLED, FIXED_END, FIXED_MSRS, MemoryType, MtrrState, RANGES, Region, TypeSet,
};

pub use built_in::{TEXTS as BUILT_IN, of_word};
pub use error::{LayoutError, LayoutProblem};

/// Most bytes of a layout file: a whole kernel log may be one.
const MOST_BYTES: u64 = 4 << 20;

/// A layout that a guest can program: every range is valid, and no overlap is undefined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its name, or the file that it came from.
    pub name: String,
    /// The machine; empty where nobody says.
    pub machine: String,
    /// Where it was published; empty where nobody says.
    pub source: String,
    /// IA32_MTRR_DEF_TYPE.
    pub default_type: u64,
    /// The ranges in use, in the order of their registers.
    pub ranges: Vec<LayoutRange>,
    /// The fixed ranges.
    pub fixed: [u64; FIXED_MSRS.len()],
}

/// A range of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutRange {
    /// The register pair.
    pub register: usize,
    /// First byte.
    pub base: u64,
    /// Bytes, a power of two.
    pub size: u64,
    /// Memory type.
    pub kind: MemoryType,
}

/// What a text says, before anything of it is known to be possible.
#[derive(Debug, Default)]
struct Draft {
    machine: String,
    source: String,
    /// IA32_MTRR_DEF_TYPE, with the line.
    default_type: Option<(u64, usize)>,
    ranges: Vec<DraftRange>,
    fixed: Vec<DraftFixed>,
}

/// A range as it is written.
#[derive(Clone, Copy, Debug)]
struct DraftRange {
    line: usize,
    register: u64,
    base: u64,
    size: u64,
    kind: MemoryType,
}

/// A fixed range as it is written: the last byte belongs to it.
#[derive(Clone, Copy, Debug)]
struct DraftFixed {
    line: usize,
    from: u64,
    to: u64,
    kind: MemoryType,
}

impl Layout {
    /// Reads a layout file: TOML, or the text of /proc/mtrr or of a kernel's log as it stands.
    ///
    /// # Errors
    ///
    /// It cannot be read, or what it says cannot be; the message names the line.
    pub fn read(path: &Path) -> Result<Self, LayoutError> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(source) => Err(LayoutError::Read { path: path.to_owned(), source }),
            Ok(read) if read as u64 > MOST_BYTES => {
                Err(LayoutError::TooLarge { path: path.to_owned(), most: MOST_BYTES })
            }
            // A kernel's log can hold anything; what counts in it is ASCII.
            Ok(_) => Self::parse(&name, &String::from_utf8_lossy(&bytes)),
        }
    }

    /// Makes a layout of a text.
    ///
    /// # Errors
    ///
    /// What the text says cannot be; the message names `name` and the line.
    pub fn parse(name: &str, text: &str) -> Result<Self, LayoutError> {
        let at = |(line, problem)| LayoutError::At { file: name.to_owned(), line, problem: Box::new(problem) };
        let draft = file::draft(text).map_err(at)?;
        check::checked(name, &draft).map_err(at)
    }

    /// The layout that a run programs: a built-in one by the code of its word, or the user's own.
    pub fn of(word: u8, own: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        if word == stallbench_abi::knob::layout::OWN { own.cloned() } else { of_word(word) }
    }

    /// What a guest is handed: all registers that are not used here are taken out of use.
    pub fn input(&self) -> LayoutInput {
        let mut input = LayoutInput { count: RANGES as u32, whole: self.whole(), ..LayoutInput::default() };
        for (register, range) in input.ranges.iter_mut().enumerate() {
            *range = RangeInput { register: register as u32, ..RangeInput::default() };
        }
        for range in &self.ranges {
            let LayoutRange { register, base, size, kind } = *range;
            input.ranges[register] =
                RangeInput { base, size, register: register as u32, memory_type: kind.code().into() };
        }
        input
    }

    fn whole(&self) -> WholeInput {
        WholeInput { default_type: self.default_type, fixed: self.fixed, pat: MtrrState::at_start().pat }
    }

    /// The registers of every vCPU once it is programmed.
    pub fn state(&self) -> MtrrState {
        let start = MtrrState { default_type: self.default_type, fixed: self.fixed, ..MtrrState::at_start() };
        let cleared = (0..RANGES).fold(start, |state, register| state.with_range(register, 0, 0, 0));
        let program = |state: MtrrState, range: &LayoutRange| {
            state.with_range(range.register, range.base, range.size, range.kind.code())
        };
        self.ranges.iter().fold(cleared, program)
    }

    /// The type of all memory by the ranges as they are written, not by registers.
    pub fn map(&self) -> Vec<Region> {
        let mut edges = vec![0];
        edges.extend(self.ranges.iter().flat_map(|range| [range.base, range.base + range.size]));
        edges.extend((0..=256).map(|page| page << 12));
        edges.retain(|edge| *edge < ADDRESS_SPACE);
        edges.sort_unstable();
        edges.dedup();
        let mut map: Vec<Region> = Vec::new();
        for (i, start) in edges.iter().copied().enumerate() {
            let end = edges.get(i + 1).copied().unwrap_or(ADDRESS_SPACE);
            let effective = self.at(start);
            match map.last_mut() {
                Some(last) if last.effective == effective => last.end = end,
                _ => map.push(Region { start, end, effective }),
            }
        }
        map
    }

    fn at(&self, address: u64) -> Effective {
        if address < FIXED_END && self.default_type & FIXED_ENABLED != 0 {
            return code(check::fixed_code(&self.fixed, address));
        }
        let mut types = TypeSet::default();
        let holds = |range: &&LayoutRange| range.base <= address && address - range.base < range.size;
        self.ranges.iter().filter(holds).for_each(|range| types.insert(range.kind));
        if types.is_empty() { code(self.default_type as u8) } else { types.together() }
    }
}

fn code(code: u8) -> Effective {
    MemoryType::of(code).map_or(Effective::Reserved(code), Effective::Type)
}

#[cfg(test)]
mod test;
