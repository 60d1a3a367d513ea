//! What the contract has at a guest-physical address (docs/contract.md).

use stallbench_abi::layout::{
    ARENA, ARENA_SIZE, BOOT_BLOCK, CONTROL_END, GHOST, IDT, IMAGE, IMAGE_END, PAGE, PAUSE, PRIVATE, PRIVATE_STRIDE,
    SHARED_TABLES, STUBS, TABLES, TABLES_END, TABLES_STRIDE, TRAMPOLINE, XAPIC, memory_end, private_area as area,
};

/// Parts of memory that every machine has, by ascending address: first byte, byte behind the last, name.
const FIXED: [(u64, u64, &str); 9] = [
    (TRAMPOLINE, IDT, "trampoline"),
    (IDT, STUBS, "interrupt descriptor table"),
    (STUBS, STUBS + 0x6000, "interrupt stubs"),
    (IMAGE, IMAGE_END, "image"),
    (BOOT_BLOCK, GHOST, "boot block"),
    (GHOST, PAUSE, "ghost page"),
    (PAUSE, CONTROL_END, "pause page"),
    (ARENA, ARENA + ARENA_SIZE, "arena"),
    (XAPIC, XAPIC + PAGE, "local APIC"),
];

/// Parts of a private area, by ascending offset.
const PRIVATE_PARTS: [(u64, u64, &str); 8] = [
    (area::PAGE_PUBLISHED, PAGE, "publication page"),
    (area::TASK_STACK, area::TASK_STACK_TOP, "task stack"),
    (area::EXCEPTION_STACK, area::EXCEPTION_STACK_TOP, "exception stack"),
    (area::NMI_STACK, area::NMI_STACK_TOP, "NMI stack"),
    (area::DOUBLE_FAULT_STACK, area::DOUBLE_FAULT_STACK_TOP, "double-fault stack"),
    (area::DESCRIPTORS, area::RUNTIME, "descriptor tables"),
    (area::RUNTIME, area::RING, "runtime"),
    (area::RING, area::END, "event ring"),
];

/// What lies there in a machine with that many vCPUs: `arena+0xe0`, `vcpu1 task stack+0x7f80`.
pub(crate) fn at(address: u64, vcpus: usize) -> Option<String> {
    if let Some((part, offset)) = find(&FIXED, address) {
        return Some(with_offset(part, offset));
    }
    if (TABLES..TABLES_END).contains(&address) {
        return Some(table(address, vcpus));
    }
    if !(PRIVATE..memory_end(vcpus)).contains(&address) {
        return None;
    }
    let (vcpu, offset) = ((address - PRIVATE) / PRIVATE_STRIDE, (address - PRIVATE) % PRIVATE_STRIDE);
    Some(match find(&PRIVATE_PARTS, offset) {
        Some((part, offset)) => with_offset(&format!("vcpu{vcpu} {part}"), offset),
        None => format!("vcpu{vcpu} private area+{offset:#x}, an absent page"),
    })
}

/// A page table.
fn table(address: u64, vcpus: usize) -> String {
    let vcpu = (address - TABLES) / TABLES_STRIDE;
    if address >= SHARED_TABLES {
        return with_offset("shared page tables", address - SHARED_TABLES);
    }
    match vcpu < vcpus as u64 {
        true => with_offset(&format!("vcpu{vcpu} page tables"), (address - TABLES) % TABLES_STRIDE),
        false => with_offset("page tables", address - TABLES),
    }
}

fn find<'a>(parts: &[(u64, u64, &'a str)], address: u64) -> Option<(&'a str, u64)> {
    let (start, _, name) = parts.iter().find(|(start, end, _)| (*start..*end).contains(&address))?;
    Some((name, address - start))
}

fn with_offset(part: &str, offset: u64) -> String {
    if offset == 0 { part.to_owned() } else { format!("{part}+{offset:#x}") }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_part_of_the_contract_has_its_name() {
        let at = |address| at(address, 2);
        assert_eq!(at(0), None);
        assert_eq!(at(ARENA + 0xe0).as_deref(), Some("arena+0xe0"));
        assert_eq!(at(PRIVATE).as_deref(), Some("vcpu0 publication page"));
        assert_eq!(at(PRIVATE + PRIVATE_STRIDE + area::TASK_STACK + 8).as_deref(), Some("vcpu1 task stack+0x8"));
        assert_eq!(at(PRIVATE + PAGE).as_deref(), Some("vcpu0 private area+0x1000, an absent page"));
        assert_eq!(at(TABLES + TABLES_STRIDE).as_deref(), Some("vcpu1 page tables"));
        assert_eq!(at(TABLES + 2 * TABLES_STRIDE).as_deref(), Some("page tables+0x8000"));
        assert_eq!(at(SHARED_TABLES + 8).as_deref(), Some("shared page tables+0x8"));
        assert_eq!(at(memory_end(2)), None);
        assert_eq!(at(u64::MAX), None);
    }
}
