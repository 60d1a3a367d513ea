//! The structures of the contract in words (docs/contract.md).

use stallbench_abi::arena::{MARK, Mark};
use stallbench_abi::boot::BootBlock;
use stallbench_abi::fault::FaultState;
use stallbench_abi::knob::{self, Knob, Values};
use stallbench_abi::layout::{BOOT_BLOCK, GHOST, PAUSE, private};
use stallbench_abi::pause::{ANY_VCPU, Arrival, PausePage, Point};
use stallbench_abi::shared::GhostPage;
use stallbench_abi::text;
use stallbench_abi::vcpu::{Context, Death, Frame, VcpuPage, Wait};
use stallbench_abi::{Plain, arena};
use stallbench_stall::code::Code;
use stallbench_stall::set::VcpuSet;
use stallbench_state::memory::read_plain;

use super::{Fields, at, number, vcpu};
use crate::bits;
use crate::error::CommandError;
use crate::session::Session;
use crate::style::printable;

/// Their names.
pub(super) const NAMES: [&str; 12] =
    ["boot", "knobs", "ghost", "pause", "faults", "page", "contexts", "epitaph", "log", "mark", "frame", "queue"];

/// A structure of the contract; `None` where it has none of that name.
pub(super) fn print(session: &Session, name: &str, place: Option<&str>) -> Result<Option<Fields>, CommandError> {
    if !NAMES.contains(&name) {
        return Ok(None);
    }
    session.contract("structures")?;
    let page = || -> Result<VcpuPage, CommandError> { read(session, private(vcpu(session, place)?)) };
    Ok(Some(match name {
        "boot" => boot(&read(session, BOOT_BLOCK)?),
        "knobs" => knobs(&read(session, BOOT_BLOCK)?),
        "ghost" => ghost(session, &read(session, GHOST)?),
        "pause" => pause(session, &read(session, BOOT_BLOCK)?, &read(session, PAUSE)?),
        "faults" => faults(session, &read(session, BOOT_BLOCK)?, &read(session, PAUSE)?),
        "page" => vcpu_page(&page()?),
        "contexts" => contexts(session, &page()?),
        "epitaph" => epitaph(session, &page()?),
        "log" => vec![("text".into(), printable(text::of(&page()?.log)))],
        "mark" => mark(session, at(session, place)?)?,
        "queue" => queue(session, at(session, place)?)?,
        _ => frame(session, &read(session, at(session, place)?)?),
    }))
}

fn read<T: Plain>(session: &Session, address: u64) -> Result<T, CommandError> {
    read_plain(session.memory(), address).ok_or(CommandError::NoMemory { address })
}

fn field(name: &str, words: impl Into<String>) -> (String, String) {
    (name.to_owned(), words.into())
}

fn boot(block: &BootBlock) -> Fields {
    let magic = if block.magic == stallbench_abi::boot::MAGIC { "as it should be" } else { "not that of a boot block" };
    vec![
        field("magic", format!("{:#x}, {magic}", block.magic)),
        field("version", block.version.to_string()),
        field("vcpus", block.vcpus.to_string()),
        field("case", block.case.to_string()),
        field("seed", block.seed.to_string()),
        field("arena", format!("{:#x}, {:#x} bytes", block.arena.base, block.arena.size)),
        field("ghost", format!("{:#x}, {:#x} bytes", block.ghost.base, block.ghost.size)),
        field("holds", block.hold_count.to_string()),
        field("faults", block.fault_count.to_string()),
    ]
}

fn knobs(block: &BootBlock) -> Fields {
    let words = |knob: &Knob| {
        let raw = block.knob(knob);
        let default = if raw == knob.default_value() { ", the default" } else { "" };
        match (knob.values, knob.word(raw)) {
            (_, Some((word, 0))) => format!("{} ({}){default}", word.word, word.what),
            (_, Some((word, parameter))) => format!("{}:{parameter} ({}){default}", word.word, word.what),
            (Values::Vcpu, None) => format!("vcpu{raw}{default}"),
            (_, None) => format!("{raw}{default}"),
        }
    };
    knob::ALL.iter().map(|knob| field(knob.name, words(knob))).collect()
}

fn ghost(session: &Session, page: &GhostPage) -> Fields {
    let mut fields = vec![field("events", page.event_clock.to_string()), field("calls", page.calls.to_string())];
    for word in page.words.iter().filter(|word| word.address != 0) {
        let value = match word.width {
            8 => session.memory().read_u64(word.address),
            _ => session.memory().read_u32(word.address).map(u64::from),
        };
        let value = value.map_or("not guest memory".into(), |value| format!("holds {value:#x}"));
        fields.push(field(&printable(text::of(&word.name)), format!("{} {value}", session.shown(word.address))));
    }
    fields
}

fn who(vcpu: u32) -> String {
    if vcpu == ANY_VCPU { "any vCPU".into() } else { format!("vcpu{vcpu}") }
}

fn arrival(session: &Session, arrival: &Arrival) -> String {
    let point: Option<Point> = read_plain(session.memory(), arrival.point);
    let name = point.as_ref().map(|point| printable(text::of(&point.name))).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| number(arrival.point));
    format!("arrival {} of {} at {name}", arrival.nth, who(arrival.vcpu))
}

fn pause(session: &Session, block: &BootBlock, page: &PausePage) -> Fields {
    let used = (block.hold_count as usize).min(block.holds.len());
    let mut fields = Vec::new();
    for (number, (hold, state)) in block.holds.iter().zip(&page.holds).take(used).enumerate() {
        let held =
            if state.held == 0 { "nobody yet".to_owned() } else { format!("vcpu{}", state.held.wrapping_sub(1)) };
        let over = if state.released == 1 { "let go" } else { "not let go" };
        let words = format!(
            "{}, until {}: {} arrivals so far, holds {held}, {over}",
            arrival(session, &hold.at),
            hold.release,
            state.arrived
        );
        fields.push(field(&format!("hold {number}"), words));
    }
    or_none(fields, "holds")
}

fn faults(session: &Session, block: &BootBlock, page: &PausePage) -> Fields {
    let used = (block.fault_count as usize).min(block.faults.len());
    let mut fields = Vec::new();
    for (number, (fault, state)) in block.faults.iter().zip(&page.faults).take(used).enumerate() {
        let by = if fault.kind.is_of_host() { "host-injected" } else { "guest-injected" };
        let FaultState { matched, hits, deferred, .. } = state;
        let (from, to) = (who(fault.from), who(fault.to));
        let until =
            if fault.until.point == 0 { String::new() } else { format!(", until {}", arrival(session, &fault.until)) };
        let words = format!(
            "{} from {from} to {to} ({by}){until}: {matched} matched, {hits} took effect, deferred {deferred:#x}",
            fault.kind
        );
        fields.push(field(&format!("fault {number}"), words));
    }
    or_none(fields, "faults")
}

fn or_none(fields: Fields, what: &str) -> Fields {
    if fields.is_empty() { vec![field(what, "none")] } else { fields }
}

fn vcpu_page(page: &VcpuPage) -> Fields {
    vec![
        field("phase", page.phase.to_string()),
        field("progress", page.progress.to_string()),
        field("depth", page.depth.to_string()),
        field("apic id", number(page.apic_id.into())),
        field("idle", page.idle.to_string()),
        field("events", page.events.to_string()),
        field("interrupts", page.interrupts.to_string()),
        field("nmis", page.nmis.to_string()),
        field("rendezvous", format!("inside of {}", page.rendezvous)),
        field("set up", page.set_up.to_string()),
        field("death", page.epitaph.death.to_string()),
    ]
}

/// The contexts that are entered, and whatever else has a wait.
fn contexts(session: &Session, page: &VcpuPage) -> Fields {
    let used = page
        .contexts
        .iter()
        .enumerate()
        .filter(|(depth, context)| *depth <= page.depth as usize || context.wait.active != 0);
    used.map(|(depth, context)| field(&format!("context {depth}"), context_in_words(session, context))).collect()
}

fn context_in_words(session: &Session, context: &Context) -> String {
    let vector =
        if context.vector == 0 { String::new() } else { format!(" {}", session.vector(context.vector.into())) };
    let frame = if context.frame == 0 { String::new() } else { format!(", frame {}", session.shown(context.frame)) };
    let wait = if context.wait.active == 0 { "no wait".into() } else { wait_in_words(session, &context.wait) };
    format!("{}{vector}{frame}: {wait}", context.kind)
}

fn wait_in_words(session: &Session, wait: &Wait) -> String {
    let site = match session.guest().site_at(wait.site) {
        Some(site) => format!("{} {}", site.function, site.step).trim_end().to_owned(),
        None => format!("unknown site {:#x}", wait.site),
    };
    let awaits = VcpuSet::of_mask(wait.awaits, session.vcpus().len());
    let mut words = format!(
        "waits in {site} at {} until (word & {:#x}) is {} {:#x}; awaits {awaits} ({})",
        session.shown(wait.address),
        wait.mask,
        wait.until,
        wait.value,
        wait.need
    );
    let record = wait.record != 0;
    let more = [
        (record, format!("; record {} of call {}", session.shown(wait.record), wait.record_call)),
        (wait.call != 0, format!("; in call {}", wait.call)),
        (wait.asynchronous != 0, "; the call said wait=0".into()),
        (wait.awaits_at != 0, format!("; the set at {} replaces the awaited", session.shown(wait.awaits_at))),
        (wait.bounded != 0, "; gives up by itself".into()),
        (wait.generation != 0, format!("; holds generation {}", wait.generation)),
    ];
    more.into_iter().filter(|(is, _)| *is).for_each(|(_, more)| words.push_str(&more));
    words
}

fn epitaph(session: &Session, page: &VcpuPage) -> Fields {
    let last = &page.epitaph;
    let mut fields = vec![field("death", last.death.to_string())];
    if last.death == Death::NONE {
        return fields;
    }
    fields.extend([field("text", printable(text::of(&last.text))), field("rip", session.shown(last.rip))]);
    if last.death == Death::EXCEPTION {
        fields.push(field("exception", session.vector(last.vector.into())));
        fields.extend([field("error", number(last.error)), field("cr2", session.shown(last.cr2))]);
    } else {
        fields.push(field("at", format!("{}:{}", printable(text::of(&last.file)), last.line)));
    }
    fields
}

/// The lifetime mark of the object at an address.
fn mark(session: &Session, object: u64) -> Result<Fields, CommandError> {
    let address = object.wrapping_sub(size_of::<Mark>() as u64);
    let mark: Mark = read(session, address)?;
    if mark.magic != MARK {
        return Ok(vec![field("mark", format!("none before {}", session.shown(object)))]);
    }
    let owner = if mark.life == arena::Life::DEAD { "ended by" } else { "made by" };
    Ok(vec![
        field("name", printable(text::of(&mark.name))),
        field("life", format!("{}, {owner} vcpu{}", mark.life, mark.owner)),
        field("storage", mark.storage.to_string()),
        field("generation", mark.generation.to_string()),
        field("size", format!("{} bytes", mark.size)),
    ])
}

/// Most links of a queue that are followed.
const MOST_LINKS: usize = 64;

/// What lies on the queue with its head at an address: links hold the next first, and the last leads back to the head (`rt::list`).
fn queue(session: &Session, head: u64) -> Result<Fields, CommandError> {
    let mut fields = Vec::new();
    let mut at = read::<u64>(session, head)?;
    while at != head && at != 0 {
        let what =
            read::<Mark>(session, at.wrapping_sub(size_of::<Mark>() as u64)).ok().filter(|mark| mark.magic == MARK);
        let what = what.map(|mark| format!(", {} {}", printable(text::of(&mark.name)), mark.life)).unwrap_or_default();
        fields.push(field(&format!("link {}", fields.len()), format!("{}{what}", session.shown(at))));
        if fields.len() == MOST_LINKS {
            fields.push(field("end", format!("more than {MOST_LINKS} links")));
            break;
        }
        match session.memory().read_u64(at) {
            Some(next) => at = next,
            None => {
                fields.push(field("end", format!("no guest memory at {at:#x}")));
                break;
            }
        }
    }
    let empty = if at == 0 { "none: it was never made, or ends in 0" } else { "none: its head leads to itself" };
    Ok(if fields.is_empty() { vec![field("links", empty)] } else { fields })
}

fn frame(session: &Session, frame: &Frame) -> Fields {
    let registers = [
        ("rip", frame.rip),
        ("rsp", frame.rsp),
        ("rbp", frame.rbp),
        ("rax", frame.rax),
        ("rbx", frame.rbx),
        ("rcx", frame.rcx),
        ("rdx", frame.rdx),
        ("rsi", frame.rsi),
        ("rdi", frame.rdi),
        ("r8", frame.r8),
        ("r9", frame.r9),
        ("r10", frame.r10),
        ("r11", frame.r11),
        ("r12", frame.r12),
        ("r13", frame.r13),
        ("r14", frame.r14),
        ("r15", frame.r15),
    ];
    let mut fields = vec![field("vector", session.vector(frame.vector)), field("error", number(frame.error))];
    fields.extend(registers.map(|(name, value)| field(name, session.shown(value))));
    fields.push(field("rflags", format!("{:#x} {}", frame.rflags, bits::names(bits::RFLAGS, frame.rflags))));
    fields
}
