//! `bt`: who called whom, through inlined functions and across interrupts.

mod unwind;

use serde_json::{Value, json};
use stallbench_state::machine::VcpuState;

use super::{Command, Needs, Takes};
use crate::answer::{Answer, hex};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;
use crate::source::Spot;
use crate::style;
use unwind::{Frame, Kind};

pub(super) const COMMAND: Command = Command {
    name: "bt",
    usage: "bt [VCPU|all]",
    summary: "who called whom, of all vCPUs or one: functions, lines, inlined frames, across interrupts",
    details: "Frames are found by frame pointers, lines by the DWARF of the guest's own file. Behind an interrupt the frame that its \
stub\nsaved says what was interrupted.\n",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let vcpus = session.vcpus_of(arguments.next().or(Some("all")))?;
    arguments.end()?;
    let (mut text, mut data) = (String::new(), Vec::new());
    for vcpu in vcpus {
        let (more, one) = of(session, vcpu);
        text.push_str(&more);
        data.push(one);
    }
    Ok(Answer::new(text, json!(data)))
}

fn of(session: &Session, vcpu: &VcpuState) -> (String, Value) {
    let heading = style::heading(&format!("vcpu{}", vcpu.index));
    let trace = match unwind::trace(session, vcpu) {
        Ok(trace) => trace,
        Err(error) => {
            return (format!("{heading}\n  {error}\n"), json!({"vcpu": vcpu.index, "error": error.to_string()}));
        }
    };
    let (mut text, mut frames) = (format!("{heading}\n"), Vec::new());
    for (number, frame) in trace.frames.iter().enumerate() {
        if let Kind::Interrupted(what) = &frame.kind {
            text.push_str(&format!("      -- interrupted by {what} --\n"));
        }
        let spots = spots(session, frame);
        text.push_str(&in_text(session, number, frame, &spots));
        frames.push(in_data(session, frame, &spots));
    }
    text.push_str(&trace.end.as_ref().map(|end| format!("      ({end})\n")).unwrap_or_default());
    (text, json!({"vcpu": vcpu.index, "frames": frames, "end": trace.end}))
}

/// The functions of a frame: a return address belongs to the call before it.
fn spots(session: &Session, frame: &Frame) -> Vec<Spot> {
    session.source().spots(frame.rip.saturating_sub(back(frame)))
}

fn back(frame: &Frame) -> u64 {
    u64::from(frame.kind == Kind::Called)
}

/// The function of a frame, which may end with its call.
fn symbol(session: &Session, frame: &Frame) -> Option<String> {
    let back = back(frame);
    match session.symbols().at(frame.rip.saturating_sub(back)) {
        Some((symbol, offset)) if offset + back == 0 => Some(symbol.name.clone()),
        Some((symbol, offset)) => Some(format!("{}+{:#x}", symbol.name, offset + back)),
        None => session.meaning(frame.rip),
    }
}

fn in_text(session: &Session, number: usize, frame: &Frame, spots: &[Spot]) -> String {
    let symbol = symbol(session, frame);
    let mut text = String::new();
    let (inlined, own) = spots.split_at(spots.len().saturating_sub(1));
    for spot in inlined {
        text.push_str(&format!("  {:>22}  {}{}  inlined\n", "", name(spot), line(spot)));
    }
    let function = symbol.or_else(|| own.first().and_then(|spot| spot.function.clone())).unwrap_or_else(|| "?".into());
    let at = own.first().map(line).unwrap_or_default();
    text.push_str(&format!("  #{number:<2} {:#018x}  {function}{at}\n", frame.rip));
    text
}

fn name(spot: &Spot) -> &str {
    spot.function.as_deref().unwrap_or("?")
}

fn line(spot: &Spot) -> String {
    spot.line.as_ref().map(|line| format!(" at {line}")).unwrap_or_default()
}

fn in_data(session: &Session, frame: &Frame, spots: &[Spot]) -> Value {
    let interrupted_by = match &frame.kind {
        Kind::Interrupted(what) => Some(what),
        Kind::Innermost | Kind::Called => None,
    };
    let spots: Vec<_> = spots.iter().map(|spot| json!({"function": spot.function, "line": spot.line})).collect();
    json!({
        "rip": hex(frame.rip),
        "symbol": symbol(session, frame),
        "interrupted_by": interrupted_by,
        "spots": spots,
    })
}

#[cfg(test)]
mod test {
    use stallbench_abi::layout::{private, private_area};
    use stallbench_abi::vcpu;

    use crate::sample::{self, answer, session_with, text, unread};

    const STACK: u64 = private(0) + private_area::TASK_STACK_TOP - 0x400;

    fn address(name: &str) -> u64 {
        sample::session().symbols().named(name).expect("the image has it").address
    }

    /// vCPU 0 with that stack: words from RBP on.
    fn with_stack(words: &[(u64, u64)]) -> String {
        let mut session = session_with(|machine| {
            machine.machine.vcpus[0].registers.as_mut().expect("made so").rbp = STACK;
            words.iter().for_each(|(at, word)| machine.memory.put(STACK + at, word));
        });
        answer(&mut session, "bt 0").expect("it has an answer").text
    }

    #[test]
    fn innermost_frame_has_its_inlined_functions_and_lines() {
        let text = text("bt 0");
        assert!(text.contains("guest/rt/src/wait.rs:"), "{text}");
        assert!(text.contains(&format!("#0  {:#018x}", sample::rip())), "{text}");
    }

    #[test]
    fn callers_are_found_by_frame_pointers_and_end_where_there_is_none() {
        let start = address("stallbench_main");
        let text = with_stack(&[(0, STACK + 0x40), (8, start + 5), (0x40, 0), (0x48, address("_start") + 4)]);
        assert!(text.contains("#1 ") && text.contains("stallbench_main+0x5"), "{text}");
        assert!(text.contains("#2 ") && text.contains("_start+0x4") && !text.contains("#3 "), "{text}");
    }

    #[test]
    fn caller_of_a_function_that_has_not_begun_is_on_the_stack() {
        let (many, start) = (address("stallbench_payload::call::many"), address("stallbench_main"));
        for (rip, slot) in [(many, 0), (many + 1, 8)] {
            let mut session = session_with(|machine| {
                let registers = machine.machine.vcpus[0].registers.as_mut().expect("made so");
                (registers.rip, registers.rsp, registers.rbp) = (rip, STACK, 0);
                machine.memory.put(STACK + slot, &(start + 5));
            });
            let text = answer(&mut session, "bt 0").expect("it has an answer").text;
            assert!(text.contains("#1 ") && text.contains("stallbench_main+0x5") && !text.contains("#2 "), "{text}");
        }
    }

    #[test]
    fn interrupt_is_crossed_by_the_frame_that_its_stub_saved() {
        let inside = address("stallbench_interrupted") + 0x20;
        let frame = vcpu::Frame { vector: 0xfb, rip: sample::rip(), rbp: 0, ..vcpu::Frame::default() };
        let mut session = session_with(|machine| {
            machine.machine.vcpus[0].registers.as_mut().expect("made so").rbp = STACK;
            machine.memory.put(STACK, &0x1234_u64);
            machine.memory.put(STACK + 8, &inside);
            machine.memory.put(STACK + 16, &frame);
        });
        let answer = answer(&mut session, "bt 0").expect("it has an answer");
        assert!(answer.text.contains("-- interrupted by vector 0xfb (single-target call) --\n"), "{}", answer.text);
        assert_eq!(answer.data[0]["frames"].as_array().map(Vec::len), Some(3), "{}", answer.text);
    }

    #[test]
    fn stack_that_leads_in_circles_or_nowhere_ends_the_trace() {
        let start = address("stallbench_main") + 5;
        assert!(with_stack(&[(0, STACK), (8, start)]).contains("the frame pointer does not go up"));
        assert!(with_stack(&[(0, u64::MAX - 16), (8, start)]).contains("cannot be read"));
        assert!(with_stack(&[(0, STACK + 0x40), (8, 0x1234)]).contains("0x1234 is no code"));
    }

    #[test]
    fn registers_that_were_not_read_cost_no_other_vcpu() {
        let mut session = session_with(|machine| machine.machine.vcpus[0].registers = unread("general registers"));
        let text = answer(&mut session, "bt").expect("it has an answer").text;
        assert!(
            text.contains("general registers could not be read: EIO\nvcpu1\n")
                || text.contains("EIO\n") && text.contains("#0"),
            "{text}"
        );
    }
}
