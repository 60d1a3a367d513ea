//! The bits of registers, by name and in words.

/// A bit: its number, its name, what it means when it is set.
pub(crate) type Bit = (u32, &'static str, &'static str);

/// RFLAGS (SDM 1 3.4.3).
pub(crate) const RFLAGS: &[Bit] = &[
    (0, "CF", "carry"),
    (2, "PF", "parity"),
    (4, "AF", "auxiliary carry"),
    (6, "ZF", "zero"),
    (7, "SF", "sign"),
    (8, "TF", "single step"),
    (9, "IF", "maskable interrupts are let in"),
    (10, "DF", "strings go down"),
    (11, "OF", "overflow"),
    (14, "NT", "nested task"),
    (16, "RF", "resume: instruction breakpoints are off for one instruction"),
    (17, "VM", "virtual-8086 mode"),
    (18, "AC", "alignment check"),
    (19, "VIF", "virtual interrupt flag"),
    (20, "VIP", "virtual interrupt pending"),
    (21, "ID", "CPUID can be used"),
];

/// CR0 (SDM 3A 2.5).
pub(crate) const CR0: &[Bit] = &[
    (0, "PE", "protected mode"),
    (1, "MP", "WAIT heeds TS"),
    (2, "EM", "no x87"),
    (3, "TS", "task switched"),
    (4, "ET", "80387"),
    (5, "NE", "x87 errors are exceptions"),
    (16, "WP", "read-only pages hold for the kernel too"),
    (18, "AM", "alignment check can be on"),
    (29, "NW", "not write-through"),
    (30, "CD", "caches off"),
    (31, "PG", "paging"),
];

/// CR4 (SDM 3A 2.5).
pub(crate) const CR4: &[Bit] = &[
    (0, "VME", "virtual-8086 extensions"),
    (1, "PVI", "protected-mode virtual interrupts"),
    (2, "TSD", "RDTSC for the kernel alone"),
    (3, "DE", "debugging extensions"),
    (4, "PSE", "large pages of 32-bit paging"),
    (5, "PAE", "page tables of 64-bit entries"),
    (6, "MCE", "machine checks"),
    (7, "PGE", "global pages"),
    (8, "PCE", "RDPMC for all"),
    (9, "OSFXSR", "FXSAVE, SSE"),
    (10, "OSXMMEXCPT", "SSE exceptions"),
    (11, "UMIP", "SGDT and the like for the kernel alone"),
    (12, "LA57", "five levels of page tables"),
    (13, "VMXE", "VMX"),
    (14, "SMXE", "SMX"),
    (16, "FSGSBASE", "RDFSBASE and the like"),
    (17, "PCIDE", "process-context identifiers"),
    (18, "OSXSAVE", "XSAVE"),
    (19, "KL", "key locker"),
    (20, "SMEP", "the kernel executes no user pages"),
    (21, "SMAP", "the kernel touches no user pages"),
    (22, "PKE", "protection keys of user pages"),
    (23, "CET", "control-flow enforcement"),
    (24, "PKS", "protection keys of kernel pages"),
    (25, "UINTR", "user interrupts"),
];

/// IA32_EFER (SDM 3A 2.2.1, APM 2 3.1.7).
pub(crate) const EFER: &[Bit] = &[
    (0, "SCE", "SYSCALL"),
    (8, "LME", "long mode wanted"),
    (10, "LMA", "long mode active"),
    (11, "NXE", "no-execute pages"),
    (12, "SVME", "SVM"),
    (13, "LMSLE", "segment limits in long mode"),
    (14, "FFXSR", "fast FXSAVE"),
    (15, "TCE", "translation cache extension"),
];

/// IA32_APIC_BASE (SDM 3A 11.4.4, 11.12.1).
pub(crate) const APIC_BASE: &[Bit] =
    &[(8, "BSP", "bootstrap processor"), (10, "EXTD", "x2APIC mode"), (11, "EN", "local APIC on")];

/// Entries of page tables (SDM 3A 5.5.4).
pub(crate) const PAGE_ENTRY: &[Bit] = &[
    (0, "P", "present"),
    (1, "W", "writable"),
    (2, "U", "user"),
    (3, "PWT", "write-through"),
    (4, "PCD", "cache disabled"),
    (5, "A", "accessed"),
    (6, "D", "dirty"),
    (8, "G", "global"),
    (63, "XD", "no execution"),
];

/// The exceptions (SDM 3A table 7-1).
const EXCEPTIONS: [&str; 22] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack-segment fault",
    "general protection",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualization",
    "control protection",
];

/// The name of an exception.
pub(crate) fn exception(vector: u64) -> Option<&'static str> {
    EXCEPTIONS.get(usize::try_from(vector).ok()?).copied()
}

/// The name that the payload's contract gives a vector.
pub(crate) fn payload_vector(number: u64) -> Option<&'static str> {
    use stallbench_abi::layout::vector;
    Some(match u8::try_from(number).ok()? {
        vector::SPURIOUS => "spurious",
        vector::RESCHEDULE => "reschedule",
        vector::CALL_FUNCTION => "multi-target call",
        vector::CALL_FUNCTION_SINGLE => "single-target call",
        vector::NOTIFY => "notify",
        vector::PING => "ping",
        _ => return None,
    })
}

/// The names of the bits that are set, and a number for those that have none.
pub(crate) fn names(bits: &[Bit], value: u64) -> String {
    let set = bits.iter().filter(|(bit, ..)| value >> bit & 1 == 1).map(|(_, name, _)| (*name).to_owned());
    let known = bits.iter().fold(0, |known, (bit, ..)| known | 1 << bit);
    // Bit 1 of RFLAGS is always set, and says nothing.
    let rest = value & !known & if bits == RFLAGS { !2 } else { !0 };
    let rest = (rest != 0).then(|| format!("and {rest:#x}"));
    set.chain(rest).collect::<Vec<_>>().join(" ")
}

/// Bytes as the number that they are, little-endian: at most eight.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What is wrong with a number that has no room in so many bytes.
pub(crate) fn too_wide(value: u64, size: usize) -> String {
    let plural = if size == 1 { "" } else { "s" };
    format!("{value:#x} does not fit in {size} byte{plural}")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn bits_are_named_and_the_unknown_stay_a_number() {
        assert_eq!(names(RFLAGS, 0x246), "PF ZF IF");
        assert_eq!(names(RFLAGS, 2), "");
        assert_eq!(names(CR0, 0x8000_0031), "PE ET NE PG");
        assert_eq!(names(EFER, 1 << 40 | 1 << 10), "LMA and 0x10000000000");
    }

    #[test]
    fn bits_stand_in_their_order_each_once() {
        for bits in [RFLAGS, CR0, CR4, EFER, APIC_BASE, PAGE_ENTRY] {
            assert!(bits.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
