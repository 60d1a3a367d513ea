//! `idt`: the interrupt descriptor table of a vCPU, decoded (SDM 3A 7.14.1).

use serde_json::{Value, json};

use super::{Command, Needs, Takes};
use crate::address::Address;
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::linear::Linear;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "idt",
    usage: "idt [VCPU] [VECTOR]",
    summary: "the interrupt descriptor table: each gate with its handler; of gates that follow the one before, the first alone",
    details: "",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

/// Bytes of a gate in 64-bit mode.
const GATE: usize = 16;

/// A gate.
#[derive(Clone, Copy)]
struct Gate {
    offset: u64,
    selector: u16,
    ist: u8,
    access: u8,
}

impl Gate {
    fn of(bytes: &[u8; GATE]) -> Self {
        let low = u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
        let high = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let offset = low & 0xffff | low >> 32 & 0xffff_0000 | u64::from(high) << 32;
        Self { offset, selector: (low >> 16) as u16, ist: (low >> 32) as u8 & 7, access: (low >> 40) as u8 }
    }

    fn is_present(self) -> bool {
        self.access & 0x80 != 0
    }

    fn in_words(self) -> String {
        if !self.is_present() {
            return "not present".into();
        }
        let kind = match self.access & 0x1f {
            0xe => "interrupt gate".into(),
            0xf => "trap gate".into(),
            other => format!("type {other:#x}, no gate of 64-bit mode"),
        };
        let ist = if self.ist == 0 { String::new() } else { format!(", IST {}", self.ist) };
        format!("{kind}, selector {:#x}{ist}, ring {}", self.selector, self.access >> 5 & 3)
    }

    /// Whether it differs from the gate before only by the next stub.
    fn follows(self, before: Self, distance: u64) -> bool {
        let same = (self.selector, self.ist, self.access) == (before.selector, before.ist, before.access);
        same && (!self.is_present() || self.offset == before.offset.wrapping_add(distance))
    }
}

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let vcpu = session.vcpu_of(arguments.next())?;
    let wanted = arguments.next().map(|word| crate::address::value(session, word)).transpose()?;
    arguments.end()?;
    let linear = Linear::of(session.memory(), vcpu)?;
    let table = linear.table(|system| system.idt);
    let length = ((usize::from(table.limit) + 1) / GATE).min(256);
    let bytes = linear.read(Address::Linear(table.base), (length * GATE).max(GATE))?;
    let (gates, _) = bytes.as_chunks::<GATE>();
    let gates: Vec<Gate> = gates.iter().map(Gate::of).collect();
    if let Some(wanted) = wanted.filter(|wanted| *wanted >= gates.len() as u64) {
        return Err(arguments.wrong(format!("there is no vector {wanted:#x} in a table of limit {:#x}", table.limit)));
    }
    let shown = gates.iter().copied().enumerate().filter(|(at, _)| wanted.is_none_or(|wanted| wanted == *at as u64));
    let data: Vec<Value> = shown.map(|(at, gate)| in_data(session, at, gate)).collect();
    let rows = rows(session, &gates, wanted);
    let heading = format!("vcpu{} idt at {}, limit {:#x}\n", vcpu.index, session.shown(table.base), table.limit);
    Ok(Answer::new(heading + &columns(&rows), json!(data)))
}

fn rows(session: &Session, gates: &[Gate], wanted: Option<u64>) -> Vec<Vec<String>> {
    let distance = gates.get(..2).map_or(0, |two| two[1].offset.wrapping_sub(two[0].offset));
    let of = |at: usize, gate: Gate, more: usize| {
        let range = if more == 0 {
            session.vector(at as u64)
        } else {
            format!("{} to {:#x}", session.vector(at as u64), at + more)
        };
        let handler = if gate.is_present() { session.shown(gate.offset) } else { "-".into() };
        row([&range, &handler, &gate.in_words()])
    };
    if let Some(wanted) = wanted {
        let at = usize::try_from(wanted).unwrap_or(usize::MAX);
        return gates.get(at).map(|gate| vec![of(at, *gate, 0)]).unwrap_or_default();
    }
    let mut rows = Vec::new();
    let mut first = 0;
    for at in 1..=gates.len() {
        let goes_on = gates.get(at).is_some_and(|gate| gate.follows(gates[at - 1], distance));
        if !goes_on {
            rows.push(of(first, gates[first], at - 1 - first));
            first = at;
        }
    }
    rows
}

fn in_data(session: &Session, at: usize, gate: Gate) -> Value {
    json!({
        "vector": at,
        "present": gate.is_present(),
        "handler": hex(gate.offset),
        "symbol": session.meaning(gate.offset),
        "words": gate.in_words(),
    })
}

#[cfg(test)]
mod test {
    use stallbench_abi::layout::STUBS;

    use crate::sample::{answer, refusal, session, session_with, text};

    #[test]
    fn gates_of_the_image_lead_to_its_stubs() {
        let text = text("idt");
        assert!(text.starts_with("vcpu0 idt at 0x9000 (interrupt descriptor table), limit 0xfff\n"), "{text}");
        let nmi = text.lines().find(|line| line.starts_with("0x2 ")).expect("there is one");
        assert!(nmi.contains(&format!("{:#x}", STUBS + 0x20)) && nmi.contains("IST 2"), "{text}");
        assert!(text.lines().last().is_some_and(|line| line.contains(" to 0xff")), "{text}");
        assert!(text.lines().count() < 10, "{text}");
    }

    #[test]
    fn one_vector_is_asked_for_by_its_number() {
        let mut session = session();
        let answer = answer(&mut session, "idt 0 0xfb").expect("it has an answer");
        assert_eq!(answer.text.lines().count(), 2, "{}", answer.text);
        assert_eq!(answer.data[0]["vector"], 0xfb);
        assert!(refusal("idt 0 300").starts_with("there is no vector 0x12c in a table of limit 0xfff; usage: idt "));
    }

    #[test]
    fn short_table_has_the_gates_that_it_has() {
        let mut session =
            session_with(|machine| machine.machine.vcpus[0].system.as_mut().expect("made so").idt.limit = 0);
        assert!(answer(&mut session, "idt").is_ok());
    }
}
