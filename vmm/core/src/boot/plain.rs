//! What a plain guest finds: its segments, one set of page tables for all vCPUs, a descriptor table, and stacks.
//!
//! docs/plain-guests.md tells the same to whoever writes one.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use stallbench_abi::layout::{CODE_SELECTOR, CR0, CR4, DATA_SELECTOR, EFER, EFER_LMA};
use stallbench_state::program::{PlainProgram, ProgramError, Taken};

use super::descriptors::{CODE, DATA};
use super::registers::{RFLAGS, RegisterError, failed};
use super::tables::{self, LARGE_PAGE};
use super::write;
use crate::memory::GuestMemory;

/// Root of the page tables; the table of pointers and four page directories follow, a page each.
const ROOT: u64 = 0x1000;
/// The descriptor table: null, code, data.
const GDT: u64 = 0x7000;
const GDT_LIMIT: u16 = 3 * 8 - 1;
/// End of what is taken at the low end of memory.
const LOW_END: u64 = 0x8000;
/// Bytes of the stack of each vCPU.
const STACK: u64 = 16 << 10;
/// Gigabytes that are mapped, and the one of them that memory never reaches into: the local APIC lies in it.
const GIGABYTES: u64 = 4;
const DEVICES: u64 = 3;
const GIGABYTE: u64 = 1 << 30;

/// Most bytes of memory of a plain guest.
pub const MOST_MEMORY: u64 = DEVICES * GIGABYTE;

/// The memory of a plain guest that its segments may not lie in; `None`: there is not even room for the stacks.
pub fn taken(memory: u64, vcpus: usize) -> Option<[Taken; 2]> {
    let stacks = memory.checked_sub(vcpus as u64 * STACK).filter(|stacks| *stacks >= LOW_END)?;
    Some([
        Taken { what: "the page tables and the descriptor table", from: 0, to: LOW_END },
        Taken { what: "the stacks of the vcpus", from: stacks, to: memory },
    ])
}

/// Lays out memory. The program was found to have room in it.
pub(crate) fn prepare(memory: &GuestMemory, program: &PlainProgram) -> Result<(), ProgramError> {
    for segment in program.segments() {
        let bytes = program.bytes().get(segment.file.clone()).unwrap_or_default();
        if !memory.write(segment.address, bytes) {
            let (address, size) = (segment.address, segment.size);
            return Err(ProgramError::SegmentBeyond { address, size, memory: memory.size() });
        }
    }
    write_tables(memory);
    for (selector, descriptor) in [(CODE_SELECTOR, CODE), (DATA_SELECTOR, DATA)] {
        write(memory.write_u64(GDT + u64::from(selector), descriptor));
    }
    Ok(())
}

/// The first gigabytes, identity mapped: everything is allowed, and devices are not cached.
fn write_tables(memory: &GuestMemory) {
    let pointers = ROOT + 0x1000;
    tables::entry(memory, ROOT, 0, pointers | tables::TABLE);
    for gigabyte in 0..GIGABYTES {
        let directory = pointers + (gigabyte + 1) * 0x1000;
        tables::entry(memory, pointers, gigabyte, directory | tables::TABLE);
        let attributes = tables::large(gigabyte == DEVICES);
        for (index, large) in (0..GIGABYTE).step_by(LARGE_PAGE as usize).enumerate() {
            tables::entry(memory, directory, index as u64, (gigabyte * GIGABYTE + large) | attributes);
        }
    }
}

/// Puts a vCPU at the guest's entry, in long mode, on its stack as after a call.
pub(crate) fn enter(
    vcpu: &VcpuFd,
    (index, vcpus): (usize, usize),
    entry: u64,
    memory: u64,
) -> Result<(), RegisterError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read its system registers", "KVM_GET_SREGS"))?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(failed("set its system registers", "KVM_SET_SREGS"))?;
    let rsp = memory - index as u64 * STACK - 8;
    let (rdi, rsi) = (index as u64, vcpus as u64);
    let regs = kvm_regs { rip: entry, rsp, rdi, rsi, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&regs).map_err(failed("set its general registers", "KVM_SET_REGS"))
}

/// Lets a vCPU receive what comes by an address: KVM looks receivers up in a map, which a new vCPU is not in before something of
/// its local APIC is set.
pub(crate) fn receive(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let apic = vcpu.get_lapic().map_err(failed("read its local apic", "KVM_GET_LAPIC"))?;
    vcpu.set_lapic(&apic).map_err(failed("set its local apic", "KVM_SET_LAPIC"))
}

fn long_mode(sregs: &mut kvm_sregs) {
    sregs.cr0 = CR0;
    sregs.cr3 = ROOT;
    sregs.cr4 = CR4;
    sregs.efer = EFER | EFER_LMA;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, ..flat };
    sregs.cs = kvm_segment { selector: CODE_SELECTOR, type_: 11, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // Hardware enters no guest without a busy TSS (SDM 3C 28.3.1.2); this one is in no table and has nothing in it.
    sregs.tr = kvm_segment { type_: 11, present: 1, ..Default::default() };
    sregs.gdt = kvm_dtable { base: GDT, limit: GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable::default();
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::memory::Memory;

    #[test]
    fn tables_map_the_first_gigabytes_to_themselves() {
        let memory = GuestMemory::plain(2 << 20).expect("memory");
        write_tables(&memory);
        let large = |address: u64| {
            let directory = memory.read_u64(ROOT + 0x1000 + address / GIGABYTE * 8).map(|e| e & !0xfff);
            directory.and_then(|directory| memory.read_u64(directory + address % GIGABYTE / LARGE_PAGE * 8))
        };
        for address in [0, 0x20_0000, GIGABYTE, 3 * GIGABYTE - LARGE_PAGE] {
            assert_eq!(large(address), Some(address | 0xe3), "{address:#x}");
        }
        assert_eq!(large(0xfee0_0000), Some(0xfee0_00fb), "not cached");
    }

    #[test]
    fn stacks_need_room_above_the_tables() {
        let room = |memory, vcpus| taken(memory, vcpus).map(|[_, stacks]| (stacks.from, stacks.to));
        assert_eq!(room(2 << 20, 1), Some((0x1f_c000, 0x20_0000)));
        assert_eq!(room(2 << 20, 127), None, "they would lie over the tables");
        assert_eq!(room(2 << 20, 126), Some((LOW_END, 2 << 20)));
        assert_eq!(room(2 << 20, 255), None);
    }
}
