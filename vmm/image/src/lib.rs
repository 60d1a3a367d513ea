//! The built-in guest image: its bytes, and what it says about itself.
//!
//! `build.rs` builds the payload for ring 0 and this crate embeds it. What an image must be is checked by the gate in
//! `tests/gate`: static, read-only, and nothing but plain integer instructions.

use std::sync::OnceLock;

use stallbench_state::dump::Packed;
use stallbench_state::program::Program;

/// The image, an ELF file of the contract's [version](stallbench_abi::VERSION).
pub static PAYLOAD: &[u8] = include_bytes!(env!("GUEST_ELF"));

/// The image as dumps have it in them, compressed when it was built.
pub fn packed() -> Packed {
    static STREAM: &[u8] = include_bytes!(env!("GUEST_ELF_PACKED"));
    Packed::ready(PAYLOAD.len(), STREAM)
}

/// The image, read. Its first caller reads it, the others share what was read.
///
/// # Panics
///
/// If the image breaks the contract, which the tests of this crate exclude.
pub fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::parse(PAYLOAD).expect("the built-in image keeps the contract"))
}
