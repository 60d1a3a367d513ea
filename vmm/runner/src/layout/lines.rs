//! Layouts as kernels print them: the lines of /proc/mtrr, and those of the boot log.

use stallbench_state::mtrr::{ENABLED, FIXED_ENABLED, MemoryType};

use super::number;
use super::{Draft, DraftFixed, DraftRange, LayoutProblem};

/// A problem and its line.
pub(super) type At<T> = Result<T, (usize, LayoutProblem)>;

/// Adds the ranges of a /proc/mtrr; `first` is the line of the file in which the text begins.
///
/// Both forms that there are: in older kernels the type comes before `count=`, in newer ones behind it.
pub(super) fn add_proc(draft: &mut Draft, text: &str, first: usize) -> At<()> {
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim().starts_with('#');
    for (i, line) in text.lines().enumerate().filter(|(_, line)| says_something(line)) {
        let range = proc_line(line.trim(), first + i)
            .map_err(|problem| (first + i, problem.unwrap_or_else(|| LayoutProblem::NoProcLine(shortened(line)))))?;
        draft.ranges.push(range);
    }
    Ok(())
}

/// `reg01: base=0x080000000 ( 2048MB), size=  512MB, count=1: write-back`. An error without a problem: it is no such line.
fn proc_line(text: &str, line: usize) -> Result<DraftRange, Option<LayoutProblem>> {
    let (register, rest) = text.strip_prefix("reg").and_then(|rest| rest.split_once(':')).ok_or(None)?;
    let register = register.trim().parse().map_err(|_| None)?;
    let base = rest.trim_start().strip_prefix("base=").ok_or(None)?;
    let base = base.split([' ', ',', '(']).next().and_then(number::parse).ok_or(None)?;
    let (_, size) = rest.split_once("size=").ok_or(None)?;
    let (size, rest) = size.split_once([',', ':']).ok_or(None)?;
    let size = number::parse(size).ok_or(None)?;
    let word = rest.split([',', ':']).map(str::trim).find(|part| !part.is_empty() && !part.starts_with("count="));
    Ok(DraftRange { line, register, base, size, kind: kind(word.ok_or(None)?)? })
}

/// The type of a word, as the kernel spells it.
pub(super) fn kind(word: &str) -> Result<MemoryType, LayoutProblem> {
    MemoryType::named(word).ok_or_else(|| LayoutProblem::UnknownType { word: shortened(word) })
}

/// Adds what a kernel's log says about MTRRs; all other lines of it are passed over.
pub(super) fn add_log(draft: &mut Draft, text: &str, first: usize) -> At<()> {
    let mut part = Part::Elsewhere;
    for (i, line) in text.lines().enumerate() {
        let (line, at) = (without_time(line), first + i);
        part = match part {
            _ if line.starts_with("MTRR default type: ") => {
                let kind = kind(line["MTRR default type: ".len()..].trim()).map_err(|problem| (at, problem))?;
                draft.default_type = Some((ENABLED | FIXED_ENABLED | u64::from(kind.code()), at));
                Part::Elsewhere
            }
            _ if line.starts_with("MTRR fixed ranges enabled:") => Part::Fixed,
            _ if line.starts_with("MTRR variable ranges enabled:") => Part::Variable,
            Part::Fixed if begins_with_hex_digit(line) => {
                draft.fixed.push(log_fixed(line, at).map_err(|problem| (at, problem))?);
                Part::Fixed
            }
            Part::Variable if begins_with_hex_digit(line) => {
                draft.ranges.extend(log_range(line, at).map_err(|problem| (at, problem))?);
                Part::Variable
            }
            _ => Part::Elsewhere,
        };
    }
    Ok(())
}

/// Where in the log a line stands.
enum Part {
    Elsewhere,
    Fixed,
    Variable,
}

/// `[    0.000000]   0 base …` without the time.
pub(super) fn without_time(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((time, rest)) if time.trim().parse::<f64>().is_ok() => rest.trim(),
        _ => line,
    }
}

fn begins_with_hex_digit(line: &str) -> bool {
    line.starts_with(|c: char| c.is_ascii_hexdigit())
}

/// `A0000-BFFFF uncachable`.
fn log_fixed(text: &str, line: usize) -> Result<DraftFixed, LayoutProblem> {
    let no = || LayoutProblem::NoLogLine {
        line: shortened(text),
        what: "fixed range of the log",
        expected: "A0000-BFFFF TYPE",
    };
    let (range, word) = text.split_once(' ').ok_or_else(no)?;
    let (from, to) = range.split_once('-').ok_or_else(no)?;
    let address = |text| u64::from_str_radix(text, 16).map_err(|_| no());
    Ok(DraftFixed { line, from: address(from)?, to: address(to)?, kind: kind(word.trim())? })
}

/// `0 base 00C0000000 mask 7FC0000000 uncachable`, or `7 disabled`, which is none.
fn log_range(text: &str, line: usize) -> Result<Option<DraftRange>, LayoutProblem> {
    let no = || LayoutProblem::NoLogLine {
        line: shortened(text),
        what: "variable range of the log",
        expected: "0 base 0C0000000 mask FC0000000 TYPE' or '0 disabled",
    };
    let words: Vec<_> = text.split_whitespace().collect();
    let (register, base, mask, word) = match words[..] {
        [_, "disabled"] => return Ok(None),
        [register, "base", base, "mask", mask, word] => (register, base, mask, word),
        _ => return Err(no()),
    };
    let register = register.parse().map_err(|_| no())?;
    let base = u64::from_str_radix(base, 16).map_err(|_| no())?;
    let size = size_of(mask).ok_or_else(no)?;
    let value = u64::from_str_radix(mask, 16).map_err(|_| no())?;
    let size = size.ok_or(LayoutProblem::Holes { register, mask: value })?;
    Ok(Some(DraftRange { line, register, base, size, kind: kind(word)? }))
}

/// The size that a mask says, which is printed with as many digits as the machine's addresses have: of `FC0000000` the highest bit
/// is 35, and `0C0000000` has holes. The outer `None`: it is no number.
fn size_of(mask: &str) -> Option<Option<u64>> {
    let value = u64::from_str_radix(mask, 16).ok()?;
    let digits = u32::try_from(mask.len()).ok()?;
    let width = u64::BITS - value.leading_zeros();
    let size = 1u64.checked_shl(value.trailing_zeros())?;
    let reaches_the_top = width > 4 * digits.saturating_sub(1);
    let has_no_holes = (value >> value.trailing_zeros()).wrapping_add(1).is_power_of_two();
    Some((reaches_the_top && has_no_holes).then_some(size))
}

/// As much of a line as a message shows.
fn shortened(line: &str) -> String {
    let line = line.trim();
    match line.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
