//! `control` and `sregs`: control registers bit by bit, segments and descriptor tables.

use serde_json::{Value, json};
use stallbench_state::machine::{Segment, SystemRegisters, VcpuState};

use super::{Command, Needs, Takes};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::bits::{self, Bit};
use crate::error::CommandError;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "control",
    usage: "control [VCPU|all]",
    summary: "CR0, CR4, EFER and RFLAGS, bit by bit",
    details: "Of the bits that are clear, those are shown that a stall may hang on: RFLAGS.IF, CR0.CD, CR4.PGE.\n",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run: control,
};

pub(super) const SREGS: Command = Command {
    name: "sregs",
    usage: "sregs [VCPU|all]",
    summary: "control registers, segments with their hidden parts, descriptor tables",
    details: "",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run: sregs,
};

/// Bits that are shown when they are clear, too: register, bit, what that means.
const CLEAR: [(&str, u32, &str); 3] =
    [("rflags", 9, "maskable interrupts are held back"), ("cr0", 30, "caches on"), ("cr4", 7, "no global pages")];

fn control(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let vcpus = session.vcpus_of(arguments.next())?;
    arguments.end()?;
    let (mut text, mut data) = (String::new(), Vec::new());
    for vcpu in vcpus {
        let registers = decoded(vcpu);
        text.push_str(&style::heading(&format!("vcpu{}", vcpu.index)));
        text.push('\n');
        for (name, register) in &registers {
            match register {
                Ok((value, bits)) => text.push_str(&in_text(name, *value, bits)),
                Err(unread) => text.push_str(&format!("  {name}: {unread}\n")),
            }
        }
        data.push(in_data(vcpu, &registers));
    }
    Ok(Answer::new(text, json!(data)))
}

type Register = Result<(u64, &'static [Bit]), String>;

fn decoded(vcpu: &VcpuState) -> [(&'static str, Register); 4] {
    let system = |of: fn(&SystemRegisters) -> u64| vcpu.system.as_ref().map(of).map_err(ToString::to_string);
    let rflags = vcpu.registers.as_ref().map(|registers| registers.rflags).map_err(ToString::to_string);
    [
        ("cr0", system(|system| system.cr0).map(|value| (value, bits::CR0))),
        ("cr4", system(|system| system.cr4).map(|value| (value, bits::CR4))),
        ("efer", system(|system| system.efer).map(|value| (value, bits::EFER))),
        ("rflags", rflags.map(|value| (value, bits::RFLAGS))),
    ]
}

fn in_text(name: &str, value: u64, all: &[Bit]) -> String {
    let mut rows = Vec::new();
    for (bit, bit_name, what) in all {
        let clear = CLEAR.iter().find(|(register, number, _)| *register == name && number == bit);
        match (value >> bit & 1 == 1, clear) {
            (true, _) => rows.push(row(["   ", &format!("{bit:2}"), &format!("{bit_name}=1"), what])),
            (false, Some((.., what))) => rows.push(row(["   ", &format!("{bit:2}"), &format!("{bit_name}=0"), what])),
            (false, None) => {}
        }
    }
    format!("  {name} {value:#x}  {}\n{}", bits::names(all, value), columns(&rows))
}

fn in_data(vcpu: &VcpuState, registers: &[(&'static str, Register); 4]) -> Value {
    let mut data = json!({"vcpu": vcpu.index});
    for (name, register) in registers {
        data[*name] = match register {
            Ok((value, bits)) => {
                let set = bits.iter().filter(|(bit, ..)| value >> bit & 1 == 1).map(|(_, name, _)| *name);
                json!({"value": hex(*value), "set": set.collect::<Vec<_>>()})
            }
            Err(unread) => json!({"error": unread}),
        };
    }
    data
}

fn sregs(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let vcpus = session.vcpus_of(arguments.next())?;
    arguments.end()?;
    let (mut text, mut data) = (String::new(), Vec::new());
    for vcpu in vcpus {
        text.push_str(&style::heading(&format!("vcpu{}", vcpu.index)));
        text.push('\n');
        match &vcpu.system {
            Ok(system) => {
                text.push_str(&system_in_text(session, system));
                data.push(system_in_data(vcpu.index, system));
            }
            Err(unread) => {
                text.push_str(&format!("  {unread}\n"));
                data.push(json!({"vcpu": vcpu.index, "error": unread.to_string()}));
            }
        }
    }
    Ok(Answer::new(text, json!(data)))
}

fn system_in_text(session: &Session, system: &SystemRegisters) -> String {
    let meaning = |value: u64| session.meaning(value).unwrap_or_default();
    let plain = [
        ("cr0", system.cr0, bits::names(bits::CR0, system.cr0)),
        ("cr2", system.cr2, meaning(system.cr2)),
        ("cr3", system.cr3, meaning(system.cr3)),
        ("cr4", system.cr4, bits::names(bits::CR4, system.cr4)),
        ("cr8", system.cr8, format!("priority class {}", system.cr8)),
        ("efer", system.efer, bits::names(bits::EFER, system.efer)),
        (
            "apic_base",
            system.apic_base,
            format!("{} at {:#x}", bits::names(bits::APIC_BASE, system.apic_base & 0xfff), system.apic_base & !0xfff),
        ),
    ];
    let mut rows: Vec<_> =
        plain.iter().map(|(name, value, words)| row([&format!("  {name}"), &format!("{value:#x}"), words])).collect();
    for (name, table) in [("gdtr", system.gdt), ("idtr", system.idt)] {
        let what = format!("limit {:#x}  {}", table.limit, meaning(table.base));
        rows.push(row([&format!("  {name}"), &format!("{:#x}", table.base), &what]));
    }
    for (name, segment) in segments(system) {
        rows.push(row([&format!("  {name}"), &format!("{:#x}", segment.selector), &segment_in_words(&segment)]));
    }
    columns(&rows)
}

fn segments(system: &SystemRegisters) -> [(&'static str, Segment); 8] {
    let s = system;
    [("cs", s.cs), ("ds", s.ds), ("es", s.es), ("fs", s.fs), ("gs", s.gs), ("ss", s.ss), ("tr", s.tr), ("ldtr", s.ldt)]
}

fn segment_in_words(segment: &Segment) -> String {
    let Segment { base, limit, access, .. } = segment;
    if access & 1 << 16 != 0 {
        return "unusable".into();
    }
    // The same layout as the upper word of a descriptor, shifted down.
    format!("base {base:#x}, limit {limit:#x}, {}", super::gdt::access_in_words(access & 0xff, access >> 12 & 0xf))
}

fn system_in_data(vcpu: usize, system: &SystemRegisters) -> Value {
    let mut data = json!({
        "vcpu": vcpu,
        "cr0": hex(system.cr0),
        "cr2": hex(system.cr2),
        "cr3": hex(system.cr3),
        "cr4": hex(system.cr4),
        "cr8": hex(system.cr8),
        "efer": hex(system.efer),
        "apic_base": hex(system.apic_base),
        "gdtr": {"base": hex(system.gdt.base), "limit": system.gdt.limit},
        "idtr": {"base": hex(system.idt.base), "limit": system.idt.limit},
    });
    for (name, Segment { selector, base, limit, access }) in segments(system) {
        data[name] = json!({"selector": selector, "base": hex(base), "limit": limit, "access": access});
    }
    data
}

#[cfg(test)]
mod test {
    use crate::sample::{answer, session_with, text, unread};

    #[test]
    fn bits_that_a_stall_may_hang_on_are_shown_clear_too() {
        let text = text("control 1");
        for line in [
            "9  IF=0  maskable interrupts are held back",
            "30  CD=0  caches on",
            "7  PGE=1  global pages",
            "31  PG=1  paging",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn group_that_was_not_read_shows_its_error_beside_the_others() {
        let mut session = session_with(|machine| machine.machine.vcpus[0].system = unread("system registers"));
        let text = answer(&mut session, "control").expect("it has an answer").text;
        assert!(text.contains("cr0: system registers could not be read: EIO") && text.contains("IF=1"), "{text}");
        let text = answer(&mut session, "sregs all").expect("it has an answer").text;
        assert!(text.contains("system registers could not be read: EIO") && text.contains("cr3"), "{text}");
    }

    #[test]
    fn segments_and_tables_are_told_in_words() {
        let text = text("sregs");
        assert!(text.contains("vcpu0 page tables") && text.contains("vcpu0 descriptor tables"), "{text}");
        assert!(text.contains("EXTD EN at 0xfee00000") || text.contains("BSP EXTD EN at 0xfee00000"), "{text}");
        assert!(text.contains("base 0x0, limit 0xffffffff, code, 64-bit"), "{text}");
    }
}
