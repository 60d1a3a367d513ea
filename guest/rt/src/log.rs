//! A line for the host. It exits, so nothing that a proof is to cover logs.

use core::fmt::{self, Write};
use core::ptr::addr_of_mut;

use stallbench_abi::port::{DOORBELL, Doorbell};

use crate::epitaph::Field;
use crate::{cpu, this};

/// Hands the host a line of text; what does not fit is left out.
pub fn line(text: fmt::Arguments<'_>) {
    let mut field = Field::new();
    // A field never fails to be written.
    let _ = field.write_fmt(text);
    // SAFETY: the page is this vCPU's own; the host reads it while this vCPU is in the doorbell.
    unsafe { addr_of_mut!((*this::page()).log).write_volatile(field.bytes) };
    cpu::out(DOORBELL, Doorbell::LOG.0);
}
