//! From a draft to a layout that a guest can program, or to the first thing that is wrong with it.

use stallbench_state::mtrr::{
    ADDRESS_SPACE, ENABLED, Effective, FIXED_ENABLED, FIXED_END, FIXED_MSRS, MemoryType, MtrrState, RANGES, TypeSet,
};

use super::lines::At;
use super::{Draft, DraftFixed, DraftRange, Layout, LayoutProblem, LayoutRange};

/// Where the ranges of each fixed register begin, and how large they are.
const FIXED_RANGES: [(u64, u64); FIXED_MSRS.len()] = [
    (0x0_0000, 0x1_0000),
    (0x8_0000, 0x4000),
    (0xa_0000, 0x4000),
    (0xc_0000, 0x1000),
    (0xc_8000, 0x1000),
    (0xd_0000, 0x1000),
    (0xd_8000, 0x1000),
    (0xe_0000, 0x1000),
    (0xe_8000, 0x1000),
    (0xf_0000, 0x1000),
    (0xf_8000, 0x1000),
];

/// Checks a draft.
pub(super) fn checked(name: &str, draft: &Draft) -> At<Layout> {
    if draft.ranges.is_empty() && draft.fixed.is_empty() && draft.default_type.is_none() {
        return Err((1, LayoutProblem::Nothing));
    }
    let default_type = default_type(draft)?;
    let mut fixed = MtrrState::at_start().fixed;
    for range in &draft.fixed {
        paint(&mut fixed, range)?;
    }
    let mut ranges: Vec<(usize, LayoutRange)> = Vec::new();
    for range in &draft.ranges {
        let checked = checked_range(range).map_err(|problem| (range.line, problem))?;
        if let Some((line, _)) = ranges.iter().find(|(_, other)| other.register == checked.register) {
            return Err((range.line, LayoutProblem::Duplicate { register: range.register, line: *line }));
        }
        ranges.push((range.line, checked));
    }
    ranges.sort_by_key(|(_, range)| range.register);
    let layout = Layout {
        name: name.to_owned(),
        machine: draft.machine.trim().to_owned(),
        source: draft.source.trim().to_owned(),
        default_type,
        ranges: ranges.iter().map(|(_, range)| *range).collect(),
        fixed,
    };
    no_undefined_overlap(&layout, &ranges)?;
    Ok(layout)
}

/// /proc/mtrr does not tell the default type. Firmware that lists its memory as write-back leaves the rest uncacheable; one that
/// lists none has it write-back by default.
fn default_type(draft: &Draft) -> At<u64> {
    match draft.default_type {
        Some((value, line)) if value & ENABLED == 0 => Err((line, LayoutProblem::Off(value))),
        Some((value, _)) => Ok(value),
        None if draft.ranges.iter().any(|range| range.kind == MemoryType::WriteBack) => Ok(ENABLED | FIXED_ENABLED),
        None => Ok(ENABLED | FIXED_ENABLED | u64::from(MemoryType::WriteBack.code())),
    }
}

fn checked_range(range: &DraftRange) -> Result<LayoutRange, LayoutProblem> {
    let DraftRange { register, base, size, kind, .. } = *range;
    if size < 0x1000 {
        return Err(LayoutProblem::TooSmall { register, size });
    }
    if !size.is_power_of_two() {
        return Err(LayoutProblem::SizeNotPowerOfTwo { register, size });
    }
    if !base.is_multiple_of(size) {
        return Err(LayoutProblem::Misaligned { register, base, size });
    }
    let last = base.saturating_add(size - 1);
    if last >= ADDRESS_SPACE {
        return Err(LayoutProblem::AboveMaxPhysAddr { register, last });
    }
    match usize::try_from(register) {
        Ok(number) if number < RANGES => Ok(LayoutRange { register: number, base, size, kind }),
        _ => Err(LayoutProblem::NoRegister { register }),
    }
}

fn no_undefined_overlap(layout: &Layout, ranges: &[(usize, LayoutRange)]) -> At<()> {
    for region in layout.map() {
        if !matches!(region.effective, Effective::Overlap(_)) {
            continue;
        }
        let here: Vec<_> = ranges
            .iter()
            .filter(|(_, range)| range.base <= region.start && region.start - range.base < range.size)
            .collect();
        for (i, (line, range)) in here.iter().enumerate() {
            if let Some((other_line, other)) = here[..i].iter().find(|(_, other)| !go_together(range.kind, other.kind))
            {
                // The later line is the one that breaks it.
                let ((line, range), (other_line, other)) = if line > other_line {
                    ((line, range), (other_line, other))
                } else {
                    ((other_line, other), (line, range))
                };
                let problem = LayoutProblem::UndefinedOverlap {
                    register: range.register,
                    kind: range.kind,
                    other: other.register,
                    other_kind: other.kind,
                    line: *other_line,
                    start: region.start,
                    last: region.end - 1,
                };
                return Err((*line, problem));
            }
        }
    }
    Ok(())
}

fn go_together(a: MemoryType, b: MemoryType) -> bool {
    let mut types = TypeSet::default();
    types.insert(a);
    types.insert(b);
    types.together().defined().is_some()
}

fn paint(fixed: &mut [u64; FIXED_MSRS.len()], range: &DraftFixed) -> At<()> {
    let DraftFixed { line, from, to, kind } = *range;
    let wrong = |why| Err((line, LayoutProblem::Fixed { from, to, why }));
    if to < from || to >= FIXED_END {
        return wrong("expected a range that ends at 0xfffff at most, its last byte included");
    }
    for (register, (base, size)) in FIXED_RANGES.into_iter().enumerate() {
        for n in 0..8 {
            let (first, last) = (base + n * size, base + (n + 1) * size - 1);
            if first > to || last < from {
                continue;
            }
            if first < from || last > to {
                return wrong("expected whole ranges: 64 KiB below 0x80000, 16 KiB below 0xc0000, 4 KiB from there on");
            }
            let shift = 8 * n;
            fixed[register] = fixed[register] & !(0xff << shift) | u64::from(kind.code()) << shift;
        }
    }
    Ok(())
}

/// The ranges that a fixed register holds, one for each byte; its types are known to be valid.
pub(super) fn ranges_of_fixed(register: usize, value: u64, line: usize) -> Vec<DraftFixed> {
    let (base, size) = FIXED_RANGES[register];
    let range = |(n, code): (usize, u8)| {
        let from = base + n as u64 * size;
        Some(DraftFixed { line, from, to: from + size - 1, kind: MemoryType::of(code)? })
    };
    value.to_le_bytes().into_iter().enumerate().filter_map(range).collect()
}

/// The code of the fixed range at an address below 1 MiB.
pub(super) fn fixed_code(fixed: &[u64; FIXED_MSRS.len()], address: u64) -> u8 {
    let holds = |(base, size): &(u64, u64)| *base <= address && address < base + 8 * size;
    let register = FIXED_RANGES.iter().position(holds).unwrap_or(0);
    let (base, size) = FIXED_RANGES[register];
    fixed[register].to_le_bytes()[((address - base) / size) as usize]
}
