//! Instructions that wait until others see all that their vCPU has stored.
//!
//! SDM 3A 11.10: the store buffer is drained by an exception or interrupt, a serialising instruction (SDM 3A 9.3), I/O, a locked
//! operation, SFENCE and MFENCE. SFENCE and LFENCE drain nothing here: by the same manual (9.2.2) a load may pass an SFENCE, so that the
//! store before it can still be on its way when the load is done, and stores keep their order without it; LFENCE waits for loads alone. So
//! has it herd's x86-TSO, for which both are nothing. What is allowed here is what a program may rely on, not what a processor does.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use stallbench_abi::layout::{ARENA, ARENA_SIZE};
use stallbench_state::machine::Registers;
use stallbench_state::memory::Memory;

use crate::code::{instruction, value};
use crate::devices::X2APIC;

/// How an instruction waits for what is stored before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drains {
    /// It does not.
    Nothing,
    /// Others see the stores before it.
    Stores,
    /// What comes behind it begins when all before it is done: not even an interrupt that is sent there can come sooner.
    All,
}

/// How an instruction drains that a vCPU with these registers is about to execute.
pub(crate) fn drains(memory: &dyn Memory, it: &Instruction, registers: &Registers) -> Drains {
    use Mnemonic::*;
    match it.mnemonic() {
        Cpuid | Iret | Iretd | Iretq | Rsm | Serialize | Invd | Invept | Invlpg | Invvpid | Lgdt | Lidt | Lldt
        | Ltr | Wbinvd => Drains::All,
        // Writing one of the local APIC's serialises nothing (SDM 3A 11.12.3). ECX has the number.
        Wrmsr if X2APIC.contains(&(registers.rcx as u32)) => Drains::Nothing,
        Wrmsr => Drains::All,
        Mov if is_control(it.op0_register()) => Drains::All,
        // An exception or interrupt of their own.
        Int | Int1 | Int3 | Into | Ud0 | Ud1 | Ud2 => Drains::All,
        // With LFENCE, nothing behind the two begins before the stores are seen (SDM 3A 11.12.3).
        Mfence if follows(memory, it, Lfence) => Drains::All,
        Mfence | In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd => Drains::Stores,
        _ if is_locked_elsewhere(it, registers) => Drains::Stores,
        _ => Drains::Nothing,
    }
}

/// CR0 to CR4 and the debug registers: writing CR8 serialises nothing.
fn is_control(register: Register) -> bool {
    register.is_cr() && register != Register::CR8 || register.is_dr()
}

fn follows(memory: &dyn Memory, it: &Instruction, next: Mnemonic) -> bool {
    instruction(memory, it.next_ip()).is_some_and(|behind| behind.mnemonic() == next)
}

/// A locked instruction, or an exchange, with memory that no other vCPU sees. At what is shared its vCPU stops anyway.
fn is_locked_elsewhere(it: &Instruction, registers: &Registers) -> bool {
    let operand = (0..it.op_count()).find(|operand| it.op_kind(*operand) == OpKind::Memory);
    let Some(operand) = operand.filter(|_| it.has_lock_prefix() || it.mnemonic() == Mnemonic::Xchg) else {
        return false;
    };
    let address = it.virtual_address(operand, 0, |register, _, _| value(registers, register));
    !address.is_some_and(|address| (ARENA..ARENA + ARENA_SIZE).contains(&address))
}

#[cfg(test)]
mod test {
    use iced_x86::{Decoder, DecoderOptions};
    use stallbench_abi::layout::IMAGE;

    use super::*;

    /// Code that lies at [`IMAGE`].
    #[derive(Debug)]
    struct Bytes<'a>(&'a [u8]);

    impl Memory for Bytes<'_> {
        fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
            let at = address.wrapping_sub(IMAGE) as usize;
            let bytes = at.checked_add(buffer.len()).and_then(|end| self.0.get(at..end));
            bytes.map(|bytes| buffer.copy_from_slice(bytes)).is_some()
        }
    }

    fn of(code: &[u8], registers: Registers) -> Drains {
        let it = Decoder::with_ip(64, code, IMAGE, DecoderOptions::NONE).decode();
        drains(&Bytes(code), &it, &registers)
    }

    #[test]
    fn fences_are_told_apart() {
        let (mfence, lfence, sfence) = ([0x0f, 0xae, 0xf0], [0x0f, 0xae, 0xe8], [0x0f, 0xae, 0xf8]);
        let none = Registers::default();
        assert_eq!(of(&mfence, none), Drains::Stores);
        assert_eq!(of(&[mfence, lfence].concat(), none), Drains::All);
        assert_eq!((of(&lfence, none), of(&sfence, none)), (Drains::Nothing, Drains::Nothing));
    }

    #[test]
    fn register_of_the_x2apic_is_written_without_waiting() {
        let wrmsr = |rcx| of(&[0x0f, 0x30], Registers { rcx, ..Registers::default() });
        assert_eq!((wrmsr(0x830), wrmsr(0x80b), wrmsr(0x200)), (Drains::Nothing, Drains::Nothing, Drains::All));
    }

    #[test]
    fn locked_instruction_drains_where_it_is_no_stop_of_its_own() {
        // lock inc dword [rsi]; xchg [rsi], eax; inc dword [rsi]
        let at = |code: &[u8], rsi| of(code, Registers { rsi, ..Registers::default() });
        for locked in [&[0xf0, 0xff, 0x06][..], &[0x87, 0x06]] {
            assert_eq!((at(locked, 0x1000), at(locked, ARENA)), (Drains::Stores, Drains::Nothing));
        }
        assert_eq!(at(&[0xff, 0x06], 0x1000), Drains::Nothing);
        // xchg ecx, eax
        assert_eq!(of(&[0x87, 0xc1], Registers::default()), Drains::Nothing);
    }

    #[test]
    fn serialising_instructions_and_i_o_drain() {
        // mov cr0, rax; mov rax, cr0; mov cr8, rax; iretq; cpuid; invlpg [rax]; wbinvd
        let none = Registers::default();
        assert_eq!((of(&[0x0f, 0x22, 0xc0], none), of(&[0x0f, 0x20, 0xc0], none)), (Drains::All, Drains::Nothing));
        assert_eq!(of(&[0x44, 0x0f, 0x22, 0xc0], none), Drains::Nothing);
        for code in [&[0x48, 0xcf][..], &[0x0f, 0xa2], &[0x0f, 0x01, 0x38], &[0x0f, 0x09]] {
            assert_eq!(of(code, none), Drains::All, "{code:x?}");
        }
        // out dx, eax; sti; hlt
        assert_eq!(of(&[0xef], none), Drains::Stores);
        assert_eq!((of(&[0xfb], none), of(&[0xf4], none)), (Drains::Nothing, Drains::Nothing));
    }
}
