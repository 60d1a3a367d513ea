//! `msr`: model-specific registers by name.

use serde_json::{Value, json};
use stallbench_state::machine::VcpuState;
use stallbench_state::msr;
use stallbench_state::mtrr::MemoryType;

use super::{Command, Needs, Takes};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::{Arguments, number};
use crate::bits;
use crate::error::CommandError;
use crate::nearest::did_you_mean;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "msr",
    usage: "msr [VCPU|all] [INDEX|NAME]",
    summary: "model-specific registers, all or one; `mtrr` has those of memory types",
    details: "",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let (mut vcpu, mut wanted) = (None, None);
    match (arguments.next(), arguments.next()) {
        (Some(first), second @ Some(_)) => (vcpu, wanted) = (Some(first), second),
        // A word alone is a vCPU where there is such a one.
        (Some(only), None) if only == "all" || session.vcpu_of(Some(only)).is_ok() => vcpu = Some(only),
        (only, _) => wanted = only,
    }
    arguments.end()?;
    let wanted = wanted.map(|word| index(&arguments, word)).transpose()?;
    let (mut text, mut data) = (String::new(), Vec::new());
    for vcpu in session.vcpus_of(vcpu)? {
        let (more, one) = of(session, vcpu, wanted);
        text.push_str(&more);
        data.push(one);
    }
    Ok(Answer::new(text, json!(data)))
}

/// A register by its number or its name.
fn index(arguments: &Arguments<'_>, word: &str) -> Result<u32, CommandError> {
    // The manuals' prefix may stand before it.
    let short = word.get(..5).filter(|prefix| prefix.eq_ignore_ascii_case("IA32_")).map_or(word, |_| &word[5..]);
    let named = msr::MSRS.iter().find(|(_, name)| name.eq_ignore_ascii_case(short)).map(|(index, _)| *index);
    let numbered = || number(word).and_then(|index| u32::try_from(index).ok());
    named.or_else(numbered).ok_or_else(|| {
        let near = did_you_mean(short, msr::MSRS.iter().map(|(_, name)| *name));
        arguments.wrong(format!("{word} is no register of a capture{near}"))
    })
}

fn of(session: &Session, vcpu: &VcpuState, wanted: Option<u32>) -> (String, Value) {
    let heading = style::heading(&format!("vcpu{}", vcpu.index));
    let msrs = match &vcpu.msrs {
        None => return failed(&heading, vcpu, &"model-specific registers were not captured"),
        Some(Err(unread)) => return failed(&heading, vcpu, unread),
        Some(Ok(msrs)) => msrs,
    };
    let shown: Vec<_> = msrs.iter().filter(|(index, _)| wanted.is_none_or(|wanted| wanted == *index)).collect();
    let rows: Vec<_> = shown.iter().map(|(index, value)| in_row(session, *index, *value)).collect();
    let none = match wanted {
        _ if !rows.is_empty() => "",
        Some(index) if msr::name(index).is_none() => "  no capture has it; `mtrr` has those of memory types\n",
        _ => "  this host did not give it\n",
    };
    let of = |(index, value): &&(u32, u64)| json!({"index": hex(u64::from(*index)), "name": msr::name(*index), "value": hex(*value)});
    let data: Vec<_> = shown.iter().map(of).collect();
    (format!("{heading}\n{}{none}", columns(&rows)), json!({"vcpu": vcpu.index, "msrs": data}))
}

fn failed(heading: &str, vcpu: &VcpuState, why: &dyn std::fmt::Display) -> (String, Value) {
    (format!("{heading}\n  {why}\n"), json!({"vcpu": vcpu.index, "error": why.to_string()}))
}

fn in_row(session: &Session, index: u32, value: u64) -> Vec<String> {
    let words = match msr::name(index) {
        Some("EFER") => bits::names(bits::EFER, value),
        Some("APIC_BASE") => format!("{} at {:#x}", bits::names(bits::APIC_BASE, value & 0xfff), value & !0xfff),
        Some("PAT") => pat_in_words(value),
        Some("TSC" | "TSC_ADJUST" | "TSC_AUX" | "TSC_DEADLINE") => String::new(),
        _ => session.meaning(value).unwrap_or_default(),
    };
    row([&format!("  {index:#x}"), msr::name(index).unwrap_or("?"), &format!("{value:#x}"), &words])
}

/// The eight types of IA32_PAT, the first in the lowest byte (SDM 3A 12.12.2).
fn pat_in_words(value: u64) -> String {
    let of = |code: &u8| match MemoryType::of(*code) {
        Some(kind) => kind.to_string(),
        None if *code == 7 => "UC-".into(),
        None => format!("reserved {code:#x}"),
    };
    value.to_le_bytes().iter().map(of).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod test {
    use crate::sample::{answer, refusal, session_with, text, unread};

    #[test]
    fn registers_are_named_and_told_in_words() {
        let text = text("msr");
        assert!(
            text.contains("0x277       PAT   0x7040600070406  write-back write-through UC- uncachable write-back"),
            "{text}"
        );
        assert!(text.contains("EFER  0xd00            LME LMA NXE"), "{text}");
        assert_eq!(crate::sample::text("msr ia32_efer"), crate::sample::text("msr efer"));
        assert_eq!(crate::sample::text("msr efer"), crate::sample::text("msr 0 0xc0000080"));
    }

    #[test]
    fn register_that_is_not_there_is_said_so() {
        assert!(text("msr 0 0x2ff").ends_with("no capture has it; `mtrr` has those of memory types\n"));
        assert!(refusal("msr IA32_EFFR").starts_with("IA32_EFFR is no register of a capture; did you mean EFER?"));
        assert!(refusal("msr nonsense").starts_with("nonsense is no register of a capture; usage: msr "));
        let mut session = session_with(|machine| machine.machine.vcpus[0].msrs = Some(unread("MSRs")));
        assert!(
            answer(&mut session, "msr all").expect("it has an answer").text.contains("MSRs could not be read: EIO")
        );
    }
}
