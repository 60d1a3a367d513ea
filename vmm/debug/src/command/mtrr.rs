//! `mtrr`: memory type range registers: ranges, the map that they make, and how vCPUs differ.

use std::fmt::Write;

use serde_json::{Value, json};
use stallbench_state::machine::VcpuState;
use stallbench_state::mtrr::{ENABLED, FIXED_ENABLED, MemoryType, MtrrState, VALID, size_of_mask};

use super::{Command, Needs, Takes};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "mtrr",
    usage: "mtrr [VCPU|all]",
    summary: "memory type range registers: ranges, effective map, what is invalid, differences between vCPUs",
    details: "KVM keeps these registers and does not make them change any memory's type: what is shown is what a processor would make \
of\nthem.\n",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let vcpus = session.vcpus_of(arguments.next())?;
    arguments.end()?;
    let mut text: String = vcpus.iter().map(|vcpu| in_text(vcpu)).collect();
    let differences = differences(session);
    match differences.is_empty() {
        true => text.push_str("all vCPUs that were read hold the same values\n"),
        false => differences.iter().for_each(|line| text.push_str(&format!("{} {line}\n", style::bad("differs:")))),
    }
    let data: Vec<Value> = vcpus.iter().map(|vcpu| in_data(vcpu)).collect();
    Ok(Answer::new(text, json!({"vcpus": data, "differences": differences})))
}

fn state(vcpu: &VcpuState) -> Result<&MtrrState, CommandError> {
    let unread = |unread: &_| CommandError::Unread { vcpu: vcpu.index, unread: Clone::clone(unread) };
    let not_captured = CommandError::NotCaptured { vcpu: vcpu.index, what: "MTRRs" };
    vcpu.mtrr.as_ref().ok_or(not_captured)?.as_ref().map_err(unread)
}

fn in_text(vcpu: &VcpuState) -> String {
    let heading = style::heading(&format!("vcpu{}", vcpu.index));
    let state = match state(vcpu) {
        Ok(state) => state,
        Err(error) => return format!("{heading}\n  {error}\n"),
    };
    let mut text = format!("{heading}\n  {}\n{}", default_in_words(state), columns(&ranges(state)));
    for invalid in state.invalid() {
        let _ = writeln!(text, "  {} {invalid}", style::bad("invalid:"));
    }
    text.push_str("  map\n");
    match state.map() {
        Some(map) => map.iter().for_each(|region| text.push_str(&format!("    {region}\n"))),
        None => text.push_str("    none: the mask of a range has holes\n"),
    }
    text
}

fn default_in_words(state: &MtrrState) -> String {
    let on = |bit| if state.default_type & bit != 0 { "on" } else { "off" };
    let kind = MemoryType::of(state.default_type as u8).map_or("a reserved type".into(), |kind| kind.to_string());
    let (all, fixed) = (on(ENABLED), on(FIXED_ENABLED));
    format!(
        "default type {:#x}: MTRRs {all}, fixed ranges {fixed}, else {kind}; PAT {:#018x}",
        state.default_type, state.pat
    )
}

/// The variable ranges that are in use.
fn ranges(state: &MtrrState) -> Vec<Vec<String>> {
    let used = state.ranges.iter().enumerate().filter(|(_, (_, mask))| mask & VALID != 0);
    let of = |(number, (base, mask)): (usize, &(u64, u64))| {
        let size = size_of_mask(*mask).map_or("a mask with holes".into(), |size| format!("{size:#x} bytes"));
        let kind = MemoryType::of(*base as u8).map_or("reserved".into(), |kind| kind.to_string());
        let registers = format!("base {base:#x} mask {mask:#x}");
        row([&format!("  range {number}"), &registers, &format!("from {:#x}, {size}, {kind}", base & !0xfff)])
    };
    used.map(of).collect()
}

/// How vCPUs differ from the first that was read.
fn differences(session: &Session) -> Vec<String> {
    let mut states = session.vcpus().iter().filter_map(|vcpu| Some((vcpu.index, state(vcpu).ok()?)));
    let Some((first, reference)) = states.next() else { return Vec::new() };
    let of = |(vcpu, state): (usize, &MtrrState)| {
        let all = reference.differences(state).into_iter();
        let line = move |d: stallbench_state::mtrr::Difference| {
            format!("{} is {:#x} on vcpu{first} and {:#x} on vcpu{vcpu}", d.register, d.here, d.there)
        };
        all.map(line).collect::<Vec<_>>()
    };
    states.flat_map(of).collect()
}

fn in_data(vcpu: &VcpuState) -> Value {
    match state(vcpu) {
        Ok(state) => {
            let registers = state.registers().map(|(register, value)| (register.to_string(), hex(value))).collect();
            let invalid: Vec<_> = state.invalid().iter().map(ToString::to_string).collect();
            let map = state.map().map(|map| map.iter().map(ToString::to_string).collect::<Vec<_>>());
            json!({"vcpu": vcpu.index, "registers": Value::Object(registers), "invalid": invalid, "map": map})
        }
        Err(error) => json!({"vcpu": vcpu.index, "error": error.to_string()}),
    }
}

#[cfg(test)]
mod test {
    use stallbench_state::mtrr::MtrrState;

    use crate::sample::{answer, session_with, text, unread};

    #[test]
    fn ranges_and_the_map_that_they_make_are_shown() {
        let text = text("mtrr");
        assert!(text.contains("MTRRs on, fixed ranges on, else write-back"), "{text}");
        assert!(text.contains("from 0xc0000000, 0x40000000 bytes, uncachable"), "{text}");
        assert!(text.contains("    0xc0000000 to 0xffffffff uncachable\n"), "{text}");
        assert!(text.ends_with("all vCPUs that were read hold the same values\n"), "{text}");
    }

    #[test]
    fn vcpu_that_differs_is_named_with_both_values() {
        let mut session = session_with(|machine| {
            machine.machine.vcpus[1].mtrr = Some(Ok(MtrrState::at_start().with_range(1, 0x1000, 0x1000, 1)));
        });
        let answer = answer(&mut session, "mtrr").expect("it has an answer");
        assert!(answer.text.contains("base1 is 0x0 on vcpu0 and 0x1001 on vcpu1"), "{}", answer.text);
        assert_eq!(answer.data["differences"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn registers_that_are_not_there_say_why() {
        let mut session = session_with(|machine| {
            machine.machine.vcpus[0].mtrr = None;
            machine.machine.vcpus[1].mtrr = Some(unread("MTRRs"));
        });
        let text = answer(&mut session, "mtrr all").expect("it has an answer").text;
        assert!(
            text.contains("vcpu0: MTRRs were not captured") && text.contains("vcpu1: MTRRs could not be read"),
            "{text}"
        );
    }
}
