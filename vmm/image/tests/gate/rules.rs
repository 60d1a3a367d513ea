//! Which instructions an image may hold.

use iced_x86::CpuidFeature::{self, *};
use iced_x86::{Instruction, Mnemonic};

/// The processor's features whose instructions may be used: integer arithmetic, control flow, and what a kernel needs. Not
/// TSC, RDRAND: what a guest does must follow from its knobs and its seed.
const FEATURES: &[CpuidFeature] =
    &[INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, X64, CMOV, CPUID, CX8, MSR, PAUSE, MULTIBYTENOP];

/// Single instructions of other features. TZCNT is how compilers write BSF where the operand is not zero: without BMI1 the
/// prefix does nothing. The fences are what x2APIC needs before an ICR write (SDM 3A 12.12.3).
const ALSO: &[Mnemonic] = &[Mnemonic::Mfence, Mnemonic::Lfence, Mnemonic::Tzcnt];

/// Instructions of those features that KVM's emulator lacks (arch/x86/kvm/emulate.c: opcode tables, emulate_int()). INT3 stays
/// out: it pads code. UD2 too: it marks what is never reached.
const NOT_EMULATED: &[Mnemonic] = &[
    Mnemonic::Int,
    Mnemonic::Int1,
    Mnemonic::Into,
    Mnemonic::Swapgs,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Wait,
    Mnemonic::Ud0,
    Mnemonic::Ud1,
];

/// Why an instruction may not be in an image.
pub(crate) fn objection(instruction: &Instruction) -> Option<String> {
    let mnemonic = instruction.mnemonic();
    if instruction.is_invalid() {
        return Some("no instruction".into());
    }
    if NOT_EMULATED.contains(&mnemonic) {
        return Some("KVM's emulator lacks it".into());
    }
    if ALSO.contains(&mnemonic) {
        return None;
    }
    let other = instruction.cpuid_features().iter().find(|feature| !FEATURES.contains(feature))?;
    Some(format!("{other:?} is no plain integer x86-64"))
}
