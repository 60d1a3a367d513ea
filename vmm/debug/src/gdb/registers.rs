//! The registers that gdb sees: their order, their sizes, where their values come from, and how gdb is told of them.

use std::fmt::Write;
use std::num::NonZeroUsize;

use gdbstub::arch::{Arch, RegId};
use stallbench_state::machine::{Registers, SystemRegisters, VcpuState};

use crate::bits::{self, Bit};

/// x86-64 with control registers, and without x87 and SSE, which no capture has.
#[derive(Debug)]
pub(super) enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Values;
    type BreakpointKind = usize;
    type RegId = Number;
}

/// A register.
pub(super) struct Register {
    name: &'static str,
    /// Bits that gdb takes it to have.
    bits: usize,
    /// How gdb shows it.
    shown: &'static str,
    pub(super) source: Source,
}

/// Where the value of a register comes from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    General(fn(&mut Registers) -> &mut u64),
    System(fn(&SystemRegisters) -> u64),
    /// Not captured: gdb shows it as unavailable.
    Unknown,
}

const fn general(name: &'static str, of: fn(&mut Registers) -> &mut u64) -> Register {
    Register { name, bits: 64, shown: "int64", source: Source::General(of) }
}

const fn system(name: &'static str, shown: &'static str, of: fn(&SystemRegisters) -> u64) -> Register {
    Register { name, bits: 64, shown, source: Source::System(of) }
}

const fn selector(name: &'static str, of: fn(&SystemRegisters) -> u64) -> Register {
    Register { name, bits: 32, shown: "int32", source: Source::System(of) }
}

const fn stack(name: &'static str) -> Register {
    Register { name, bits: 80, shown: "i387_ext", source: Source::Unknown }
}

const fn x87(name: &'static str) -> Register {
    Register { name, bits: 32, shown: "int", source: Source::Unknown }
}

/// The number of RIP.
const RIP: usize = 16;

/// What gdb has to be told of an x86-64 (gdb manual, G.5.24 i386 features): x87 too, though nobody knows its values.
const CORE: [Register; 40] = [
    general("rax", |r| &mut r.rax),
    general("rbx", |r| &mut r.rbx),
    general("rcx", |r| &mut r.rcx),
    general("rdx", |r| &mut r.rdx),
    general("rsi", |r| &mut r.rsi),
    general("rdi", |r| &mut r.rdi),
    Register { shown: "data_ptr", ..general("rbp", |r| &mut r.rbp) },
    Register { shown: "data_ptr", ..general("rsp", |r| &mut r.rsp) },
    general("r8", |r| &mut r.r8),
    general("r9", |r| &mut r.r9),
    general("r10", |r| &mut r.r10),
    general("r11", |r| &mut r.r11),
    general("r12", |r| &mut r.r12),
    general("r13", |r| &mut r.r13),
    general("r14", |r| &mut r.r14),
    general("r15", |r| &mut r.r15),
    Register { shown: "code_ptr", ..general("rip", |r| &mut r.rip) },
    Register { bits: 32, shown: "rflags", ..general("eflags", |r| &mut r.rflags) },
    selector("cs", |s| s.cs.selector.into()),
    selector("ss", |s| s.ss.selector.into()),
    selector("ds", |s| s.ds.selector.into()),
    selector("es", |s| s.es.selector.into()),
    selector("fs", |s| s.fs.selector.into()),
    selector("gs", |s| s.gs.selector.into()),
    stack("st0"),
    stack("st1"),
    stack("st2"),
    stack("st3"),
    stack("st4"),
    stack("st5"),
    stack("st6"),
    stack("st7"),
    x87("fctrl"),
    x87("fstat"),
    x87("ftag"),
    x87("fiseg"),
    x87("fioff"),
    x87("foseg"),
    x87("fooff"),
    x87("fop"),
];

const SEGMENTS: [Register; 2] = [system("fs_base", "int", |s| s.fs.base), system("gs_base", "int", |s| s.gs.base)];

const CONTROL: [Register; 6] = [
    system("cr0", "cr0", |s| s.cr0),
    system("cr2", "data_ptr", |s| s.cr2),
    system("cr3", "int64", |s| s.cr3),
    system("cr4", "cr4", |s| s.cr4),
    system("cr8", "int64", |s| s.cr8),
    system("efer", "efer", |s| s.efer),
];

/// The registers by what gdb calls their feature, in the order of their numbers.
const FEATURES: [(&str, &[Register], &str); 3] = [
    ("org.gnu.gdb.i386.core", &CORE, ""),
    ("org.gnu.gdb.i386.segments", &SEGMENTS, ""),
    ("org.stallbench.control", &CONTROL, " group=\"system\""),
];

/// Registers whose bits gdb shows by name: size in bytes, and the bits.
const FLAGS: [(&str, usize, &[Bit]); 4] =
    [("rflags", 4, bits::RFLAGS), ("cr0", 8, bits::CR0), ("cr4", 8, bits::CR4), ("efer", 8, bits::EFER)];

/// All registers, by number.
pub(super) fn all() -> impl Iterator<Item = &'static Register> {
    FEATURES.iter().flat_map(|(_, registers, _)| *registers)
}

impl Register {
    /// Bytes.
    pub(super) fn size(&self) -> usize {
        self.bits / 8
    }

    /// The value that a vCPU has in it, where it is known.
    pub(super) fn value(&self, vcpu: &VcpuState) -> Option<u64> {
        match self.source {
            Source::General(of) => vcpu.registers.as_ref().ok().map(|registers| *of(&mut registers.clone())),
            Source::System(of) => vcpu.system.as_ref().ok().map(of),
            Source::Unknown => None,
        }
    }
}

/// The number of a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number(pub(super) usize);

impl RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let register = all().nth(id)?;
        Some((Self(id), NonZeroUsize::new(register.size())))
    }
}

/// The values of all registers, by number; `None` where one is not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Values(pub(super) Vec<Option<u64>>);

impl gdbstub::arch::Registers for Values {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.0.get(RIP).copied().flatten().unwrap_or(0)
    }

    fn gdb_serialize(&self, mut write: impl FnMut(Option<u8>)) {
        for (register, value) in all().zip(&self.0) {
            let bytes = value.map(u64::to_le_bytes);
            (0..register.size()).for_each(|at| write(bytes.and_then(|bytes| bytes.get(at).copied())));
        }
    }

    fn gdb_deserialize(&mut self, mut bytes: &[u8]) -> Result<(), ()> {
        self.0.clear();
        for register in all() {
            let (value, rest) = bytes.split_at_checked(register.size()).ok_or(())?;
            self.0.push(number(value));
            bytes = rest;
        }
        Ok(())
    }
}

/// The number that bytes hold; of more than eight, none.
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    let mut word = [0; 8];
    word.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(word))
}

/// The target description (gdb manual, appendix G).
pub(super) fn description() -> String {
    let mut xml = "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n".to_owned();
    xml.push_str("<target><architecture>i386:x86-64</architecture>\n");
    for (feature, registers, group) in FEATURES {
        let _ = writeln!(xml, "<feature name=\"{feature}\">");
        for (name, size, bits) in FLAGS.iter().filter(|(name, ..)| registers.iter().any(|r| r.shown == *name)) {
            let _ = writeln!(xml, "<flags id=\"{name}\" size=\"{size}\">");
            for (bit, name, _) in *bits {
                let _ = writeln!(xml, "<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>");
            }
            xml.push_str("</flags>\n");
        }
        for Register { name, bits, shown, .. } in registers {
            let _ = writeln!(xml, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{shown}\"{group}/>");
        }
        xml.push_str("</feature>\n");
    }
    xml + "</target>\n"
}

#[cfg(test)]
mod test {
    use gdbstub::arch::Registers as _;

    use super::*;

    #[test]
    fn registers_are_as_long_as_gdb_is_told() {
        let values = Values(all().map(|_| Some(0x1122_3344_5566_7788)).collect());
        let mut bytes = Vec::new();
        values.gdb_serialize(|byte| bytes.push(byte));
        assert_eq!(bytes.len(), all().map(Register::size).sum::<usize>());
        assert_eq!(bytes[17 * 8..17 * 8 + 4], [Some(0x88), Some(0x77), Some(0x66), Some(0x55)]);
        assert_eq!(values.pc(), 0x1122_3344_5566_7788);
        assert_eq!(all().nth(RIP).map(|register| register.name), Some("rip"));
        assert!(Number::from_raw_id(all().count()).is_none());
        assert!(Values::default().gdb_deserialize(&[0; 100]).is_err());
    }

    #[test]
    fn description_names_every_register_and_its_bits() {
        let xml = description();
        assert!(all().all(|register| xml.contains(&format!("<reg name=\"{}\" ", register.name))), "{xml}");
        assert!(xml.contains("<field name=\"CD\" start=\"30\" end=\"30\"/>"), "{xml}");
    }
}
