//! `lapic`: the local APIC of a vCPU in words (SDM 3A chapter 11).

use serde_json::{Value, json};
use stallbench_state::apic::LocalApic;
use stallbench_state::machine::{Events, VcpuState};

use super::{Command, Needs, Takes, of_each};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;
use crate::style;

pub(super) const COMMAND: Command = Command {
    name: "lapic",
    usage: "lapic [VCPU|all]",
    summary: "local APIC: ICR, IRR, ISR, TPR, PPR, LVT and SVR in words, and what is on its way to the vCPU",
    details: "PPR and ISR read 0 on a host that does not keep them (kvm_pvm).\n",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    of_each(session, arguments, in_text, in_data)
}

fn in_text(session: &Session, vcpu: &VcpuState) -> String {
    let heading = style::heading(&format!("vcpu{}", vcpu.index));
    let apic = match &vcpu.apic {
        Ok(apic) => columns(&registers(session, apic).map(|(name, value, words)| {
            row([&format!("  {name}"), &value.map(|value| format!("{value:#x}")).unwrap_or_default(), &words])
        })),
        Err(unread) => format!("  {unread}\n"),
    };
    let events =
        vcpu.events.as_ref().map_or_else(|unread| unread.to_string(), |events| events_in_words(session, events));
    let next = vcpu.deliverable().map_or_else(|| "nothing".to_owned(), |deliverable| deliverable.to_string());
    format!("{heading}\n{apic}  on its way: {events}\n  would take next: {next}\n")
}

/// Each register with its value and what it says.
fn registers(session: &Session, apic: &LocalApic) -> [(&'static str, Option<u64>, String); 16] {
    let enabled = if apic.is_enabled() { "enabled" } else { "not enabled by software: nothing is delivered" };
    let mode = if apic.x2apic { "x2APIC" } else { "xAPIC" };
    let class = |value: u32| format!("priority class {}", value >> 4 & 0xf);
    [
        ("id", Some(u64::from(apic.id)), mode.into()),
        (
            "svr",
            Some(u64::from(apic.svr)),
            format!("{enabled}; spurious {}", session.vector(u64::from(apic.svr & 0xff))),
        ),
        ("tpr", Some(u64::from(apic.tpr)), class(apic.tpr)),
        ("ppr", Some(u64::from(apic.ppr)), class(apic.ppr)),
        ("irr", None, set_in_words(session, &apic.irr)),
        ("isr", None, set_in_words(session, &apic.isr)),
        ("tmr", None, set_in_words(session, &apic.tmr)),
        ("icr", Some(apic.icr), icr_in_words(session, apic)),
        ("esr", Some(u64::from(apic.esr)), esr_in_words(apic.esr)),
        ("ldr", Some(u64::from(apic.ldr)), String::new()),
        ("dfr", Some(u64::from(apic.dfr)), String::new()),
        ("lvt timer", Some(u64::from(apic.lvt_timer)), timer_in_words(apic.lvt_timer)),
        ("lvt lint0", Some(u64::from(apic.lvt_lint0)), pin_in_words(apic.lvt_lint0)),
        ("lvt lint1", Some(u64::from(apic.lvt_lint1)), pin_in_words(apic.lvt_lint1)),
        ("lvt error", Some(u64::from(apic.lvt_error)), entry_in_words(apic.lvt_error)),
        ("deliverable", apic.deliverable().map(u64::from), deliverable_in_words(session, apic)),
    ]
}

fn set_in_words(session: &Session, set: &[u32; 8]) -> String {
    let set: Vec<_> =
        (0..=255u64).rev().filter(|v| set[*v as usize / 32] >> (v % 32) & 1 == 1).map(|v| session.vector(v)).collect();
    if set.is_empty() { "none".into() } else { set.join(", ") }
}

fn deliverable_in_words(session: &Session, apic: &LocalApic) -> String {
    match (apic.deliverable(), apic.highest_requested()) {
        (Some(v), _) => format!("{}, if the vCPU lets interrupts in", session.vector(u64::from(v))),
        (None, Some(v)) if apic.is_enabled() => {
            format!("nothing: {} does not exceed class {}", session.vector(u64::from(v)), apic.priority_class())
        }
        (None, Some(v)) => format!("nothing: {} waits for an APIC that is enabled", session.vector(u64::from(v))),
        (None, None) => "nothing is requested".into(),
    }
}

/// Delivery modes (SDM 3A 11.6.1).
const MODES: [&str; 8] = ["fixed", "lowest priority", "SMI", "reserved mode 3", "NMI", "INIT", "start-up", "ExtINT"];

/// The interrupt command register: the last that was sent.
fn icr_in_words(session: &Session, apic: &LocalApic) -> String {
    let icr = apic.icr;
    if icr == 0 {
        return "nothing was sent".into();
    }
    let what = match icr >> 8 & 7 {
        0 | 1 => format!("{} {}", MODES[(icr >> 8 & 7) as usize], session.vector(icr & 0xff)),
        6 => format!("start-up at {:#x}", (icr & 0xff) << 12),
        mode => MODES[mode as usize].to_owned(),
    };
    let all_of_xapic = if apic.x2apic { icr >> 32 } else { icr >> 56 };
    let logical = if icr >> 11 & 1 == 1 { "logical " } else { "" };
    let to = match icr >> 18 & 3 {
        0 => format!("{logical}id {all_of_xapic:#x}"),
        1 => "itself".into(),
        2 => "all".into(),
        _ => "all but itself".into(),
    };
    // x2APIC mode has no delivery status (SDM 3A 11.12.9).
    let pending = if !apic.x2apic && icr >> 12 & 1 == 1 { ", not yet accepted" } else { "" };
    format!("last sent: {what} to {to}{pending}")
}

fn esr_in_words(esr: u32) -> String {
    const NAMES: [&str; 8] = [
        "send checksum",
        "receive checksum",
        "send accept",
        "receive accept",
        "redirectable",
        "send illegal vector",
        "receive illegal vector",
        "illegal register",
    ];
    let set: Vec<_> = NAMES.iter().enumerate().filter(|(bit, _)| esr >> bit & 1 == 1).map(|(_, name)| *name).collect();
    if set.is_empty() { "no error".into() } else { set.join(", ") }
}

fn masked(entry: u32) -> &'static str {
    if entry >> 16 & 1 == 1 { "masked" } else { "not masked" }
}

fn entry_in_words(entry: u32) -> String {
    format!("{}, vector {:#x}", masked(entry), entry & 0xff)
}

fn pin_in_words(entry: u32) -> String {
    match entry >> 8 & 7 {
        0 => format!("{}, fixed", entry_in_words(entry)),
        mode => format!("{}, {}", masked(entry), MODES[mode as usize]),
    }
}

fn timer_in_words(entry: u32) -> String {
    let mode = ["one-shot", "periodic", "TSC deadline", "reserved mode"][(entry >> 17 & 3) as usize];
    format!("{}, {mode}", entry_in_words(entry))
}

pub(super) fn events_in_words(session: &Session, events: &Events) -> String {
    let mut words: Vec<String> = Vec::new();
    words.extend((events.nmi_pending > 0).then(|| format!("{} NMI pending", events.nmi_pending)));
    words.extend(events.nmi_injected.then(|| "an NMI is being taken".into()));
    words.extend(events.nmi_masked.then(|| "NMIs are held back until the next IRET".into()));
    words.extend(events.interrupt_injected.map(|v| format!("{} is being taken", session.vector(u64::from(v)))));
    words.extend(events.interrupt_shadow.then(|| "interrupts wait for the instruction behind sti or mov ss".into()));
    words.extend(events.exception.map(|exception| {
        let error = exception.error.map(|error| format!(", error code {error:#x}")).unwrap_or_default();
        format!("exception {}{error}", session.vector(u64::from(exception.vector)))
    }));
    words.extend(events.triple_fault_pending.then(|| "a triple fault".into()));
    words.extend(events.system_management.then(|| "an SMI, or its handler".into()));
    if words.is_empty() { "nothing".into() } else { words.join("; ") }
}

fn in_data(session: &Session, vcpu: &VcpuState) -> Value {
    let registers = match &vcpu.apic {
        Ok(apic) => {
            let all = registers(session, apic).into_iter();
            all.map(|(name, value, words)| (name.replace(' ', "_"), json!({"value": value.map(hex), "words": words})))
                .collect()
        }
        Err(unread) => json!({"error": unread.to_string()}),
    };
    let events =
        vcpu.events.as_ref().map_or_else(|unread| unread.to_string(), |events| events_in_words(session, events));
    json!({
        "vcpu": vcpu.index,
        "registers": registers,
        "requested": vcpu.apic.as_ref().map(|apic| apic.requested().collect::<Vec<_>>()).ok(),
        "in_service": vcpu.apic.as_ref().map(|apic| apic.in_service().collect::<Vec<_>>()).ok(),
        "events": events,
        "next": vcpu.deliverable().map(|deliverable| deliverable.to_string()),
    })
}

#[cfg(test)]
mod test {
    use stallbench_state::machine::{Events, Exception};

    use super::{LocalApic, events_in_words, icr_in_words, timer_in_words};
    use crate::sample::{answer, session, session_with, text, unread};

    #[test]
    fn pending_vector_is_named_and_said_to_be_held() {
        let text = text("lapic 1");
        assert!(text.contains("0xfc (multi-target call)") && text.contains("if the vCPU lets interrupts in"), "{text}");
        assert!(text.contains("on its way: nothing\n  would take next: nothing\n"), "{text}");
    }

    #[test]
    fn last_command_is_told_by_what_it_sent_and_to_whom() {
        let of = |x2apic, icr| icr_in_words(&session(), &LocalApic { x2apic, icr, ..LocalApic::default() });
        assert_eq!(of(true, 3 << 32 | 0xfb), "last sent: fixed 0xfb (single-target call) to id 0x3");
        assert_eq!(of(false, 3 << 56 | 0x4400), "last sent: NMI to id 0x3");
        assert_eq!(of(true, 0xc_0608), "last sent: start-up at 0x8000 to all but itself");
        assert_eq!(
            of(false, 1 << 12 | 0xfb | 1 << 56),
            "last sent: fixed 0xfb (single-target call) to id 0x1, not yet accepted"
        );
        assert_eq!(timer_in_words(0x3_0020), "masked, vector 0x20, periodic");
    }

    #[test]
    fn events_are_words() {
        assert_eq!(events_in_words(&session(), &Events::default()), "nothing");
        let exception = Some(Exception { vector: 14, error: Some(2) });
        let events = Events { nmi_pending: 1, nmi_masked: true, exception, ..Events::default() };
        let words = "1 NMI pending; NMIs are held back until the next IRET; exception 0xe (page fault), error code 0x2";
        assert_eq!(events_in_words(&session(), &events), words);
    }

    #[test]
    fn apic_that_was_not_read_shows_its_error() {
        let mut session = session_with(|machine| machine.machine.vcpus[0].apic = unread("the local APIC"));
        let text = answer(&mut session, "lapic all").expect("it has an answer").text;
        assert!(text.contains("the local APIC could not be read: EIO\n  on its way: nothing\n  would take next: what could not be read"), "{text}");
        assert!(text.contains("0xfc"), "{text}");
    }
}
