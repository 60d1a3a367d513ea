//! The death of a guest, told by its last words or by KVM.

use stallbench_abi::layout::{private, private_area};
use stallbench_abi::text;
use stallbench_abi::vcpu::{Death, Epitaph, VcpuPage};
use stallbench_core::Fault;
use stallbench_stall::code::{Code, place};
use stallbench_state::machine::MachineState;
use stallbench_state::memory::{Memory, read_plain};
use stallbench_state::program::Program;

use crate::outcome::{Address, GuestFault};

/// Vector of the page fault.
const PAGE_FAULT: u32 = 14;

/// How a vCPU died in a machine that was driven there, by what it wrote, or else by what KVM told.
pub(crate) fn found(
    program: &Program,
    machine: &MachineState,
    memory: &impl Memory,
    (vcpu, told): (usize, &str),
) -> GuestFault {
    let page: VcpuPage = read_plain(memory, private(vcpu) + private_area::PAGE_PUBLISHED).unwrap_or_default();
    match page.epitaph.death {
        Death::NONE if !told.is_empty() => at(program, vcpu, told.to_owned(), Some(machine)),
        _ => of_epitaph(program, memory, vcpu),
    }
}

/// What a vCPU wrote before it stayed where it is.
pub(super) fn of_epitaph(program: &Program, memory: &impl Memory, vcpu: usize) -> GuestFault {
    let page: VcpuPage = read_plain(memory, private(vcpu) + private_area::PAGE_PUBLISHED).unwrap_or_default();
    let epitaph = &page.epitaph;
    let fault = GuestFault { vcpu, text: last_words(epitaph), ..GuestFault::default() };
    // A panic tells its line instead.
    let rip = Some(epitaph.rip).filter(|rip| *rip != 0);
    let symbol = rip.map(|rip| place(program, rip)).unwrap_or_default();
    let with_rip = GuestFault { rip: rip.map(Address), symbol, ..fault };
    match epitaph.death {
        Death::EXCEPTION => GuestFault { vector: Some(epitaph.vector), error: Some(epitaph.error), ..with_rip },
        _ => GuestFault { file: text::of(&epitaph.file).into(), line: epitaph.line, ..with_rip },
    }
}

fn last_words(epitaph: &Epitaph) -> String {
    let text = text::of(&epitaph.text);
    match epitaph.death {
        Death::PANIC => format!("panic: {text}"),
        Death::EXCEPTION if epitaph.vector == PAGE_FAULT => format!("page fault at {:#x}", epitaph.cr2),
        Death::EXCEPTION => exception(epitaph.vector),
        Death::NONE => "it rang for an epitaph and wrote none".into(),
        unknown => format!("death {unknown}: {text}"),
    }
}

/// Names of SDM 3A table 6-1.
fn exception(vector: u32) -> String {
    let name = match vector {
        0 => "divide error",
        1 => "debug exception",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack-segment fault",
        13 => "general protection fault",
        16 => "x87 floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating-point exception",
        _ => return format!("unexpected vector {vector}"),
    };
    name.into()
}

/// What KVM told about a vCPU that cannot go on. Where it was is read from its last state, if there is one.
pub(super) fn of_kvm(program: &dyn Code, vcpu: usize, fault: &Fault, state: Option<&MachineState>) -> GuestFault {
    at(program, vcpu, fault.to_string(), state)
}

/// What happened to a vCPU, and where it was by its last state, if there is one.
pub(super) fn at(program: &dyn Code, vcpu: usize, text: String, state: Option<&MachineState>) -> GuestFault {
    let registers = state.and_then(|state| state.vcpus.get(vcpu)?.registers.as_ref().ok());
    let rip = registers.map(|registers| registers.rip);
    GuestFault {
        vcpu,
        text,
        rip: rip.map(Address),
        symbol: rip.map(|rip| place(program, rip)).unwrap_or_default(),
        ..GuestFault::default()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn last_words_tell_the_kind_of_death() {
        let text = text::field("timed out waiting for other CPUs");
        let panic = Epitaph { death: Death::PANIC, text, ..Epitaph::default() };
        assert_eq!(last_words(&panic), "panic: timed out waiting for other CPUs");
        let page_fault = Epitaph { death: Death::EXCEPTION, vector: 14, cr2: 0x1000, ..Epitaph::default() };
        assert_eq!(last_words(&page_fault), "page fault at 0x1000");
        let unknown = Epitaph { death: Death(9), ..Epitaph::default() };
        assert_eq!(last_words(&unknown), "death unknown(9): ");
    }

    #[test]
    fn vector_of_any_number_has_a_text() {
        assert_eq!(exception(13), "general protection fault");
        assert_eq!(exception(u32::MAX), "unexpected vector 4294967295");
    }
}
