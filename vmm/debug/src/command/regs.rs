//! `regs`: general registers.

use serde_json::{Map, Value, json};
use stallbench_state::machine::VcpuState;

use super::{Command, Needs, Takes, of_each};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::bits;
use crate::error::CommandError;
use crate::registers::GENERAL;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "regs",
    usage: "regs [VCPU|all]",
    summary: "general registers, with what they point to",
    details: "",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    of_each(session, arguments, in_text, |_, vcpu| in_data(vcpu))
}

fn in_text(session: &Session, vcpu: &VcpuState) -> String {
    let heading = style::heading(&format!("vcpu{}", vcpu.index));
    let registers = match &vcpu.registers {
        Ok(registers) => registers,
        Err(unread) => return format!("{heading}\n  {unread}\n"),
    };
    let of = |(name, of): &(&str, fn(&_) -> u64)| {
        let value = of(registers);
        row([&format!("  {name}"), &format!("{value:#018x}"), &meaning(session, name, value)])
    };
    format!("{heading}\n{}", columns(&GENERAL.iter().map(of).collect::<Vec<_>>()))
}

fn meaning(session: &Session, name: &str, value: u64) -> String {
    match name {
        "rflags" => bits::names(bits::RFLAGS, value),
        "rip" => match session.source().line(value) {
            Some(line) => format!("{} at {line}", session.meaning(value).unwrap_or_default()),
            None => session.meaning(value).unwrap_or_default(),
        },
        _ => session.meaning(value).unwrap_or_default(),
    }
}

fn in_data(vcpu: &VcpuState) -> Value {
    match &vcpu.registers {
        Ok(registers) => {
            let all: Map<_, _> = GENERAL.iter().map(|(name, of)| ((*name).to_owned(), hex(of(registers)))).collect();
            json!({"vcpu": vcpu.index, "registers": all})
        }
        Err(unread) => json!({"vcpu": vcpu.index, "error": unread.to_string()}),
    }
}

#[cfg(test)]
mod test {
    use crate::sample::{WORDS, answer, rip, session_with, text, unread};

    #[test]
    fn registers_are_shown_with_what_they_point_to() {
        let text = text("regs");
        let line =
            |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).expect("there").to_owned();
        assert!(line("rip").contains(&format!("{:#018x}", rip())) && line("rip").contains(".rs:"), "{text}");
        assert!(line("rdi").ends_with("arena+0xe0"), "{text}");
        assert!(line("rsp").ends_with("vcpu0 task stack+0x7f80"), "{text}");
        assert!(line("rflags").ends_with("IF"), "{text}");
    }

    #[test]
    fn registers_of_all_are_data_too() {
        let data = answer(&mut crate::sample::session(), "regs all").expect("it has an answer").data;
        assert_eq!(data[1]["registers"]["rdi"], format!("{:#x}", WORDS[1]));
    }

    #[test]
    fn registers_that_were_not_read_say_why() {
        let mut session = session_with(|machine| machine.machine.vcpus[0].registers = unread("general registers"));
        let answer = answer(&mut session, "regs").expect("it has an answer");
        assert!(answer.text.contains("general registers could not be read: EIO"));
        assert_eq!(answer.data[0]["error"], "general registers could not be read: EIO");
    }
}
