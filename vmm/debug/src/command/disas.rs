//! `disas`: instructions, with symbols where they lead.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, OpKind};
use serde_json::json;

use super::{Command, Needs, Takes};
use crate::address::{Address, address};
use crate::answer::{Answer, hex};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::linear::Linear;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "disas",
    usage: "disas [ADDRESS] [COUNT]",
    summary: "instructions from an address on, from RIP where none is said; the arrow stands at RIP",
    details: "From RIP it begins some instructions before, where the function that it lies in tells where one begins.\n",
    takes: Takes::Address,
    needs: Needs::Machine,
    run,
};

/// Instructions that are shown where nothing is said.
const SHOWN: usize = 12;
/// Instructions before RIP.
const BEFORE: usize = 4;
/// Most instructions that are shown.
const MOST: usize = 1024;
/// Longest instruction in bytes (SDM 2A 2.3.11).
const LONGEST: usize = 15;

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let word = arguments.next();
    let count = arguments.count("the count", MOST)?.unwrap_or(SHOWN);
    arguments.end()?;
    let rip = session.vcpu()?.registers.as_ref().ok().map(|registers| registers.rip);
    let start = match word {
        Some(word) => address(session, word)?,
        None => Address::Linear(before(session, crate::registers::value(session.vcpu()?, "rip")?)?),
    };
    let instructions = decoded(session, start, count)?;
    let text = in_text(session, &instructions, rip);
    let data: Vec<_> =
        instructions.iter().map(|one| json!({"address": hex(one.ip()), "text": formatted(session, one)})).collect();
    Ok(Answer::new(text, json!(data)))
}

/// Where to begin so that some instructions before RIP are seen: at one that leads to RIP from its function's beginning.
fn before(session: &Session, rip: u64) -> Result<u64, CommandError> {
    let Some((symbol, offset)) = session.symbols().at(rip).filter(|(_, offset)| *offset > 0) else { return Ok(rip) };
    let length = usize::try_from(offset).unwrap_or(usize::MAX).min(MOST * LONGEST);
    let bytes = session.linear()?.read(Address::Linear(symbol.address), length)?;
    let decoder = Decoder::with_ip(64, &bytes, symbol.address, DecoderOptions::NONE);
    let starts: Vec<u64> = decoder.into_iter().map(|instruction| instruction.ip()).filter(|ip| *ip < rip).collect();
    Ok(starts.len().checked_sub(BEFORE).map_or(symbol.address, |at| starts[at]))
}

fn decoded(session: &Session, start: Address, count: usize) -> Result<Vec<Instruction>, CommandError> {
    let bytes = session.linear()?.read(start, count * LONGEST)?;
    Ok(Decoder::with_ip(64, &bytes, start.value(), DecoderOptions::NONE).into_iter().take(count).collect())
}

fn in_text(session: &Session, instructions: &[Instruction], rip: Option<u64>) -> String {
    let mut text = String::new();
    let mut last = None;
    for instruction in instructions {
        let at = instruction.ip();
        let symbol = session.symbols().at(at).map(|(symbol, _)| symbol);
        if symbol.is_some() && symbol != last {
            text.push_str(&format!("{}:\n", session.meaning(at).unwrap_or_default()));
        }
        last = symbol;
        let arrow = if rip == Some(at) { style::heading("=>") } else { "  ".into() };
        text.push_str(&format!("{arrow} {at:#x}  {}\n", formatted(session, instruction)));
    }
    text
}

/// The instruction at an address, as a vCPU maps it; `None` where nothing is.
pub(super) fn at(session: &Session, vcpu: usize, address: u64) -> Option<String> {
    let linear = Linear::of(session.memory(), session.vcpus().get(vcpu)?).ok()?;
    let bytes = linear.read(Address::Linear(address), LONGEST).ok()?;
    let instruction = Decoder::with_ip(64, &bytes, address, DecoderOptions::NONE).into_iter().next()?;
    Some(formatted(session, &instruction))
}

fn formatted(session: &Session, instruction: &Instruction) -> String {
    if instruction.is_invalid() {
        return "(no instruction)".into();
    }
    let mut text = String::new();
    formatter().format(instruction, &mut text);
    let target = target(instruction).and_then(|target| session.meaning(target));
    target.map_or(text.clone(), |target| format!("{text}  <{target}>"))
}

/// Where a branch or a memory operand leads that does not depend on other registers.
fn target(instruction: &Instruction) -> Option<u64> {
    let branches = instruction.op_count() > 0 && matches!(instruction.op0_kind(), OpKind::NearBranch64);
    let absolute = instruction.is_ip_rel_memory_operand();
    match (branches, absolute) {
        (true, _) => Some(instruction.near_branch_target()),
        (false, true) => Some(instruction.ip_rel_memory_address()),
        (false, false) => None,
    }
}

fn formatter() -> IntelFormatter {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    options.set_leading_zeros(false);
    formatter
}

#[cfg(test)]
mod test {
    use crate::sample::{answer, refusal, rip, session_with, text};

    #[test]
    fn arrow_stands_at_rip_with_some_instructions_before() {
        let text = text("disas");
        let lines: Vec<_> = text.lines().collect();
        let at = lines.iter().position(|line| line.starts_with(&format!("=> {:#x}  ", rip()))).expect("there is one");
        assert!((1..=6).contains(&at), "{text}");
        assert!(lines.len() >= 12, "{text}");
    }

    #[test]
    fn branches_are_shown_with_where_they_lead() {
        let text = text("disas _start 4");
        assert!(text.starts_with("_start:\n   0x"), "{text}");
        assert!(text.contains("  <stallbench_main>\n") && text.contains("xor ebp, ebp"), "{text}");
    }

    #[test]
    fn bytes_that_are_no_instruction_are_said_so() {
        let mut session = session_with(|machine| machine.memory.write(0x40_0000, &[0x06, 0xff, 0xff]));
        let text = answer(&mut session, "disas 0x400000 1").expect("it has an answer").text;
        assert_eq!(text, "   0x400000  (no instruction)\n");
        assert!(refusal("disas 0x400000 0").starts_with("the count must be a number from 1 to 1024"));
    }
}
