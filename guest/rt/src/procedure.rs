//! The edges of the procedure that programs MTRRs: where a vCPU enters it and leaves it, for a host that steps through it.
//!
//! Each is one instruction that does nothing, in a function that is never inlined: a processor has four breakpoints, and a copy
//! at each caller would want one of its own.

use core::arch::asm;

/// The instruction, and its entry in the image's table.
macro_rules! edge {
    ($kind:ident) => {
        // SAFETY: does nothing; the entry in the image's table says so of this address.
        unsafe {
            asm!(
                "2: nop",
                ".pushsection .stallbench.edges, \"a\", @progbits",
                ".quad 2b, {edge}",
                ".popsection",
                edge = const stallbench_abi::image::EdgeKind::$kind.0,
                options(nostack, preserves_flags),
            );
        }
    };
}

/// This vCPU enters the procedure.
#[inline(never)]
pub fn enter() {
    edge!(ENTRY);
}

/// This vCPU leaves the procedure.
#[inline(never)]
pub fn leave() {
    edge!(EXIT);
}
