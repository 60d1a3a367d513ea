//! The few instructions that matter for the order.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use stallbench_stall::register::value;
use stallbench_state::machine::Registers;

use super::What;

/// An instruction, as far as the order is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    kind: Kind,
    /// The address behind it, where nothing but that can come next.
    pub(super) next: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Wbinvd,
    /// A move to this control register from this general one.
    Control(Register, Register),
    Other,
}

/// Decodes the instruction at `rip`; `None` where the bytes are none.
pub(super) fn decode(bytes: &[u8], rip: u64) -> Option<Decoded> {
    let instruction = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return None;
    }
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let goes_on = instruction.flow_control() == FlowControl::Next && !repeats;
    Some(Decoded { kind: kind(&instruction), next: goes_on.then(|| instruction.next_ip()) })
}

fn kind(instruction: &Instruction) -> Kind {
    match instruction.mnemonic() {
        Mnemonic::Wbinvd => Kind::Wbinvd,
        Mnemonic::Mov if instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_cr() => {
            Kind::Control(instruction.op0_register(), instruction.op1_register())
        }
        _ => Kind::Other,
    }
}

impl Decoded {
    /// What a vCPU with these registers does by it, if it matters.
    pub(super) fn what(&self, registers: &Registers) -> Option<What> {
        match self.kind {
            Kind::Wbinvd => Some(What::Wbinvd),
            Kind::Control(Register::CR0, from) => Some(What::Cr0(value(registers, from).unwrap_or_default())),
            Kind::Control(Register::CR3, _) => Some(What::Cr3),
            Kind::Control(Register::CR4, from) => Some(What::Cr4(value(registers, from).unwrap_or_default())),
            Kind::Control(..) | Kind::Other => None,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn what(bytes: &[u8]) -> Option<What> {
        let registers = Registers { rax: 7, r9: 9, ..Registers::default() };
        decode(bytes, 0x1000)?.what(&registers)
    }

    #[test]
    fn instructions_of_the_procedure_are_known_with_their_values() {
        assert_eq!(what(&[0x0f, 0x09]), Some(What::Wbinvd));
        assert_eq!(what(&[0x0f, 0x22, 0xc0]), Some(What::Cr0(7)), "mov cr0, rax");
        assert_eq!(what(&[0x41, 0x0f, 0x22, 0xe1]), Some(What::Cr4(9)), "mov cr4, r9");
        assert_eq!(what(&[0x0f, 0x22, 0xd8]), Some(What::Cr3), "mov cr3, rax");
        assert_eq!(what(&[0x0f, 0x20, 0xc0]), None, "mov rax, cr0");
        assert_eq!(what(&[0xf3, 0x0f, 0x09]), None, "wbnoinvd invalidates nothing");
        assert_eq!(what(&[0x90]), None);
    }

    #[test]
    fn next_instruction_is_known_unless_it_jumps_or_repeats() {
        let next = |bytes: &[u8]| decode(bytes, 0x1000).and_then(|decoded| decoded.next);
        assert_eq!(next(&[0x90]), Some(0x1001));
        assert_eq!(next(&[0xeb, 0x10]), None, "jmp");
        assert_eq!(next(&[0xc3]), None, "ret");
        assert_eq!(next(&[0xf3, 0xaa]), None, "rep stosb");
        assert_eq!(decode(&[0xff, 0xff], 0), None);
    }
}
