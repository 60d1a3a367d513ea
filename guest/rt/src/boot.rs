//! The boot block, as the guest reads it.

use stallbench_abi::boot::BootBlock;
use stallbench_abi::knob::Knob;
use stallbench_abi::layout::BOOT_BLOCK;

/// The boot block. The host wrote it before the first instruction and never changes it.
pub fn block() -> &'static BootBlock {
    // SAFETY: the host maps the boot block read-only at this address for as long as the guest runs, and it is plain data.
    unsafe { &*(BOOT_BLOCK as *const BootBlock) }
}

/// Number of vCPUs of this guest.
pub fn vcpus() -> usize {
    block().vcpus as usize
}

/// The raw value of a knob.
pub fn knob(knob: &Knob) -> u64 {
    block().knob(knob)
}

/// The code of the word that a knob is set to.
pub fn word(knob: &Knob) -> u8 {
    block().knob(knob) as u8
}

/// The number behind the word that a knob is set to.
pub fn word_number(knob: &Knob) -> u64 {
    block().knob(knob) >> 8
}
