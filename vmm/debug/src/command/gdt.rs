//! `gdt`: the global descriptor table of a vCPU, decoded (SDM 3A 3.4.5).

use serde_json::{Value, json};

use super::{Command, Needs, Takes};
use crate::address::Address;
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::linear::Linear;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "gdt",
    usage: "gdt [VCPU]",
    summary: "the global descriptor table, each descriptor in words",
    details: "",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

/// Most descriptors that are shown; a table of a guest that never made one may claim 8192.
const MOST: usize = 64;

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let vcpu = session.vcpu_of(arguments.next())?;
    arguments.end()?;
    let linear = Linear::of(session.memory(), vcpu)?;
    let table = linear.table(|system| system.gdt);
    let length = (usize::from(table.limit) + 1) / 8;
    let bytes = linear.read(Address::Linear(table.base), length.min(MOST) * 8)?;
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    let mut upper = false;
    for (index, word) in words.iter().copied().enumerate() {
        // A system descriptor has two slots in 64-bit mode (SDM 3A 3.5).
        let words = match upper {
            true => "upper half of the descriptor before".into(),
            false => in_words(word, words.get(index + 1).copied()),
        };
        upper = !upper && is_long(word);
        rows.push(row([&format!("{:#06x}", index * 8), &format!("{word:#018x}"), &words]));
        data.push(json!({"selector": index * 8, "descriptor": hex(word), "words": words}));
    }
    let heading = format!("vcpu{} gdt at {}, limit {:#x}\n", vcpu.index, session.shown(table.base), table.limit);
    let more = if length > MOST { format!("and {} more\n", length - MOST) } else { String::new() };
    Ok(Answer::new(heading + &columns(&rows) + &more, Value::Array(data)))
}

fn is_long(word: u64) -> bool {
    let access = word >> 40 & 0xff;
    access & 0x90 == 0x80
}

fn in_words(word: u64, upper: Option<u64>) -> String {
    if word == 0 {
        return "null".into();
    }
    let limit = word & 0xffff | word >> 32 & 0xf_0000;
    let base = word >> 16 & 0xff_ffff | word >> 32 & 0xff00_0000;
    let base = if is_long(word) { base | upper.unwrap_or(0) << 32 } else { base };
    let limit = if word >> 55 & 1 == 1 { limit << 12 | 0xfff } else { limit };
    let (access, flags) = ((word >> 40) as u32 & 0xff, (word >> 52) as u32 & 0xf);
    format!("base {base:#x}, limit {limit:#x}, {}", access_in_words(access, flags))
}

/// The access byte of a descriptor, and its flags AVL, L, D/B, G (SDM 3A 3.4.5).
pub(super) fn access_in_words(access: u32, flags: u32) -> String {
    let mut words: Vec<String> = Vec::new();
    let width = match flags >> 1 & 3 {
        0 => "16-bit",
        1 | 3 => "64-bit",
        _ => "32-bit",
    };
    match (access >> 4 & 1, access & 0xf) {
        (1, kind) if kind & 8 != 0 => {
            words.extend(["code".into(), width.into()]);
            words.extend((kind & 4 != 0).then(|| "conforming".into()));
            words.extend((kind & 2 != 0).then(|| "readable".into()));
        }
        (1, kind) => {
            words.push("data".into());
            words.extend((kind & 4 != 0).then(|| "expands down".into()));
            words.extend((kind & 2 != 0).then(|| "writable".into()));
        }
        (_, 2) => words.push("LDT".into()),
        (_, 9) => words.push("TSS, available".into()),
        (_, 11) => words.push("TSS, busy".into()),
        (_, 12) => words.push("call gate".into()),
        (_, 14) => words.push("interrupt gate".into()),
        (_, 15) => words.push("trap gate".into()),
        (_, other) => words.push(format!("system type {other}, reserved")),
    }
    words.push(format!("ring {}", access >> 5 & 3));
    words.extend((access & 0x80 == 0).then(|| "not present".into()));
    words.join(", ")
}

#[cfg(test)]
mod test {
    use stallbench_abi::layout::{private, private_area};

    use super::in_words;
    use crate::sample::{answer, session_with};

    #[test]
    fn descriptors_are_told_in_words() {
        assert_eq!(in_words(0x00af_9b00_0000_ffff, None), "base 0x0, limit 0xffffffff, code, 64-bit, readable, ring 0");
        assert_eq!(in_words(0x00cf_9300_0000_ffff, None), "base 0x0, limit 0xffffffff, data, writable, ring 0");
        assert_eq!(in_words(0x0000_8b01_3100_0067, Some(0)), "base 0x13100, limit 0x67, TSS, busy, ring 0");
        assert_eq!(in_words(0x0000_8b01_3100_0067, Some(1)), "base 0x100013100, limit 0x67, TSS, busy, ring 0");
        assert!(in_words(u64::MAX, None).contains("code"));
    }

    #[test]
    fn table_of_a_vcpu_is_read_from_its_memory() {
        let mut session = session_with(|machine| {
            let table = private(0) + private_area::GDT;
            machine.memory.put(table + 8, &0x00af_9b00_0000_ffff_u64);
            machine.memory.put(table + 24, &0x0000_8b01_3100_0067_u64);
        });
        let text = answer(&mut session, "gdt").expect("it has an answer").text;
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("vcpu0 gdt at ") && lines[0].ends_with("limit 0x27"), "{text}");
        assert!(lines[1].ends_with("null") && lines[2].contains("code") && lines[4].contains("TSS"), "{text}");
        assert_eq!(lines[5], "0x0020  0x0000000000000000  upper half of the descriptor before");
    }

    #[test]
    fn table_that_is_not_mapped_is_a_line() {
        let mut session = session_with(|machine| {
            machine.machine.vcpus[0].system.as_mut().expect("made so").gdt.base = u64::MAX - 8;
        });
        let error = answer(&mut session, "gdt").expect_err("not mapped").to_string();
        assert!(error.starts_with("vcpu0 has nothing mapped at 0xfffffffffffffff7: its PML4E at "), "{error}");
    }
}
