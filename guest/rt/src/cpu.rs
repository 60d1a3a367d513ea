//! Instructions that Rust has no word for. Each is one instruction, or the shortest sequence that makes sense alone.

use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicU32;

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;

/// CR0.CD: caches fill no lines (SDM 3A 2.5).
pub const CR0_CACHE_DISABLE: u64 = 1 << 30;
/// CR0.NW.
pub const CR0_NOT_WRITE_THROUGH: u64 = 1 << 29;
/// CR4.PGE: global pages.
pub const CR4_GLOBAL_PAGES: u64 = 1 << 7;

/// Whether interrupts were enabled before [`disable_interrupts`].
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct InterruptsWere(bool);

impl InterruptsWere {
    /// Of interrupts that were left as they were: nothing is to be restored.
    pub const UNTOUCHED: Self = Self(false);
}

/// CLI; returns what to give [`restore_interrupts`].
pub fn disable_interrupts() -> InterruptsWere {
    let flags: u64;
    // SAFETY: ring 0; reads RFLAGS through the stack and clears IF.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    InterruptsWere(flags & INTERRUPT_FLAG != 0)
}

/// STI where interrupts were enabled before.
pub fn restore_interrupts(were: InterruptsWere) {
    if were.0 {
        enable_interrupts();
    }
}

/// Whether interrupts are on.
pub fn takes_interrupts() -> bool {
    let flags: u64;
    // SAFETY: ring 0; reads RFLAGS through the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & INTERRUPT_FLAG != 0
}

/// STI.
pub fn enable_interrupts() {
    // SAFETY: ring 0; every vector has a gate.
    unsafe { asm!("sti", options(nostack)) };
}

/// STI;HLT as one: the interrupt shadow of STI keeps an interrupt from coming between them (SDM 2B, STI).
pub fn enable_interrupts_and_halt() {
    // SAFETY: ring 0; an interrupt wakes the processor and returns behind HLT.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// HLT as it is: with interrupts off only an NMI or INIT ends it.
pub fn halt() {
    // SAFETY: ring 0; whatever wakes the processor returns behind HLT.
    unsafe { asm!("hlt", options(nostack, preserves_flags)) };
}

unsafe extern "C" {
    /// Halts for as long as the word is 0; the second is the address behind its HLT.
    fn stallbench_halt_until_set(word: *const u32);
    fn stallbench_halt_until_set_halted();
}

global_asm!(
    ".pushsection .text.stallbench_halt_until_set, \"ax\", @progbits",
    ".globl stallbench_halt_until_set, stallbench_halt_until_set_halted",
    ".type stallbench_halt_until_set, @function",
    "stallbench_halt_until_set:",
    "cmp dword ptr [rdi], 0",
    "jne 2f",
    "hlt",
    "stallbench_halt_until_set_halted:",
    "jmp stallbench_halt_until_set",
    "2:",
    "ret",
    ".size stallbench_halt_until_set, . - stallbench_halt_until_set",
    ".popsection",
);

/// HLT for as long as a word is 0. With interrupts off an NMI ends it, and one that comes between the look at the word and the HLT,
/// which would wake nobody, has the look taken once more (`look_again`).
pub fn halt_until_set(word: &AtomicU32) {
    // SAFETY: ring 0; it reads the word, and whatever wakes the processor returns into it.
    unsafe { stallbench_halt_until_set(word.as_ptr()) };
}

/// Where an NMI returns to that came at `rip`: the look at the word, if it is between that and the HLT behind it.
pub(crate) fn look_again(rip: u64) -> u64 {
    let (look, halted) = (stallbench_halt_until_set as *const (), stallbench_halt_until_set_halted as *const ());
    if (look as u64..halted as u64).contains(&rip) { look as u64 } else { rip }
}

/// CLI;HLT for ever: only an NMI or INIT comes through.
pub fn stop() -> ! {
    loop {
        // SAFETY: ring 0; nothing is left to do on this vCPU.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// PAUSE.
pub fn relax() {
    // SAFETY: a hint.
    unsafe { asm!("pause", options(nomem, nostack, preserves_flags)) };
}

/// MFENCE;LFENCE: what an x2APIC ICR write needs before it (SDM 3A 11.12.3).
pub fn fence_before_x2apic() {
    // SAFETY: orders memory accesses, nothing else.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// MFENCE.
pub fn fence_stores() {
    // SAFETY: orders memory accesses, nothing else.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
}

/// Reads a model-specific register that exists.
pub fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: ring 0; callers name registers of the fixed model, another raises #GP, which reaches the host as an epitaph.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
pub fn write_msr(register: u32, value: u64) {
    // SAFETY: as for `read_msr`; registers that change where code or data is are not written by this crate's callers.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// CR0.
pub fn cr0() -> u64 {
    let value;
    // SAFETY: ring 0; reads.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR0; callers change CD alone.
pub fn set_cr0(value: u64) {
    // SAFETY: ring 0; paging and protection stay on.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: ring 0; reads.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR4; callers change PGE alone.
pub fn set_cr4(value: u64) {
    // SAFETY: ring 0; PAE stays on.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// CR2.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: ring 0; reads.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reloads CR3, which flushes the translations that are not global.
pub fn reload_cr3() {
    // SAFETY: ring 0; the same tables stay in use.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}

/// WBINVD.
pub fn write_back_and_invalidate_caches() {
    // SAFETY: ring 0; memory keeps its contents.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// A 32-bit OUT.
pub fn out(port: u16, value: u32) {
    // SAFETY: ring 0; the ports are the host's.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// The initial APIC id (CPUID.01H:EBX, bits 31:24).
pub fn initial_apic_id() -> u32 {
    core::arch::x86_64::__cpuid(1).ebx >> 24
}

/// The stack pointer.
pub fn stack_pointer() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Clears memory of the arena, a word at a time. Another vCPU may still look at what stood there: that is a bug of its protocol, which
/// the bench is about, and must not become one of this program, as a race with a store of Rust would be.
///
/// # Safety
///
/// The bytes, up to the next multiple of 8, are mapped and the caller's to write; `address` is a multiple of 8.
pub unsafe fn clear(address: u64, bytes: usize) {
    let end = address + bytes.next_multiple_of(8) as u64;
    for word in (address..end).step_by(8) {
        // SAFETY: as the caller's.
        unsafe { asm!("mov qword ptr [{}], 0", in(reg) word, options(nostack, preserves_flags)) };
    }
}

/// UD2.
pub fn undefined_opcode() {
    // SAFETY: raises #UD, whose gate ends in an epitaph.
    unsafe { asm!("ud2", options(nomem, nostack)) };
}

/// An exception that finds no gate: a shutdown (SDM 3A 7.15, #DF).
pub fn triple_fault() {
    let no_table = [0u16; 5];
    // SAFETY: ends this vCPU, which is what is asked for.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) no_table.as_ptr(), options(nostack)) };
}

/// Adds to a word in one instruction, which no interrupt or NMI of this processor comes into; returns what it was before.
///
/// # Safety
///
/// The word is this vCPU's own, aligned and mapped.
pub unsafe fn add_undivided(word: *mut u64, addend: u64) -> u64 {
    let mut value = addend;
    // SAFETY: as the caller's.
    unsafe { asm!("xadd qword ptr [{}], {}", in(reg) word, inout(reg) value, options(nostack)) };
    value
}
