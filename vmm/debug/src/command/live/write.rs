//! `write`: other values in memory and in registers, after a question.

use serde_json::{Value, json};
use stallbench_state::machine::Registers;
use stallbench_state::paging::PAGE;

use super::stops::bytes;
use crate::address::{Address, address, value};
use crate::answer::{Answer, hex};
use crate::arguments::Arguments;
use crate::bits::{number, too_wide};
use crate::command::{Command, Needs, Takes};
use crate::error::CommandError;
use crate::place;
use crate::registers;
use crate::session::Session;

pub(in crate::command) const COMMAND: Command = Command {
    name: "write",
    usage: "write ADDRESS|$REGISTER VALUE [SIZE] [--yes]",
    summary: "write memory (SIZE bytes: 1, 2, 4, 8) or a general register of the vCPU that is looked at; asks first",
    details: "It asks at a terminal only; elsewhere --yes is needed. Without SIZE it is that of a word that the case \
names,\nelse 4. `phys:` before the address makes it guest-physical. The report of the run tells of it.\n",
    takes: Takes::Address,
    needs: Needs::Live,
    run,
};

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    session.refresh()?;
    let is_said = arguments.flag("--yes");
    let place = arguments.word("the address or register")?;
    let new = value(session, arguments.word("the value")?)?;
    match place.strip_prefix('$').filter(|name| !name.contains(['+', '-'])) {
        Some(name) => {
            arguments.end()?;
            register(session, name, new, is_said)
        }
        None => {
            let word = arguments.next();
            arguments.end()?;
            let named = place::data(session, place).and_then(|(_, size)| size);
            let size = word.map(|word| bytes(&arguments, word)).transpose()?.or(named).unwrap_or(4);
            if size < 8 && new >> (8 * size) != 0 {
                return Err(arguments.wrong(too_wide(new, size)));
            }
            memory(session, address(session, place)?, &new.to_le_bytes()[..size], is_said)
        }
    }
}

fn register(session: &mut Session, name: &str, new: u64, is_said: bool) -> Result<Answer, CommandError> {
    let vcpu = session.vcpu()?;
    let index = vcpu.index;
    let old = registers::value(vcpu, name)?;
    let name = name.to_lowercase();
    let unread = |unread: &_| CommandError::Unread { vcpu: index, unread: Clone::clone(unread) };
    let mut all = *vcpu.registers.as_ref().map_err(unread)?;
    let Some(register) = general(&mut all, &name) else { return Err(CommandError::ReadOnly { name }) };
    *register = new;
    session.confirm(&format!("vcpu{index}: {name} from {old:#x} to {new:#x}?"), is_said)?;
    session.machine()?.set_registers(index, &all)?;
    session.refresh()?;
    Ok(changed(session, &format!("vcpu{index} {name}"), old, new, json!({"vcpu": index, "register": name})))
}

/// A general register, to be written.
fn general<'r>(all: &'r mut Registers, name: &str) -> Option<&'r mut u64> {
    Some(match name {
        "rax" => &mut all.rax,
        "rbx" => &mut all.rbx,
        "rcx" => &mut all.rcx,
        "rdx" => &mut all.rdx,
        "rsi" => &mut all.rsi,
        "rdi" => &mut all.rdi,
        "rbp" => &mut all.rbp,
        "rsp" => &mut all.rsp,
        "r8" => &mut all.r8,
        "r9" => &mut all.r9,
        "r10" => &mut all.r10,
        "r11" => &mut all.r11,
        "r12" => &mut all.r12,
        "r13" => &mut all.r13,
        "r14" => &mut all.r14,
        "r15" => &mut all.r15,
        "rip" => &mut all.rip,
        "rflags" => &mut all.rflags,
        _ => return None,
    })
}

fn memory(session: &mut Session, at: Address, new: &[u8], is_said: bool) -> Result<Answer, CommandError> {
    let old = session.linear()?.read_exact(at, new.len())?;
    let parts = parts(session, at, new.len())?;
    let shown = session.shown(at.value());
    session.confirm(&format!("{shown} from {:#x} to {:#x}?", number(&old), number(new)), is_said)?;
    let mut written = 0;
    for (physical, length) in parts {
        session.machine()?.write(physical, &new[written..written + length])?;
        written += length;
    }
    session.refresh()?;
    let what = json!({"address": hex(at.value()), "size": new.len()});
    Ok(changed(session, &shown, number(&old), number(new), what))
}

/// Where the bytes lie, page by page; all of them are there.
fn parts(session: &Session, at: Address, length: usize) -> Result<Vec<(u64, usize)>, CommandError> {
    let mut parts = Vec::new();
    let mut done = 0;
    while done < length {
        let here = at.plus(done as u64);
        let in_page = ((PAGE - here.value() % PAGE) as usize).min(length - done);
        let physical = session.linear()?.physical(here)?;
        if !session.memory().read(physical, &mut vec![0; in_page]) {
            return Err(CommandError::NoMemory { address: physical });
        }
        parts.push((physical, in_page));
        done += in_page;
    }
    Ok(parts)
}

fn changed(session: &Session, what: &str, old: u64, new: u64, mut data: Value) -> Answer {
    (data["from"], data["to"]) = (hex(old), hex(new));
    Answer::new(format!("{what}: {} -> {}", session.shown(old), session.shown(new)), data)
}

#[cfg(test)]
mod test {
    use std::sync::{Arc, Mutex};

    use stallbench_state::memory::Memory;

    use crate::live::State;
    use crate::sample::live::Lively;
    use crate::sample::{WORDS, answer};

    #[test]
    fn memory_and_registers_are_written_where_yes_stands_in_the_line() {
        let lively = Lively::new();
        let mut session = lively.session();
        let mut said = |line| answer(&mut session, line).map_or_else(|error| error.to_string(), |answer| answer.text);
        assert_eq!(said("write 0x4000e0 0 --yes"), "0x4000e0 (arena+0xe0): 0x1 -> 0x0\n");
        assert_eq!(said("write phys:0x400ffe 0x01020304 --yes"), "0x400ffe (arena+0xffe): 0x0 -> 0x1020304\n");
        assert_eq!(said("vcpu 1; write $RAX 7 --yes"), "vcpu1 rax: 0x0 -> 0x7\n");
        let mut inner = lively.inner();
        assert_eq!(inner.machine.memory.read_u32(WORDS[0]), Some(0));
        assert_eq!(inner.machine.memory.read_u32(0x40_0ffe), Some(0x0102_0304));
        let asked = std::mem::take(&mut inner.asked);
        assert_eq!(
            asked,
            ["write 0x4000e0 [0, 0, 0, 0]", "write 0x400ffe [4, 3]", "write 0x401000 [2, 1]", "registers 1"]
        );
        drop(inner);
        assert_eq!(said("regs").lines().next(), Some("\u{1b}[1mvcpu1\u{1b}[0m"));
    }

    #[test]
    fn without_a_yes_nothing_is_written() {
        let lively = Lively::new();
        let mut session = lively.session();
        let error = answer(&mut session, "write 0x4000e0 0").expect_err("nobody can be asked").to_string();
        assert!(error.starts_with("0x4000e0 (arena+0xe0) from 0x1 to 0x0? ") && error.contains("--yes"), "{error}");
        let questions = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&questions);
        session.set_ask(Box::new(move |question| {
            let mut asked = asked.lock().expect("nobody panicked");
            asked.push(question.to_owned());
            asked.len() > 1
        }));
        let error = answer(&mut session, "write $rip 0").expect_err("no").to_string();
        assert_eq!((error.as_str(), lively.inner().asked.len()), ("nothing was done", 0));
        assert!(answer(&mut session, "write $rip 0").is_ok());
        assert!(questions.lock().expect("nobody panicked")[0].starts_with("vcpu0: rip from 0x"));
        lively.inner().state = State::Running;
        assert_eq!(
            answer(&mut session, "write $rip 0").expect_err("it runs").to_string(),
            "the machine runs; `stop` it first"
        );
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let mut session = Lively::new().session();
        for (line, says) in [
            ("write", "the address or register is missing"),
            ("write $cr3 0 --yes", "cr3 is only read here: general registers, RIP and RFLAGS are written"),
            ("write $xyz 0 --yes", "no register $xyz"),
            ("write 0x4000e0 0x100 b --yes", "0x100 does not fit in 1 byte"),
            ("write 0x4000e0 1 3 --yes", "the size is one of"),
            ("write 0xffff800000000000 1 --yes", "vcpu0 has nothing mapped"),
            ("write phys:0xfffffffffffffffe 1 --yes", "no guest memory at physical address"),
        ] {
            let error = answer(&mut session, line).expect_err("it is wrong").to_string();
            assert!(error.starts_with(says), "{line}: {error}");
        }
    }
}
