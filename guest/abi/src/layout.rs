//! Where things lie in guest-physical memory, and the tables that describe the machine.
//!
//! Guest virtual addresses equal guest-physical ones. Each vCPU has its own page tables, in which the private areas of the
//! other vCPUs are absent: what vCPUs share lies in the arena or in the ghost page, anything else faults.
//!
//! ```text
//! 0x0000_0000  page 0, never mapped
//! 0x0000_8000  trampoline: where a SIPI starts an application processor          rx
//! 0x0000_9000  interrupt descriptor table, the same for all vCPUs                rx, of one segment with the stubs
//! 0x0000_a000  interrupt stubs                                                   rx
//! 0x0010_0000  image: text (rx) and read-only data (r); it has no writable data
//! 0x0020_0000  boot block                                                        r
//! 0x0020_1000  ghost page                                                        rw
//! 0x0020_2000  pause page                                                        rw
//! 0x0040_0000  arena: what vCPUs share                                           rw
//! 0x00c0_0000  page tables of all vCPUs, not mapped in the guest
//! 0x0200_0000  private areas, PRIVATE_STRIDE bytes a vCPU                        rw, by its owner alone
//! 0xfee0_0000  local APIC in xAPIC mode                                          rw
//! ```

/// Size of a page in bytes.
pub const PAGE: u64 = 4096;

/// Most vCPUs that a guest can have: xAPIC ids 0 to 254, 255 is broadcast (SDM 3A 11.6.2).
pub const MAX_VCPUS: usize = 255;

/// Words of a set of vCPUs.
pub const MASK_WORDS: usize = 4;

/// Base of the trampoline. A SIPI with vector `VV` starts a processor at `VV000` (SDM 3A 9.4.4), in real mode.
pub const TRAMPOLINE: u64 = 0x8000;
/// Vector of the SIPI that starts the trampoline.
pub const SIPI_VECTOR: u8 = (TRAMPOLINE >> 12) as u8;
/// Base of the interrupt descriptor table.
pub const IDT: u64 = 0x9000;
/// Limit of the interrupt descriptor table: 256 gates of 16 bytes.
pub const IDT_LIMIT: u16 = 256 * 16 - 1;
/// Base of the interrupt stubs. Below 64 KiB, so that a linker can build the gates (their offset fits in bits 15:0).
pub const STUBS: u64 = 0xa000;
/// End of the low part of an image: trampoline, table and stubs.
pub const LOW_END: u64 = 0x1_0000;

/// Base of the image.
pub const IMAGE: u64 = 0x10_0000;
/// End of what an image may occupy.
pub const IMAGE_END: u64 = 0x20_0000;

/// Address of the [boot block](crate::boot::BootBlock).
pub const BOOT_BLOCK: u64 = 0x20_0000;
/// Address of the [ghost page](crate::shared::GhostPage).
pub const GHOST: u64 = 0x20_1000;
/// Address of the [pause page](crate::pause::PausePage).
pub const PAUSE: u64 = 0x20_2000;
/// End of the control region.
pub const CONTROL_END: u64 = 0x20_3000;

/// Base of the arena.
pub const ARENA: u64 = 0x40_0000;
/// Size of the arena in bytes.
pub const ARENA_SIZE: u64 = 0x80_0000;

/// Base of the page tables.
pub const TABLES: u64 = 0xc0_0000;
/// Bytes of page tables that one vCPU has to itself: PML4, PDPT, PD, and the PT over its private area, a page each and in
/// this order. CR3 of vCPU `n` is `TABLES + n * TABLES_STRIDE`.
pub const TABLES_STRIDE: u64 = 4 * PAGE;
/// Tables that all vCPUs use, behind the others.
pub const SHARED_TABLES: u64 = TABLES + 256 * TABLES_STRIDE;
/// End of the page tables.
pub const TABLES_END: u64 = SHARED_TABLES + 8 * PAGE;

/// Base of the private areas.
pub const PRIVATE: u64 = 0x200_0000;
/// Bytes of one private area, a power of two: a vCPU finds its own by masking its stack pointer.
pub const PRIVATE_STRIDE: u64 = 0x2_0000;
/// End of the private areas, and of guest memory, for `vcpus` vCPUs.
pub const fn memory_end(vcpus: usize) -> u64 {
    PRIVATE + vcpus as u64 * PRIVATE_STRIDE
}

/// Base of the private area of `vcpu`.
pub const fn private(vcpu: usize) -> u64 {
    PRIVATE + vcpu as u64 * PRIVATE_STRIDE
}

/// CR3 of `vcpu`.
pub const fn cr3(vcpu: usize) -> u64 {
    TABLES + vcpu as u64 * TABLES_STRIDE
}

/// Offsets in a private area. Under each stack lies a page that is absent.
pub mod private_area {
    use super::PAGE;

    /// The [publication page](crate::vcpu::VcpuPage).
    pub const PAGE_PUBLISHED: u64 = 0;
    /// Lowest byte of the task stack; the page below is absent.
    pub const TASK_STACK: u64 = 2 * PAGE;
    /// End of the task stack, where its vCPU starts. Interrupts run on it too, as on the hardware without an IST.
    pub const TASK_STACK_TOP: u64 = 10 * PAGE;
    /// Lowest byte of the exception stack.
    pub const EXCEPTION_STACK: u64 = 11 * PAGE;
    /// End of the exception stack (IST 1).
    pub const EXCEPTION_STACK_TOP: u64 = 13 * PAGE;
    /// Lowest byte of the NMI stack.
    pub const NMI_STACK: u64 = 14 * PAGE;
    /// End of the NMI stack (IST 2).
    pub const NMI_STACK_TOP: u64 = 16 * PAGE;
    /// Lowest byte of the double-fault stack.
    pub const DOUBLE_FAULT_STACK: u64 = 17 * PAGE;
    /// End of the double-fault stack (IST 3).
    pub const DOUBLE_FAULT_STACK_TOP: u64 = 18 * PAGE;
    /// The descriptor page: [`GDT`], [`TSS`], and the operand of `lgdt`.
    pub const DESCRIPTORS: u64 = 19 * PAGE;
    /// Global descriptor table.
    pub const GDT: u64 = DESCRIPTORS;
    /// Limit of the global descriptor table: null, code, data, TSS (two slots).
    pub const GDT_LIMIT: u16 = 5 * 8 - 1;
    /// Task state segment.
    pub const TSS: u64 = DESCRIPTORS + 0x100;
    /// Limit of the task state segment (104 bytes, no I/O bitmap).
    pub const TSS_LIMIT: u16 = 103;
    /// Operand of `lgdt`: limit (2 bytes), base (8 bytes).
    pub const GDT_POINTER: u64 = DESCRIPTORS + 0x80;
    /// Operand of `lidt`: limit (2 bytes), base (8 bytes).
    pub const IDT_POINTER: u64 = DESCRIPTORS + 0x90;
    /// What the runtime of this vCPU keeps for itself.
    pub const RUNTIME: u64 = 20 * PAGE;
    /// The [event ring](crate::event).
    pub const RING: u64 = 24 * PAGE;
    /// End of the event ring, and of the area.
    pub const END: u64 = 32 * PAGE;

    /// The pages that are absent: one under each stack, and those that nothing uses.
    pub const ABSENT: [u64; 5] = [PAGE, 10 * PAGE, 13 * PAGE, 16 * PAGE, 18 * PAGE];
}

/// Selector of the 64-bit code segment.
pub const CODE_SELECTOR: u16 = 0x08;
/// Selector of the data segment.
pub const DATA_SELECTOR: u16 = 0x10;
/// Selector of the task state segment.
pub const TSS_SELECTOR: u16 = 0x18;

/// IST slot of exceptions.
pub const IST_EXCEPTION: u8 = 1;
/// IST slot of the NMI.
pub const IST_NMI: u8 = 2;
/// IST slot of the double fault.
pub const IST_DOUBLE_FAULT: u8 = 3;

/// CR0 in which a vCPU runs its case: PG, WP, NE, ET, PE (SDM 3A 2.5).
pub const CR0: u64 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1;
/// CR4 in which a vCPU runs its case: PGE, PAE.
pub const CR4: u64 = 1 << 7 | 1 << 5;
/// EFER before paging is on: NXE, LME.
pub const EFER: u64 = 1 << 11 | 1 << 8;
/// EFER.LMA, which the processor sets when paging goes on.
pub const EFER_LMA: u64 = 1 << 10;

/// Base of the local APIC's registers in xAPIC mode.
pub const XAPIC: u64 = 0xfee0_0000;

/// MAXPHYADDR of the fixed CPUID model, in bits.
pub const MAX_PHYS_ADDR_BITS: u8 = 39;

/// Interrupt vectors of the payload; the numbers are those of Linux 2.6.28.
pub mod vector {
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Spurious interrupts.
    pub const SPURIOUS: u8 = 0xff;
    /// Reschedule: makes a halted vCPU look at what there is to do.
    pub const RESCHEDULE: u8 = 0xfd;
    /// Multi-target cross-CPU call.
    pub const CALL_FUNCTION: u8 = 0xfc;
    /// Single-target cross-CPU call.
    pub const CALL_FUNCTION_SINGLE: u8 = 0xfb;
    /// The notification of a pattern's own protocol.
    pub const NOTIFY: u8 = 0xf2;
    /// Another interrupt of a pattern's own: one that comes in between.
    pub const PING: u8 = 0xf1;
    /// Calls to a rendezvous that has no call layer under it.
    pub const MEET: u8 = 0xf0;
}

const _: () = {
    assert!(CONTROL_END <= ARENA && ARENA + ARENA_SIZE <= TABLES && TABLES_END <= PRIVATE);
    assert!(PRIVATE_STRIDE.is_power_of_two() && PRIVATE.is_multiple_of(PRIVATE_STRIDE));
    assert!(private_area::END <= PRIVATE_STRIDE);
    assert!(MAX_VCPUS < 256 && MASK_WORDS * 64 > MAX_VCPUS);
};
