//! What goes on between gdb and a machine: packets in, packets out. The protocol itself is gdbstub's; what it has no word for, or what
//! would end it, is seen to here.

use std::convert::Infallible;
use std::time::Duration;

use gdbstub::common::Tid;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{BaseStopReason, DisconnectReason, GdbStub};

use super::frame::{Frame, LONGEST, console, escaped, framed};
use super::machine::Machine;
use super::resume::Stopped;

/// What is sent to gdb, until it is sent.
#[derive(Debug, Default)]
struct Wire(Vec<u8>);

impl Connection for Wire {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Stub<'s> = GdbStubStateMachine<'static, Machine<'s>, Wire>;

/// Bytes of a packet that are not its body: the dollar sign, the number sign, the checksum.
const FRAME: usize = 4;
/// How long the machine is waited for before gdb is listened to again.
const MOMENT: Duration = Duration::from_millis(5);
/// EINVAL, to a packet that is none.
const REFUSAL: &[u8] = b"E16";

/// A conversation.
pub(super) struct Conversation<'s> {
    pub(super) machine: Machine<'s>,
    stub: Option<Stub<'s>>,
    /// gdb has said that the wire loses nothing.
    is_sure: bool,
    /// What gdb said of itself, and the thread that it looks at: what a protocol that begins anew must know.
    features: Option<Vec<u8>>,
    thread: Option<Vec<u8>>,
    /// Whether what came is what every gdb says first. Without it nothing is changed: whoever it was leaves nothing behind.
    pub(super) is_gdb: bool,
}

impl<'s> Conversation<'s> {
    pub(super) fn new(machine: Machine<'s>) -> Self {
        let mut new = Self { machine, stub: None, is_sure: false, features: None, thread: None, is_gdb: false };
        new.begin();
        new
    }

    /// Another client: the machine stays, the rest is new.
    pub(super) fn with_another_client(self) -> Self {
        Self::new(self.machine)
    }

    /// Takes what came; what gdb is to be sent.
    pub(super) fn take(&mut self, frame: Frame) -> Vec<u8> {
        self.machine.look();
        match frame {
            Frame::Damaged if self.is_sure => Vec::new(),
            Frame::Damaged => b"-".to_vec(),
            Frame::Interrupt if self.is_running() => self.interrupt(),
            Frame::Interrupt => Vec::new(),
            // While the machine runs gdb waits for it, or leaves.
            Frame::Packet(body) if self.is_running() && !body.starts_with(b"k") && !is_farewell(&body) => Vec::new(),
            Frame::Packet(body) => self.answer(&body),
        }
    }

    /// Waits a little for the machine, if it runs; what gdb is to be sent of it.
    pub(super) fn wait(&mut self) -> Vec<u8> {
        match self.is_running().then(|| self.machine.wait(MOMENT)).flatten() {
            Some(stopped) => self.report(stopped),
            None => Vec::new(),
        }
    }

    /// Whether gdb waits for the machine.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.stub, Some(GdbStubStateMachine::Running(_)))
    }

    /// Why it is over, once it is.
    pub(super) fn over(&self) -> Option<DisconnectReason> {
        match &self.stub {
            Some(GdbStubStateMachine::Disconnected(stub)) => Some(stub.get_reason()),
            _ => None,
        }
    }

    fn answer(&mut self, body: &[u8]) -> Vec<u8> {
        let own = match body {
            _ if too_much(body) => Some(REFUSAL.to_vec()),
            _ if !self.is_gdb && !only_looks(body) => Some(REFUSAL.to_vec()),
            _ => body.strip_prefix(b"qXfer:threads:read::").map(|rest| self.threads(rest)),
        };
        if let Some(own) = own {
            return self.acknowledged(framed(&own));
        }
        self.machine.refusal = None;
        let Some(answer) = self.feed(&framed(body)) else {
            self.begin();
            return self.acknowledged(framed(REFUSAL));
        };
        self.is_gdb |= body.starts_with(b"qSupported");
        let mut answer = self.amended(body, answer);
        if self.is_running()
            && let Some(stopped) = self.machine.go()
        {
            answer.extend(self.report(stopped));
        }
        answer
    }

    /// gdbstub's answer with what it leaves out.
    fn amended(&mut self, body: &[u8], answer: Vec<u8>) -> Vec<u8> {
        if body.starts_with(b"QStartNoAckMode") {
            self.is_sure = true;
        } else if body.starts_with(b"qSupported") {
            self.features = Some(body.to_vec());
            return changed(&answer, |told| [told, b";qXfer:threads:read+"].concat());
        } else if body.starts_with(b"Hg") {
            self.thread = Some(body.to_vec());
        } else if body.starts_with(b"vKill") {
            return self.acknowledged(framed(b"OK"));
        }
        // A refusal with its reason, where gdb understands one (gdb manual, E.2 Standard Replies).
        match self.machine.refusal.take() {
            Some(why) => changed(&answer, |_| [b"E.", why.replace(['#', '$', '}', '*'], "?").as_bytes()].concat()),
            None => answer,
        }
    }

    /// Part of the list of threads.
    fn threads(&mut self, asked: &[u8]) -> Vec<u8> {
        let part = std::str::from_utf8(asked).ok().and_then(|asked| asked.split_once(','));
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        let Some((offset, length)) = part.and_then(|(offset, length)| number(offset).zip(number(length))) else {
            return REFUSAL.to_vec();
        };
        let list = self.machine.thread_list().as_bytes();
        let rest = list.get(offset..).unwrap_or_default();
        // Each byte may take two.
        let told = &rest[..rest.len().min(length).min(LONGEST / 2)];
        let more = if told.len() < rest.len() { b"m" } else { b"l" };
        [more, &escaped(told)[..]].concat()
    }

    /// Tells gdb why the machine stands still, behind what it prints.
    fn report(&mut self, stopped: Stopped) -> Vec<u8> {
        self.machine.look();
        if let BaseStopReason::SignalWithThread { tid, .. }
        | BaseStopReason::SwBreak(tid)
        | BaseStopReason::HwBreak(tid)
        | BaseStopReason::Watch { tid, .. } = stopped
        {
            self.thread = Some(looks_at(tid));
        }
        let mut told: Vec<u8> =
            self.machine.take_notices().iter().flat_map(|line| console(&format!("{line}\n"))).collect();
        let reported = match self.stub.take() {
            Some(GdbStubStateMachine::Running(stub)) => stub.report_stop(&mut self.machine, stopped).ok(),
            other => other,
        };
        self.stub = reported;
        told.extend(self.taken());
        told
    }

    fn interrupt(&mut self) -> Vec<u8> {
        let stopped = self.machine.interrupt();
        self.report(stopped)
    }

    /// Gives gdbstub bytes; its answer, or nothing where they were more than it bears.
    fn feed(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        for byte in bytes {
            let next = match self.stub.take()? {
                GdbStubStateMachine::Idle(stub) => stub.incoming_data(&mut self.machine, *byte).ok()?,
                GdbStubStateMachine::Running(stub) => stub.incoming_data(&mut self.machine, *byte).ok()?,
                other => other,
            };
            self.stub = Some(next);
        }
        Some(self.taken())
    }

    /// What gdbstub has written.
    fn taken(&mut self) -> Vec<u8> {
        let wire = match self.stub.as_mut() {
            Some(GdbStubStateMachine::Idle(stub)) => stub.borrow_conn(),
            Some(GdbStubStateMachine::Running(stub)) => stub.borrow_conn(),
            Some(GdbStubStateMachine::CtrlCInterrupt(stub)) => stub.borrow_conn(),
            Some(GdbStubStateMachine::Disconnected(stub)) => stub.borrow_conn(),
            None => return Vec::new(),
        };
        std::mem::take(&mut wire.0)
    }

    /// Begins the protocol anew, with what gdb has said so far.
    fn begin(&mut self) {
        let stub = GdbStub::builder(Wire::default()).packet_buffer_size(LONGEST + FRAME).build().ok();
        self.stub = stub.and_then(|stub| stub.run_state_machine(&mut self.machine).ok());
        let no_ack = self.is_sure.then(|| b"QStartNoAckMode".to_vec());
        for body in [self.features.clone(), no_ack, self.thread.clone()].into_iter().flatten() {
            if self.feed(&framed(&body)).is_none() {
                return;
            }
        }
    }

    fn acknowledged(&self, packet: Vec<u8>) -> Vec<u8> {
        if self.is_sure { packet } else { [b"+", &packet[..]].concat() }
    }
}

/// Whether gdb leaves with it.
fn is_farewell(body: &[u8]) -> bool {
    body.starts_with(b"D") || body.starts_with(b"vKill")
}

/// Whether a packet changes nothing of the machine: it asks, says how to speak, or leaves.
fn only_looks(body: &[u8]) -> bool {
    match body.first() {
        Some(b'v') => !body.starts_with(b"vCont;") && !body.starts_with(b"vKill"),
        Some(b'q') => !body.starts_with(b"qRcmd"),
        Some(first) => b"?gmpHTDQ".contains(first),
        None => true,
    }
}

/// The packet by which gdb says which thread it looks at.
fn looks_at(thread: Tid) -> Vec<u8> {
    format!("Hgp1.{thread:x}").into_bytes()
}

/// Whether a packet asks for more memory than an answer takes: gdb does not.
fn too_much(body: &[u8]) -> bool {
    let length = body.strip_prefix(b"m").and_then(|rest| rest.splitn(2, |byte| *byte == b',').nth(1));
    let length = length.and_then(|length| std::str::from_utf8(length).ok());
    length.is_some_and(|length| usize::from_str_radix(length, 16).map_or(true, |length| length > LONGEST / 2))
}

/// An answer of one packet with another body.
fn changed(answer: &[u8], change: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let start = answer.iter().position(|byte| *byte == b'$');
    let end = answer.iter().rposition(|byte| *byte == b'#');
    match start.zip(end) {
        Some((start, end)) if start < end => [&answer[..start], &framed(&change(&answer[start + 1..end]))[..]].concat(),
        _ => answer.to_vec(),
    }
}

#[cfg(test)]
mod test;
