//! The arguments of an event in words (`abi::event` says what they are).

use stallbench_abi::arena::Life;
use stallbench_abi::event::{
    AllocSite, CallShape, Event, EventKind, Fallback, INJECTED_FAILURE, LIST_OF_ALL, MtrrStep, TO_ALL, TO_ALL_BUT_SELF,
    text_of,
};
use stallbench_abi::pause::Point;
use stallbench_abi::text;
use stallbench_stall::code::Code;
use stallbench_state::memory::read_plain;

use crate::session::Session;
use crate::style::printable;

/// Longest text of the image that is shown.
const LONGEST: usize = 96;

/// What an event says.
pub(super) fn of(session: &Session, event: &Event) -> String {
    let Event { kind, arg, a, b, .. } = *event;
    match kind {
        EventKind::CALL => {
            let shape = CallShape(arg >> 8);
            format!("call {a}, {shape}, wait={}, function {}", arg & 0xff, session.shown(b))
        }
        EventKind::CALL_RETURN => format!("call {a}{}", if arg == 0 { "" } else { ", with an error" }),
        EventKind::ALLOC => allocation(session, arg, a, b),
        EventKind::FREE => session.shown(a),
        EventKind::FALLBACK => format!("call {a}: {}", Fallback(arg)),
        EventKind::QUEUE if arg == LIST_OF_ALL => format!("call {b}, record {} on the list of all", session.shown(a)),
        EventKind::QUEUE => format!("call {b}, record {} for vcpu{arg}", session.shown(a)),
        EventKind::IPI => format!("{} to {}", session.vector(u64::from(arg)), destination(a)),
        EventKind::IRQ => session.vector(u64::from(arg)),
        EventKind::CALLBACK => format!("call {a} of vcpu{arg}, function {}", session.shown(b)),
        EventKind::CALLBACK_END => format!("call {a}"),
        EventKind::WAIT => format!("{}{}", site(session, a), of_call(b)),
        EventKind::WAIT_END => {
            format!("{}{}{}", site(session, a), of_call(b), if arg == 0 { ", at the first look" } else { "" })
        }
        EventKind::LIFE => format!("{} {} at {}, generation {}", name(b), Life(arg & 0xff), session.shown(a), arg >> 8),
        EventKind::MTRR => mtrr(arg, a, b),
        EventKind::GRACE_PERIOD => format!("{a}"),
        EventKind::FLIP => format!("deviation {arg}"),
        EventKind::PAUSE => format!("hold {arg} at {}{}", point(session, a), if b == 0 { "" } else { ", over" }),
        EventKind::FAULT => format!("fault {arg} (injected): {a:#x} for vcpu{b}"),
        EventKind::LIFE_BREACH => format!("{}: held generation {arg} of {}", quoted(session, b), session.shown(a)),
        EventKind::IRQ_OFF if arg == 1 => format!("{} begins", quoted(session, b)),
        EventKind::IRQ_OFF => format!("{} ends, since event {a}", quoted(session, b)),
        EventKind::STEP => String::new(),
        _ => format!("arg {arg:#x}, a {a:#x}, b {b:#x}"),
    }
}

fn allocation(session: &Session, number: u32, address: u64, site: u64) -> String {
    let came_to = match address {
        0 => "nothing left".into(),
        INJECTED_FAILURE => "fails (injected)".into(),
        address => session.shown(address),
    };
    format!("allocation {number} of {}: {came_to}", AllocSite(site))
}

fn destination(to: u64) -> String {
    match to {
        TO_ALL_BUT_SELF => "all but itself".into(),
        TO_ALL => "all".into(),
        vcpu => format!("vcpu{vcpu}"),
    }
}

fn site(session: &Session, descriptor: u64) -> String {
    match session.guest().site_at(descriptor) {
        Some(site) if site.step.is_empty() => format!("{} for {}", site.function, site.word),
        Some(site) => format!("{} {} for {}", site.function, site.step, site.word),
        None => format!("unknown site {descriptor:#x}"),
    }
}

fn of_call(call: u64) -> String {
    if call == 0 { String::new() } else { format!(" of call {call}") }
}

fn mtrr(step: u32, a: u64, b: u64) -> String {
    let step = MtrrStep(step);
    match step {
        MtrrStep::RANGE => format!("{step}: base {a:#x}, mask {b:#x}"),
        MtrrStep::ALL => format!("{step}: classes {a:#x} differed"),
        MtrrStep::SKIPPED => format!("{step}: step {a} of the manual"),
        step => step.to_string(),
    }
}

fn point(session: &Session, descriptor: u64) -> String {
    let point: Option<Point> = read_plain(session.memory(), descriptor);
    let name = point.as_ref().map(|point| text::of(&point.name).to_owned()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("unknown point {descriptor:#x}"))
}

/// A name of eight bytes.
fn name(word: u64) -> String {
    printable(text::of(&word.to_le_bytes()))
}

/// A text that lies in the image.
fn quoted(session: &Session, argument: u64) -> String {
    let (address, length) = text_of(argument);
    let mut bytes = vec![0; length.min(LONGEST)];
    match session.memory().read(address, &mut bytes) {
        true => printable(text::of(&bytes)),
        false => format!("text at {address:#x}"),
    }
}
