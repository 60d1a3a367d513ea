//! The first serial port of a plain guest, as far as one that only writes to it can tell: a 16550 at 0x3f8 whose transmitter is
//! always empty, and that never interrupts and never receives.
//!
//! What is written is kept, the last of it, for whoever reports. Called by the threads of all vCPUs.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ports of a 16550: base, and how many there are.
const BASE: u16 = 0x3f8;
const PORTS: u16 = 8;

/// Registers, by offset from the base.
mod register {
    /// Data, or the low half of the divisor.
    pub(super) const DATA: u16 = 0;
    /// Which interrupt is pending: bit 0 says none.
    pub(super) const INTERRUPT: u16 = 2;
    /// Line control: bit 7 puts the divisor in the place of data.
    pub(super) const LINE_CONTROL: u16 = 3;
    /// Modem control: bit 4 has the port receive what it sends.
    pub(super) const MODEM_CONTROL: u16 = 4;
    /// Line status.
    pub(super) const LINE_STATUS: u16 = 5;
}

const NO_INTERRUPT: u8 = 1;
const DIVISOR_LATCH: u8 = 1 << 7;
const LOOPBACK: u8 = 1 << 4;
/// The transmitter is empty, and so is its holding register.
const EMPTY: u8 = 0x60;
/// Line status: a byte was received.
const READY: u8 = 1;

/// Bytes of output that are kept.
const KEPT: usize = 64 << 10;

/// What a guest wrote to its console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// The last that it wrote.
    pub bytes: Vec<u8>,
    /// How many bytes before them are not kept.
    pub dropped: u64,
}

/// The port.
#[derive(Debug, Default)]
pub(crate) struct Serial {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    output: VecDeque<u8>,
    dropped: u64,
    line_control: u8,
    modem_control: u8,
    /// What it has received from itself.
    received: Option<u8>,
}

impl Serial {
    /// Takes a write; false where it goes to another port.
    pub(crate) fn write(&self, port: u16, bytes: &[u8]) -> bool {
        let Some(register) = register(port) else { return false };
        let mut state = self.lock();
        bytes.iter().for_each(|byte| state.write(register, *byte));
        true
    }

    /// Answers a read; false where it goes to another port.
    pub(crate) fn read(&self, port: u16, bytes: &mut [u8]) -> bool {
        let Some(register) = register(port) else { return false };
        let mut state = self.lock();
        bytes.iter_mut().for_each(|byte| *byte = state.read(register));
        true
    }

    /// What was written so far.
    pub(crate) fn console(&self) -> Console {
        let state = self.lock();
        Console { bytes: state.output.iter().copied().collect(), dropped: state.dropped }
    }

    /// A thread that panicked while it held the lock left the state whole: each change of it is complete.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, register: u16, byte: u8) {
        match register {
            register::DATA if self.line_control & DIVISOR_LATCH != 0 => {}
            register::DATA if self.modem_control & LOOPBACK != 0 => self.received = Some(byte),
            register::DATA => self.send(byte),
            register::LINE_CONTROL => self.line_control = byte,
            register::MODEM_CONTROL => self.modem_control = byte,
            _ => {}
        }
    }

    fn read(&mut self, register: u16) -> u8 {
        match register {
            register::DATA if self.line_control & DIVISOR_LATCH == 0 => self.received.take().unwrap_or_default(),
            register::INTERRUPT => NO_INTERRUPT,
            register::LINE_CONTROL => self.line_control,
            register::MODEM_CONTROL => self.modem_control,
            register::LINE_STATUS => EMPTY | if self.received.is_some() { READY } else { 0 },
            _ => 0,
        }
    }

    fn send(&mut self, byte: u8) {
        if self.output.len() == KEPT {
            self.output.pop_front();
            self.dropped += 1;
        }
        self.output.push_back(byte);
    }
}

/// The register at a port.
fn register(port: u16) -> Option<u16> {
    port.checked_sub(BASE).filter(|offset| *offset < PORTS)
}

#[cfg(test)]
mod test {
    use super::*;

    fn read(serial: &Serial, port: u16) -> u8 {
        let mut byte = [0xff];
        assert!(serial.read(port, &mut byte));
        byte[0]
    }

    #[test]
    fn output_is_kept_and_the_line_is_always_ready() {
        let serial = Serial::default();
        assert_eq!(read(&serial, 0x3fd), 0x60);
        assert!(serial.write(0x3f8, b"hello"));
        assert_eq!(serial.console(), Console { bytes: b"hello".to_vec(), dropped: 0 });
        assert!(!serial.write(0x3f7, b"x") && !serial.write(0x400, b"x") && !serial.read(0, &mut [0]));
    }

    #[test]
    fn flood_of_output_keeps_its_end_and_counts_the_rest() {
        let serial = Serial::default();
        serial.write(0x3f8, b"start");
        serial.write(0x3f8, &[b'.'; KEPT]);
        assert_eq!(serial.console(), Console { bytes: vec![b'.'; KEPT], dropped: 5 });
    }

    #[test]
    fn divisor_is_no_output() {
        let serial = Serial::default();
        for (port, byte) in [(0x3fb, 0x80), (0x3f8, 3), (0x3f9, 0), (0x3fb, 3), (0x3f8, b'a')] {
            serial.write(port, &[byte]);
        }
        assert_eq!(serial.console().bytes, b"a");
        assert_eq!(read(&serial, 0x3fb), 3);
    }

    #[test]
    fn port_that_tests_itself_receives_what_it_sent_and_shows_nothing() {
        let serial = Serial::default();
        serial.write(0x3fc, &[0x1e]);
        serial.write(0x3f8, &[0xae]);
        assert_eq!((read(&serial, 0x3fd), read(&serial, 0x3f8), read(&serial, 0x3fd)), (0x61, 0xae, 0x60));
        assert!(serial.console().bytes.is_empty());
    }
}
