//! Last words: what a vCPU leaves for the host when it cannot go on.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::ptr::addr_of_mut;

use stallbench_abi::port::{DOORBELL, Doorbell};
use stallbench_abi::vcpu::{Death, Epitaph, Frame};

use crate::{cpu, this};

/// Text into a fixed field; what does not fit is left out.
pub(crate) struct Field<const N: usize> {
    pub(crate) bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Field<N> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }
}

impl<const N: usize> Write for Field<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == N {
                return Ok(());
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// An exception that nothing expected.
pub(crate) fn exception(frame: &Frame) -> ! {
    die(Epitaph {
        death: Death::EXCEPTION,
        vector: frame.vector as u32,
        error: frame.error,
        rip: frame.rip,
        cr2: cpu::cr2(),
        ..Epitaph::default()
    })
}

/// A panic, of the runtime or of a protocol.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    let mut text = Field::new();
    // A field never fails to be written.
    let _ = write!(text, "{}", info.message());
    let mut epitaph = Epitaph { death: Death::PANIC, text: text.bytes, ..Epitaph::default() };
    if let Some(location) = info.location() {
        let mut file = Field::new();
        let name = location.file();
        let from = name.len().saturating_sub(file.bytes.len());
        let _ = file.write_str(name.get(from..).unwrap_or(name));
        epitaph.file = file.bytes;
        epitaph.line = location.line();
    }
    die(epitaph)
}

fn die(epitaph: Epitaph) -> ! {
    // SAFETY: the page is this vCPU's own; plain stores, and the host reads them after the doorbell.
    unsafe { addr_of_mut!((*this::page()).epitaph).write_volatile(epitaph) };
    cpu::out(DOORBELL, Doorbell::EPITAPH.0);
    cpu::stop()
}
