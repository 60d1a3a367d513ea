//! `vcpus`: every vCPU in one line.

use serde_json::{Value, json};
use stallbench_stall::Analysis;
use stallbench_state::machine::{MpState, VcpuState};

use super::{Command, Needs, Takes};
use crate::answer::{Answer, columns, hex, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "vcpus",
    usage: "vcpus",
    summary: "every vCPU in one line: state, interrupts, what is pending, where it is, what it does",
    details: "IF is RFLAGS.IF, CD is CR0.CD (caches off). Pending is what has been accepted and not yet taken. The star marks the \
vCPU\nthat is looked at. What a vCPU does is what the machine confirms of what it publishes.\n",
    takes: Takes::Nothing,
    needs: Needs::Machine,
    run,
};

/// CR0.CD: caches off.
const CR0_CD: u64 = 1 << 30;

fn run(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    arguments.end()?;
    let mut rows = vec![row(["", "vcpu", "phase", "state", "IF", "CD", "pending", "at", "does"])];
    let data: Vec<Value> = session.analysed(|analysis| {
        let of = |vcpu: &VcpuState| {
            rows.push(in_line(session, analysis, vcpu));
            in_data(session, analysis, vcpu)
        };
        session.vcpus().iter().map(of).collect()
    });
    Ok(Answer::new(columns(&rows), json!(data)))
}

fn in_line(session: &Session, analysis: &Analysis<'_>, vcpu: &VcpuState) -> Vec<String> {
    let star = if vcpu.index == session.current() { "*" } else { " " };
    let bit = |bit: Option<bool>| bit.map_or("?".to_owned(), |bit| u8::from(bit).to_string());
    let at = vcpu.registers.as_ref().map_or("?".into(), |r| session.meaning(r.rip).unwrap_or(format!("{:#x}", r.rip)));
    let pending = pending(vcpu).unwrap_or_else(|| "?".into());
    row([
        star,
        &vcpu.index.to_string(),
        &phase(session, analysis, vcpu.index),
        &state(vcpu),
        &bit(interrupts(vcpu)),
        &bit(caches_off(vcpu)),
        if pending.is_empty() { "-" } else { &pending },
        &at,
        &analysis.doing(vcpu.index),
    ])
}

pub(super) fn in_data(session: &Session, analysis: &Analysis<'_>, vcpu: &VcpuState) -> Value {
    let rip = vcpu.registers.as_ref().ok().map(|registers| registers.rip);
    json!({
        "vcpu": vcpu.index,
        "phase": phase(session, analysis, vcpu.index),
        "state": state(vcpu),
        "interrupts_enabled": interrupts(vcpu),
        "caches_off": caches_off(vcpu),
        "pending": pending(vcpu),
        "rip": rip.map(hex),
        "symbol": rip.and_then(|rip| session.symbols().place(rip)),
        "doing": analysis.doing(vcpu.index),
        "ran_ns": u64::try_from(vcpu.ran.as_nanos()).unwrap_or(u64::MAX),
    })
}

fn phase(session: &Session, analysis: &Analysis<'_>, vcpu: usize) -> String {
    let published = session.guest().contract().is_some();
    let phase = analysis.vcpus.get(vcpu).filter(|_| published).map(|vcpu| vcpu.phase.to_string());
    phase.unwrap_or_else(|| "-".into())
}

pub(super) fn state(vcpu: &VcpuState) -> String {
    match vcpu.mp_state {
        Ok(MpState::Runnable) => "runnable".into(),
        Ok(MpState::Uninitialized) => "not-started".into(),
        Ok(MpState::InitReceived) => "waits-for-sipi".into(),
        Ok(MpState::Halted) => "halted".into(),
        Ok(MpState::SipiReceived) => "starting".into(),
        Ok(MpState::Other(other)) => format!("state {other}"),
        Err(_) => "?".into(),
    }
}

fn interrupts(vcpu: &VcpuState) -> Option<bool> {
    vcpu.registers.as_ref().ok().map(|registers| registers.interrupts_enabled())
}

fn caches_off(vcpu: &VcpuState) -> Option<bool> {
    vcpu.system.as_ref().ok().map(|system| system.cr0 & CR0_CD != 0)
}

/// What has been accepted and not yet taken; `None` where that could not be read.
fn pending(vcpu: &VcpuState) -> Option<String> {
    let (apic, events) = (vcpu.apic.as_ref().ok()?, vcpu.events.as_ref().ok()?);
    let mut all: Vec<String> = apic.requested().map(|vector| format!("{vector:#x}")).collect();
    all.extend(events.interrupt_injected.map(|vector| format!("{vector:#x} being taken")));
    if events.nmi_pending > 0 || events.nmi_injected {
        all.push("NMI".into());
    }
    all.extend(events.exception.map(|exception| format!("exception {}", exception.vector)));
    if events.system_management {
        all.push("SMI".into());
    }
    Some(all.join(","))
}

#[cfg(test)]
mod test {
    use crate::sample::{answer, session_with, text, unread};

    #[test]
    fn vcpu_is_told_by_its_interrupts_and_what_is_pending() {
        let text = text("vcpus");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[1])[..7], ["*", "0", "case", "runnable", "1", "0", "-"]);
        assert_eq!(words(lines[2])[..6], ["1", "case", "runnable", "0", "0", "0xfc"]);
        assert!(lines[1].contains(" waits in "), "{text}");
        assert!(lines[2].contains("0xfc held back") || lines[2].contains("0xfc pending"), "{text}");
    }

    #[test]
    fn groups_that_were_not_read_cost_no_other() {
        let mut session = session_with(|machine| machine.machine.vcpus[0].apic = unread("the local APIC"));
        let answer = answer(&mut session, "vcpus").expect("it has an answer");
        assert!(answer.text.contains("the local APIC could not be read: EIO"), "{}", answer.text);
        assert!(answer.data[0]["pending"].is_null());
        assert_eq!(answer.data[1]["pending"], "0xfc");
    }
}
