//! `print`: structures by name, each number with its meaning.

mod contract;
mod record;

use serde_json::{Map, Value, json};

use super::{Command, Needs, Takes};
use crate::address::{address, value};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::bits;
use crate::error::CommandError;
use crate::nearest::did_you_mean;
use crate::session::Session;
use crate::types::Structure;

pub(super) const COMMAND: Command = Command {
    name: "print",
    usage: "print NAME [VCPU|ADDRESS] | print --types [PART]",
    summary: "a structure of the contract, or one of the guest's own at an address, in words",
    details: "Of the contract: boot, knobs, ghost, pause, faults, and of a vCPU page, contexts, epitaph, log; `mark ADDRESS` is the \
lifetime\nmark of the object there, `frame ADDRESS` what an interrupt stub saved, `queue ADDRESS` what lies on the list with its head \
there.\nOf the guest's own, by its DWARF: the last parts of the path of a structure (CallSingle) and an address; --types lists those.\n",
    takes: Takes::Structure,
    needs: Needs::Machine,
    run,
};

/// Fields of a structure, with their values in words.
type Fields = Vec<(String, String)>;

/// The names that can stand behind `print`.
pub(crate) fn names(session: &Session) -> Vec<String> {
    let own =
        session.types().all().iter().map(|structure| structure.path.rsplit("::").next().unwrap_or_default().to_owned());
    contract::NAMES.iter().map(|name| (*name).to_owned()).chain(own).collect()
}

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    if arguments.flag("--types") {
        let part = arguments.next().unwrap_or_default();
        arguments.end()?;
        return Ok(types(session, part));
    }
    let name = arguments.word("the name")?;
    let place = arguments.next();
    arguments.end()?;
    if let Some(fields) = contract::print(session, name, place)? {
        return Ok(answer(name, fields));
    }
    own(session, &arguments, name, place)
}

fn answer(name: &str, fields: Fields) -> Answer {
    let rows: Vec<_> = fields.iter().map(|(field, words)| row([&format!("  {field}"), words])).collect();
    let data: Map<_, _> = fields.into_iter().map(|(field, words)| (field, Value::String(words))).collect();
    Answer::new(format!("{name}\n{}", columns(&rows)), Value::Object(data))
}

/// The structures of the guest's own.
fn types(session: &Session, part: &str) -> Answer {
    let all = session.types().all().iter();
    let found: Vec<_> =
        all.filter(|structure| structure.path.contains(part) && !structure.path.contains('<')).collect();
    let rows: Vec<_> = found.iter().map(|one| row([&one.path, &format!("{} bytes", one.size)])).collect();
    let text = if rows.is_empty() { "none\n".into() } else { columns(&rows) };
    let data: Vec<_> = found.iter().map(|one| json!({"name": one.path, "size": one.size})).collect();
    Answer::new(text, json!(data))
}

/// A structure of the guest's own at an address.
fn own(session: &Session, arguments: &Arguments<'_>, name: &str, place: Option<&str>) -> Result<Answer, CommandError> {
    let structure = match session.types().named(name)[..] {
        [] => return Err(unknown(session, name)),
        [structure] => structure,
        [first, ..] => {
            let count = session.types().named(name).len();
            return Err(CommandError::Ambiguous { name: name.into(), count, first: first.path.clone() });
        }
    };
    let Some(place) = place else { return Err(arguments.wrong(format!("{name} needs the address where it lies"))) };
    let at = address(session, place)?;
    let length = usize::try_from(structure.size).unwrap_or(usize::MAX).min(LARGEST);
    let bytes = session.linear()?.read_exact(at, length)?;
    let fields = session.types().fields(structure).into_iter().filter_map(|field| {
        let start = usize::try_from(field.offset).ok()?;
        let bytes = bytes.get(start..start + field.size as usize)?;
        let number = bits::number(bytes);
        let words = match record::meaning(session, &structure.path, &field.path, number) {
            Some(meaning) => format!("{number:#x} ({meaning})"),
            None => in_words(session, number, bytes.len()),
        };
        Some((field.path, words))
    });
    Ok(answer(&heading(session, structure, at.value()), fields.collect()))
}

/// Largest structure that is read.
const LARGEST: usize = 1 << 16;

fn heading(session: &Session, structure: &Structure, at: u64) -> String {
    format!("{} at {}", structure.path, session.shown(at))
}

/// A number, and what it could be the address of.
fn in_words(session: &Session, number: u64, size: usize) -> String {
    match size {
        8 => session.shown(number),
        _ if number < 10 => number.to_string(),
        _ => format!("{number} ({number:#x})"),
    }
}

fn unknown(session: &Session, name: &str) -> CommandError {
    let names = names(session);
    CommandError::UnknownStructure { name: name.into(), near: did_you_mean(name, names.iter().map(String::as_str)) }
}

/// The vCPU of a word, or the current.
fn vcpu(session: &Session, place: Option<&str>) -> Result<usize, CommandError> {
    session.vcpu_of(place).map(|vcpu| vcpu.index)
}

/// An address that must be there.
fn at(session: &Session, place: Option<&str>) -> Result<u64, CommandError> {
    value(session, place.unwrap_or("$rsp"))
}

/// A hexadecimal number in words.
fn number(value: u64) -> String {
    hex(value).as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod test {
    use serde_json::json;
    use stallbench_abi::arena::{Life, MARK, Mark};
    use stallbench_abi::boot::{BootBlock, MAGIC};
    use stallbench_abi::knob::{CALL, call};
    use stallbench_abi::layout::BOOT_BLOCK;
    use stallbench_abi::vcpu::VcpuPage;

    use crate::sample::{WORDS, answer, refusal, session_with, text};

    #[test]
    fn contract_structures_are_told_in_words() {
        assert!(text("print boot").contains("seed") && text("print boot").contains("vcpus"));
        let contexts = text("print contexts 1");
        assert!(contexts.contains("context 0") && contexts.contains("task"), "{contexts}");
        assert!(
            contexts.contains("until (word & 0x1) is equal 0x0") && contexts.contains("awaits vcpu0"),
            "{contexts}"
        );
        assert!(text("print page").contains("case"), "{}", text("print page"));
        for name in super::contract::NAMES.iter().filter(|name| !["mark", "frame", "queue"].contains(name)) {
            assert!(text(&format!("print {name}")).starts_with(name), "{name}");
        }
    }

    #[test]
    fn texts_of_a_guest_cannot_move_the_cursor() {
        let mut session = session_with(|machine| {
            let mut page = VcpuPage::default();
            page.log[..6].copy_from_slice(b"a\x1b[2Jb");
            machine.memory.put(stallbench_abi::layout::private(0), &page);
        });
        let text = answer(&mut session, "print log").expect("it has an answer").text;
        assert!(text.contains("a?[2Jb") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn mark_of_an_object_is_found_before_it() {
        let mark = Mark {
            magic: MARK,
            life: Life::DEAD,
            owner: 1,
            generation: 3,
            size: 32,
            name: *b"csd\0\0\0\0\0",
            ..Mark::default()
        };
        let mut session = session_with(|machine| machine.memory.put(WORDS[0] - 32, &mark));
        let text = answer(&mut session, "print mark 0x4000e0").expect("it has an answer").text;
        assert!(text.contains("csd") && text.contains("dead") && text.contains("vcpu1"), "{text}");
    }

    #[test]
    fn queue_is_followed_from_its_head_and_back() {
        let of = |links: &[(u64, u64)]| {
            let put = |machine: &mut crate::sample::Machine| {
                links.iter().for_each(|(at, next)| machine.memory.put(*at, next))
            };
            answer(&mut session_with(put), "print queue 0x400800").expect("it has an answer").text
        };
        assert!(of(&[(0x40_0800, 0x40_0800)]).contains("none: its head leads to itself"));
        assert!(of(&[]).contains("none: it was never made"));
        let two = of(&[(0x40_0800, 0x40_0900), (0x40_0900, 0x40_0a00), (0x40_0a00, 0x40_0800)]);
        assert!(two.contains("link 0  0x400900 (arena+0x900)\n  link 1  0x400a00 (arena+0xa00)\n"), "{two}");
        assert!(of(&[(0x40_0800, 0x40_0900), (0x40_0900, 0x40_0900)]).contains("more than 64 links"));
        assert!(of(&[(0x40_0800, 1 << 40)]).contains("no guest memory at 0x10000000000"));
    }

    #[test]
    fn structure_of_the_payload_is_read_from_memory() {
        let text = text("print record::CallSingle 0x4000e0");
        assert!(text.starts_with("stallbench_payload::call::record::CallSingle at 0x4000e0 (arena+0xe0)\n"), "{text}");
        assert!(text.contains("  flags"), "{text}");
        assert!(crate::sample::text("print --types CallSingle").contains("call::record::CallSingle"));
    }

    #[test]
    fn fields_of_a_call_record_are_words_of_its_layer() {
        let of = |layer: u8, flags: u32| {
            let mut session = session_with(|machine| {
                let mut block = BootBlock { magic: MAGIC, vcpus: 2, ..BootBlock::default() };
                block.knobs[CALL.number as usize] = layer.into();
                machine.memory.put(BOOT_BLOCK, &block);
                // Flags, who called, whom.
                let program = machine.payload.clone();
                let types = crate::types::Types::of(&program);
                let fields = types.fields(types.named("record::CallSingle")[0]);
                let offset = |path: &str| fields.iter().find(|field| field.path == path).expect("it is there").offset;
                [("flags", flags), ("caller", 2), ("target", 0)]
                    .iter()
                    .for_each(|(path, value)| machine.memory.put(0x40_0800 + offset(path), value));
            });
            answer(&mut session, "print record::CallSingle 0x400800").expect("it has an answer").data
        };
        let data = of(call::RELEASE, 6);
        assert_eq!((&data["flags"], &data["caller"]), (&json!("0x6 (ALLOC RELEASE)"), &json!("0x2 (vcpu1)")));
        assert_eq!(data["target"], "0x0 (none)");
        assert_eq!(of(call::LLIST, 0x11)["flags"], "0x11 (LOCK SYNC)");
        assert_eq!(of(call::PERCPU_LOCK, 3)["flags"], "0x3 (LOCK unknown 0x2)");
        assert_eq!(of(200, 3)["flags"], "3");
    }

    #[test]
    fn name_that_does_not_exist_gets_the_nearest() {
        assert!(refusal("print contxets").contains("did you mean contexts"), "{}", refusal("print contxets"));
        assert!(refusal("print record::CallSingel 1").contains("did you mean CallSingle"));
        assert!(refusal("print record::CallSingle").contains("needs the address where it lies"));
        assert!(refusal("print").starts_with("the name is missing"));
    }
}
