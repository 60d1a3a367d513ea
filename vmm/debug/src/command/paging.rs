//! `paging`: from a linear address to a physical one, entry by entry.

use serde_json::{Value, json};

use super::{Command, Needs, Takes};
use crate::address::value;
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::bits;
use crate::error::CommandError;
use crate::linear::{LEVELS, Linear, Step};
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "paging",
    usage: "paging ADDRESS [VCPU]",
    summary: "the walk through the page tables to an address, each entry decoded",
    details: "",
    takes: Takes::Address,
    needs: Needs::Machine,
    run,
};

/// The address in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let linear = value(session, arguments.word("the address")?)?;
    let vcpu = session.vcpu_of(arguments.next())?;
    arguments.end()?;
    let tables = Linear::of(session.memory(), vcpu)?;
    let heading = format!("vcpu{} {}\n", vcpu.index, session.shown(linear));
    if !tables.is_paged() {
        let data = json!({"vcpu": vcpu.index, "physical": hex(linear), "steps": []});
        return Ok(Answer::new(heading + "paging is off: it is its own physical address\n", data));
    }
    let not_known = || arguments.wrong("the vCPU is in a paging mode other than that of four levels in 64-bit mode");
    let walk = tables.walk(linear).ok_or_else(not_known)?;
    let rows: Vec<_> = LEVELS.iter().zip(&walk.steps).map(|(level, step)| in_row(session, level, step)).collect();
    let end = match walk.physical {
        Some(physical) => format!("physical {}\n", session.shown(physical)),
        None => "not mapped\n".into(),
    };
    let steps: Vec<_> = LEVELS.iter().zip(&walk.steps).map(|(level, step)| in_data(level, step)).collect();
    let data = json!({"vcpu": vcpu.index, "linear": hex(linear), "physical": walk.physical.map(hex), "steps": steps});
    Ok(Answer::new(heading + &columns(&rows) + &end, data))
}

fn in_row(session: &Session, level: &str, step: &Step) -> Vec<String> {
    let (entry, words) = match step.entry {
        Some(entry) => (format!("{entry:#x}"), in_words(level, entry)),
        None => ("-".into(), "no guest memory is there".into()),
    };
    row([&format!("  {level}"), &format!("at {}", session.shown(step.at)), &entry, &words])
}

fn in_words(level: &str, entry: u64) -> String {
    if entry & 1 == 0 {
        return "not present".into();
    }
    // Bit 7 says page size above the last level, and PAT in it (SDM 3A 5.5.4).
    let bit7 = match (level, entry >> 7 & 1) {
        (_, 0) | ("PML4E", _) => "",
        ("PTE", _) => ", PAT",
        ("PDE", _) => ", a page of 2 MiB",
        _ => ", a page of 1 GiB",
    };
    let flags = entry & !ADDRESS & !(1 << 7) & !(0x7ff << 52 | 0xe00);
    format!("{} to {:#x}{bit7}", bits::names(bits::PAGE_ENTRY, flags), entry & ADDRESS)
}

fn in_data(level: &str, step: &Step) -> Value {
    let words = step.entry.map(|entry| in_words(level, entry));
    json!({"level": level, "at": hex(step.at), "entry": step.entry.map(hex), "words": words})
}

#[cfg(test)]
mod test {
    use stallbench_abi::layout::{PAGE, cr3};

    use crate::sample::{answer, refusal, session_with, text};

    #[test]
    fn walk_shows_every_entry_to_the_page() {
        let text = text("paging 0x4000e0");
        assert!(text.starts_with("vcpu0 0x4000e0 (arena+0xe0)\n  PML4E  at 0xc00000 (vcpu0 page tables)"), "{text}");
        assert!(
            text.contains("PDE    at 0xc02010") && text.contains("P W A D to 0x400000, a page of 2 MiB\n"),
            "{text}"
        );
        assert!(text.ends_with("physical 0x4000e0 (arena+0xe0)\n"), "{text}");
    }

    #[test]
    fn walk_that_ends_says_where() {
        assert!(text("paging 0xffff800000000000 1").ends_with("  not present\nnot mapped\n"));
        let mut session = session_with(|machine| machine.memory.put(cr3(0) + PAGE, &0x000f_ffff_ffff_f001_u64));
        let text = answer(&mut session, "paging 0x4000e0").expect("it has an answer").text;
        assert!(text.contains("no guest memory is there\nnot mapped\n"), "{text}");
    }

    #[test]
    fn vcpu_without_paging_or_in_another_mode_is_told() {
        let mut session = session_with(|machine| {
            machine.machine.vcpus[0].system.as_mut().expect("made so").cr0 = 1;
            machine.machine.vcpus[1].system.as_mut().expect("made so").efer = 0;
        });
        assert!(answer(&mut session, "paging 5").expect("it has an answer").text.contains("paging is off"));
        let error = answer(&mut session, "paging 5 1").expect_err("not known").to_string();
        assert!(error.starts_with("the vCPU is in a paging mode other than "), "{error}");
        assert!(refusal("paging").starts_with("the address is missing"));
    }
}
