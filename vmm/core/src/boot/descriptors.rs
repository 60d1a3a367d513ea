//! The descriptor page of each vCPU: GDT, TSS, and the operands of `lgdt` and `lidt`.

use stallbench_abi::layout::private_area::{
    DOUBLE_FAULT_STACK_TOP, EXCEPTION_STACK_TOP, GDT, GDT_LIMIT, GDT_POINTER, IDT_POINTER, NMI_STACK_TOP,
    TASK_STACK_TOP, TSS, TSS_LIMIT,
};
use stallbench_abi::layout::{
    CODE_SELECTOR, DATA_SELECTOR, IDT, IDT_LIMIT, IST_DOUBLE_FAULT, IST_EXCEPTION, IST_NMI, TSS_SELECTOR, private,
};

use crate::memory::GuestMemory;

/// 64-bit code, ring 0, accessed (SDM 3A 3.4.5).
pub(super) const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Data, ring 0, accessed.
pub(super) const DATA: u64 = 0x00cf_9300_0000_ffff;
/// Types of a 64-bit TSS: the processor makes it busy when it is loaded.
const TSS_AVAILABLE: u64 = 0x9;
const TSS_BUSY: u64 = 0xb;
const PRESENT: u64 = 1 << 47;

/// Offset of RSP0 in a TSS, of the IST slots, eight bytes each from slot 1 on, and of the base of the I/O bitmap
/// (SDM 3A figure 9-11).
const RSP0: u64 = 4;
const IST: u64 = 36;
const IO_MAP_BASE: u64 = 102;

/// Writes the descriptor page of a vCPU.
pub(super) fn write(memory: &GuestMemory, vcpu: usize) {
    let area = private(vcpu);
    write_gdt(memory, area, vcpu);
    write_tss(memory, area);
    pointer(memory, area + GDT_POINTER, GDT_LIMIT, area + GDT);
    pointer(memory, area + IDT_POINTER, IDT_LIMIT, IDT);
}

fn write_gdt(memory: &GuestMemory, area: u64, vcpu: usize) {
    // vCPU 0 starts with its task register loaded, the others load it themselves.
    let kind = if vcpu == 0 { TSS_BUSY } else { TSS_AVAILABLE };
    let base = area + TSS;
    let low = u64::from(TSS_LIMIT) | (base & 0xff_ffff) << 16 | kind << 40 | PRESENT | (base >> 24 & 0xff) << 56;
    let slots = [(CODE_SELECTOR, CODE), (DATA_SELECTOR, DATA), (TSS_SELECTOR, low), (TSS_SELECTOR + 8, base >> 32)];
    for (selector, descriptor) in slots {
        super::write(memory.write_u64(area + GDT + u64::from(selector), descriptor));
    }
}

fn write_tss(memory: &GuestMemory, area: u64) {
    let ist = |slot: u8| IST + u64::from(slot - 1) * 8;
    let stacks = [
        (RSP0, TASK_STACK_TOP),
        (ist(IST_EXCEPTION), EXCEPTION_STACK_TOP),
        (ist(IST_NMI), NMI_STACK_TOP),
        (ist(IST_DOUBLE_FAULT), DOUBLE_FAULT_STACK_TOP),
    ];
    for (offset, top) in stacks {
        super::write(memory.write_u64(area + TSS + offset, area + top));
    }
    super::write(memory.write(area + TSS + IO_MAP_BASE, &(TSS_LIMIT + 1).to_le_bytes()));
}

fn pointer(memory: &GuestMemory, at: u64, limit: u16, base: u64) {
    super::write(memory.write(at, &limit.to_le_bytes()) && memory.write_u64(at + 2, base));
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::memory::Memory;

    #[test]
    fn task_state_has_a_stack_for_each_kind_of_event() {
        let memory = GuestMemory::new(2).expect("memory");
        super::write(&memory, 1);
        let tss = private(1) + TSS;
        let slot = |n: u64| memory.read_u64(tss + IST + n * 8).map(|top| top - private(1));
        assert_eq!([slot(0), slot(1), slot(2)], [EXCEPTION_STACK_TOP, NMI_STACK_TOP, DOUBLE_FAULT_STACK_TOP].map(Some));
    }

    #[test]
    fn task_descriptor_names_the_task_state() {
        let memory = GuestMemory::new(2).expect("memory");
        super::write(&memory, 1);
        let descriptor = memory.read_u64(private(1) + GDT + u64::from(TSS_SELECTOR)).expect("memory");
        let base = descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000;
        assert_eq!((base, descriptor & 0xffff, descriptor >> 40 & 0xf), (private(1) + TSS, 103, TSS_AVAILABLE));
    }
}
