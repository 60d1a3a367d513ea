//! The edges of the procedure that programs MTRRs: where a vCPU enters it and leaves it, for a host that steps through it.
//!
//! Each is one instruction that does nothing, in a function that is never inlined: a processor has four breakpoints, and a copy
//! at each caller would want one of its own.

use core::arch::asm;

/// This vCPU enters the procedure.
#[inline(never)]
pub fn enter() {
    // SAFETY: does nothing; the entry in the image's table says so of this address.
    unsafe {
        asm!(
            "2: nop",
            ".pushsection .stallbench.edges, \"a\", @progbits",
            ".quad 2b, {edge}",
            ".popsection",
            edge = const stallbench_abi::image::EdgeKind::ENTRY.0,
            options(nostack, preserves_flags),
        );
    }
}

/// This vCPU leaves the procedure.
#[inline(never)]
pub fn leave() {
    // SAFETY: as in `enter`.
    unsafe {
        asm!(
            "2: nop",
            ".pushsection .stallbench.edges, \"a\", @progbits",
            ".quad 2b, {edge}",
            ".popsection",
            edge = const stallbench_abi::image::EdgeKind::EXIT.0,
            options(nostack, preserves_flags),
        );
    }
}
