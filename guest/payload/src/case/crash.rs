//! Subject `crash`: what a vCPU must not do, and how it reaches the host.

use core::hint::black_box;

use stallbench_abi::knob::{CRASH, crash};
use stallbench_abi::layout::{BOOT_BLOCK, private};
use stallbench_rt::{boot, cpu, this};

use super::case;

/// IA32_MTRR_PHYSBASE0.
const PHYS_BASE_0: u32 = 0x200;
/// A memory type that is reserved (SDM 3A 12.11, table 12-8).
const RESERVED_TYPE: u64 = 2;

case!(CASE, "crash", "one vCPU does what it must not do", [APIC, INITIATOR, CRASH], crash);

fn crash() {
    if !this::is_initiator() {
        return;
    }
    match boot::word(&CRASH) {
        crash::UNDEFINED_OPCODE => cpu::undefined_opcode(),
        crash::NULL => read(0),
        crash::STACK_OVERFLOW => drop(overflow(0)),
        crash::FOREIGN_MEMORY => read(private((this::vcpu() + 1) % boot::vcpus())),
        crash::READ_ONLY => write(BOOT_BLOCK),
        crash::RESERVED_TYPE => cpu::write_msr(PHYS_BASE_0, RESERVED_TYPE),
        crash::TRIPLE_FAULT => cpu::triple_fault(),
        _ => panic!("this vCPU panics, as asked"),
    }
}

fn read(address: u64) {
    // SAFETY: none is needed: the address is absent from this vCPU's page tables, and the fault is what is asked for.
    black_box(unsafe { (address as *const u64).read_volatile() });
}

fn write(address: u64) {
    // SAFETY: as for `read`: the page is read-only.
    unsafe { (address as *mut u64).write_volatile(0) };
}

/// Deeper and deeper: the page under the stack is absent, and the exception has a stack of its own.
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { overflow(depth + 1) + black_box(frame)[7] }
}
