//! A layout file as it stands: TOML, or text that a kernel printed. What it says is drafted here and checked elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use stallbench_state::mtrr::{ENABLED, FIXED_ENABLED, MemoryType, MtrrState, RANGES, Register, VALID, size_of_mask};
use toml::Spanned;

use super::lines::{At, add_log, add_proc, kind, without_time};
use super::number::Number;
use super::{Draft, DraftFixed, DraftRange, LayoutProblem};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    machine: String,
    #[serde(default)]
    source: String,
    default_type: Option<Spanned<String>>,
    #[serde(default)]
    range: Vec<Spanned<RangeEntry>>,
    #[serde(default)]
    fixed: Vec<Spanned<FixedEntry>>,
    proc_mtrr: Option<Spanned<String>>,
    log: Option<Spanned<String>>,
    registers: Option<Spanned<BTreeMap<Spanned<String>, Spanned<Number>>>>,
}

/// A `[[range]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeEntry {
    reg: Option<u64>,
    base: Number,
    size: Number,
    r#type: Spanned<String>,
}

/// A `[[fixed]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedEntry {
    from: Number,
    to: Number,
    r#type: Spanned<String>,
}

/// What a text says.
pub(super) fn draft(text: &str) -> At<Draft> {
    let mut draft = Draft::default();
    let first = text.lines().map(without_time).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or("");
    let is_proc = first.strip_prefix("reg").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let has_time = text.lines().any(|line| without_time(line).len() < line.trim().len());
    if is_proc {
        add_proc(&mut draft, text, 1)?;
    } else if first.starts_with("MTRR ")
        || has_time && text.contains("MTRR variable ranges enabled:") && !first.contains('=')
    {
        add_log(&mut draft, text, 1)?;
    } else {
        add_toml(&mut draft, text)?;
    }
    Ok(draft)
}

fn add_toml(draft: &mut Draft, text: &str) -> At<()> {
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let syntax = |error: toml::de::Error| {
        let at = error.span().map_or(1, |span| line(span.start));
        (at, LayoutProblem::Syntax(error.message().replace('\n', ", ")))
    };
    let file: File = toml::from_str(text).map_err(syntax)?;
    (draft.machine, draft.source) = (file.machine, file.source);
    let forms = [
        file.range.first().map(|range| line(range.span().start)),
        file.proc_mtrr.as_ref().map(|text| line(text.span().start)),
        file.log.as_ref().map(|text| line(text.span().start)),
        file.registers.as_ref().map(|table| line(table.span().start)),
    ];
    let mut given = forms.into_iter().flatten();
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        return Err((first.max(second), LayoutProblem::Twice { what: "ranges", line: first.min(second) }));
    }
    for (i, range) in file.range.iter().enumerate() {
        draft.ranges.push(range_entry(range.get_ref(), i, line(range.span().start))?);
    }
    if let Some(table) = &file.proc_mtrr {
        add_proc(draft, table.get_ref(), line(inside(text, table.span())))?;
    }
    if let Some(log) = &file.log {
        add_log(draft, log.get_ref(), line(inside(text, log.span())))?;
    }
    if let Some(registers) = &file.registers {
        add_registers(draft, registers.get_ref(), &line)?;
    }
    for fixed in &file.fixed {
        draft.fixed.push(fixed_entry(fixed.get_ref(), line(fixed.span().start))?);
    }
    if let Some(word) = &file.default_type {
        let at = line(word.span().start);
        if let Some((_, other)) = draft.default_type {
            return Err((at.max(other), LayoutProblem::Twice { what: "default types", line: at.min(other) }));
        }
        let kind = kind(word.get_ref()).map_err(|problem| (at, problem))?;
        draft.default_type = Some((ENABLED | FIXED_ENABLED | u64::from(kind.code()), at));
    }
    Ok(())
}

/// Where the text of a string begins: behind its quotes, and behind the line break that TOML drops after three of them.
fn inside(text: &str, span: Range<usize>) -> usize {
    let string = &text[span.start..];
    let quotes = string.bytes().take_while(|byte| matches!(byte, b'"' | b'\'')).count().min(3);
    let skipped = string[quotes..].bytes().take_while(|byte| matches!(byte, b'\r' | b'\n')).count().min(1);
    span.start + quotes + if quotes == 3 { skipped } else { 0 }
}

fn range_entry(entry: &RangeEntry, place: usize, line: usize) -> At<DraftRange> {
    let kind = kind(entry.r#type.get_ref()).map_err(|problem| (line, problem))?;
    let register = entry.reg.unwrap_or(place as u64);
    Ok(DraftRange { line, register, base: entry.base.0, size: entry.size.0, kind })
}

fn fixed_entry(entry: &FixedEntry, line: usize) -> At<DraftFixed> {
    let kind = kind(entry.r#type.get_ref()).map_err(|problem| (line, problem))?;
    Ok(DraftFixed { line, from: entry.from.0, to: entry.to.0, kind })
}

/// Registers by the names that reports print. Those that are not named are as at start, but for ranges, which are out of use.
fn add_registers(
    draft: &mut Draft,
    registers: &BTreeMap<Spanned<String>, Spanned<Number>>,
    line: &dyn Fn(usize) -> usize,
) -> At<()> {
    let mut state = MtrrState { ranges: [(0, 0); RANGES], ..MtrrState::at_start() };
    let mut lines = BTreeMap::new();
    for (name, value) in registers {
        let at = line(name.span().start);
        let register = state.registers().map(|(register, _)| register).find(|r| r.to_string() == *name.get_ref());
        let Some(register) = register.filter(|register| *register != Register::Pat) else {
            return Err((at, LayoutProblem::UnknownRegister(name.get_ref().clone())));
        };
        set(&mut state, register, value.get_ref().0);
        lines.insert(register, at);
    }
    let line_of = |register| lines.get(&register).copied().unwrap_or(1);
    if let Some(invalid) = state.invalid().first() {
        return Err((line_of(invalid.register), LayoutProblem::Register(*invalid)));
    }
    for (i, (base, mask)) in state.ranges.iter().enumerate().filter(|(_, (_, mask))| mask & VALID != 0) {
        if let (Some(kind), Some(size)) = (MemoryType::of(*base as u8), size_of_mask(*mask)) {
            let line = line_of(Register::Base(i)).max(line_of(Register::Mask(i)));
            draft.ranges.push(DraftRange { line, register: i as u64, base: base & !0xfff, size, kind });
        }
    }
    if let Some(line) = lines.get(&Register::DefaultType) {
        draft.default_type = Some((state.default_type, *line));
    }
    for (register, line) in lines.iter().filter(|(register, _)| matches!(register, Register::Fixed(_))) {
        if let Register::Fixed(i) = *register {
            draft.fixed.extend(super::check::ranges_of_fixed(i, state.fixed[i], *line));
        }
    }
    Ok(())
}

fn set(state: &mut MtrrState, register: Register, value: u64) {
    match register {
        Register::DefaultType => state.default_type = value,
        Register::Base(i) => state.ranges[i].0 = value,
        Register::Mask(i) => state.ranges[i].1 = value,
        Register::Fixed(i) => state.fixed[i] = value,
        Register::Pat => state.pat = value,
    }
}
