//! The code of a guest: an assembler with the phrases that many guests share, and the addresses that all of them use.

use std::ops::{Deref, DerefMut};

use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmRegister64, CodeAssembler, CodeLabel, ax, byte_ptr, cs, cx, dword_ptr, eax, ecx, edi, edx, esi, ptr, qword_ptr,
    r14, rax, word_ptr,
};

/// What assembling comes to.
pub(crate) type Built = Result<(), IcedError>;

/// Where the code of a guest lies, and where it is entered.
pub(crate) const CODE: u64 = 0x10_0000;
/// Where its data lies, zero at the start.
pub(crate) const DATA: u64 = 0x20_0000;
/// Bytes of data.
pub(crate) const DATA_SIZE: u64 = 0x8_0000;
/// Where a guest that starts its processors itself has the code at which they start, in real mode.
pub(crate) const TRAMPOLINE: u64 = 0x8000;
/// Where that code finds the address at which it goes on in long mode.
pub(crate) const STARTED_AT: u64 = TRAMPOLINE + 0xff8;

/// An interrupt table of 256 gates, made by the guest.
const IDT: u64 = DATA + 0x8000;
const IDT_POINTER: u64 = DATA + 0x9000;
/// A page for each vCPU that no other one touches.
const PRIVATE: u64 = DATA + 0x1_0000;
/// The port that ends a run.
const EXIT_PORT: u32 = 0xf4;
/// The local APIC, as it is after a reset.
pub(crate) const APIC: u64 = 0xfee0_0000;

/// The n-th word of shared memory, on a cache line of its own.
pub(crate) const fn word(n: u64) -> u64 {
    DATA + 0x40 * n
}

/// Shared memory of some size, beside the words.
pub(crate) const BUFFER: u64 = DATA + 0x4_0000;

/// Registers of the local APIC, by their offsets (SDM 3A table 12-1).
pub(crate) mod apic {
    pub(crate) const ID: u64 = 0x20;
    pub(crate) const TPR: u64 = 0x80;
    pub(crate) const EOI: u64 = 0xb0;
    pub(crate) const SVR: u64 = 0xf0;
    pub(crate) const ICR: u64 = 0x300;
    pub(crate) const ICR_HIGH: u64 = 0x310;
    pub(crate) const LVT_TIMER: u64 = 0x320;
    pub(crate) const TIMER_INITIAL: u64 = 0x380;
    pub(crate) const TIMER_COUNT: u64 = 0x390;
    pub(crate) const TIMER_DIVIDE: u64 = 0x3e0;
    /// LVT: interrupts of it are masked.
    pub(crate) const MASKED: u32 = 1 << 16;
    /// LVT of the timer: it starts anew whenever it has run down.
    pub(crate) const PERIODIC: u32 = 1 << 17;
    /// The bus clock that KVM's timer counts, divided by one: a count a nanosecond.
    pub(crate) const MILLISECOND: u32 = 1_000_000;
}

/// A vector of the guests' own, of priority class 4.
pub(crate) const VECTOR: u32 = 0x41;
/// The vector of an NMI.
pub(crate) const NMI: u32 = 2;

/// An assembler that knows the phrases of guests.
pub(crate) struct Code(CodeAssembler);

impl Deref for Code {
    type Target = CodeAssembler;

    fn deref(&self) -> &CodeAssembler {
        &self.0
    }
}

impl DerefMut for Code {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.0
    }
}

impl Code {
    /// The bytes of what `write` assembles, at `address`.
    pub(crate) fn assemble(
        bits: u32,
        address: u64,
        write: impl FnOnce(&mut Self) -> Built,
    ) -> Result<Vec<u8>, IcedError> {
        let mut code = Self(CodeAssembler::new(bits)?);
        write(&mut code)?;
        code.0.assemble(address)
    }

    /// A label of the next instruction.
    pub(crate) fn here(&mut self) -> Result<CodeLabel, IcedError> {
        let mut label = self.create_label();
        self.set_label(&mut label)?;
        Ok(label)
    }

    /// Where `label` is, whatever comes next: an instruction has one label at most.
    pub(crate) fn place(&mut self, label: &mut CodeLabel) -> Built {
        self.set_label(label)?;
        self.nop()
    }

    /// `body`, of this vCPU alone.
    pub(crate) fn on(&mut self, vcpu: u32, body: impl FnOnce(&mut Self) -> Built) -> Built {
        let mut others = self.create_label();
        self.cmp(edi, vcpu)?;
        self.jne(others)?;
        body(self)?;
        self.place(&mut others)
    }

    /// Ends the run: it passes.
    pub(crate) fn pass(&mut self) -> Built {
        self.xor(eax, eax)?;
        self.out(EXIT_PORT, eax)?;
        self.stay()
    }

    /// A jump to itself.
    pub(crate) fn stay(&mut self) -> Built {
        let here = self.here()?;
        self.jmp(here)
    }

    /// Interrupts off, and halted.
    pub(crate) fn die(&mut self) -> Built {
        let again = self.here()?;
        self.cli()?;
        self.hlt()?;
        self.jmp(again)
    }

    /// Interrupts on, and halted, as an idle loop does.
    pub(crate) fn idle(&mut self) -> Built {
        let again = self.here()?;
        self.sti()?;
        self.hlt()?;
        self.jmp(again)
    }

    /// Reads a word until it is not zero.
    pub(crate) fn wait_for(&mut self, word: u64) -> Built {
        let again = self.here()?;
        self.pause()?;
        self.cmp(dword_ptr(word), 0)?;
        self.je(again)
    }

    /// Reads a word until it holds `value`.
    pub(crate) fn wait_for_value(&mut self, word: u64, value: u32) -> Built {
        let again = self.here()?;
        self.pause()?;
        self.cmp(dword_ptr(word), value as i32)?;
        self.jne(again)
    }

    /// Waits for ever: nothing is ever stored at this word.
    pub(crate) fn wait_in_vain(&mut self) -> Built {
        self.wait_for(word(60))?;
        self.pass()
    }

    /// Takes the lock at a word, by `xchg`.
    pub(crate) fn lock_word(&mut self, word: u64) -> Built {
        let again = self.here()?;
        self.mov(eax, 1)?;
        self.xchg(dword_ptr(word), eax)?;
        self.test(eax, eax)?;
        self.jnz(again)
    }

    /// All vCPUs meet at a word that counts them.
    pub(crate) fn meet(&mut self, word: u64) -> Built {
        self.lock().inc(dword_ptr(word))?;
        let again = self.here()?;
        self.pause()?;
        self.cmp(dword_ptr(word), esi)?;
        self.jb(again)
    }

    /// Counts ECX down from `turns`: two instructions a turn.
    pub(crate) fn count_down(&mut self, turns: u32) -> Built {
        self.mov(ecx, turns)?;
        let again = self.here()?;
        self.dec(ecx)?;
        self.jnz(again)
    }

    /// Address of the vCPU's own page in `register`.
    pub(crate) fn private(&mut self, register: AsmRegister64) -> Built {
        self.mov(register, iced_x86::code_asm::rdi)?;
        self.shl(register, 12)?;
        self.add(register, PRIVATE as i32)
    }

    /// Enables the local APIC, whose address goes to R14.
    pub(crate) fn enable_apic(&mut self) -> Built {
        self.mov(r14, APIC)?;
        self.mov(dword_ptr(r14 + apic::SVR), 0x1ff)
    }

    /// Sends the guests' vector to this vCPU.
    pub(crate) fn send_to_self(&mut self) -> Built {
        self.mov(dword_ptr(r14 + apic::ICR), (0x4_4000 | VECTOR) as i32)
    }

    /// Sends what an interrupt command says to a vCPU.
    pub(crate) fn send(&mut self, vcpu: u32, command: u32) -> Built {
        self.mov(dword_ptr(r14 + apic::ICR_HIGH), (vcpu << 24) as i32)?;
        self.mov(dword_ptr(r14 + apic::ICR), command as i32)
    }

    /// Sends the guests' vector to a vCPU.
    pub(crate) fn send_vector(&mut self, vcpu: u32) -> Built {
        self.send(vcpu, 0x4000 | VECTOR)
    }

    /// Starts the timer with the guests' vector, which comes after some milliseconds.
    pub(crate) fn start_timer(&mut self, milliseconds: u32, mode: u32) -> Built {
        self.mov(dword_ptr(r14 + apic::LVT_TIMER), (VECTOR | mode) as i32)?;
        self.mov(dword_ptr(r14 + apic::TIMER_DIVIDE), 0xb)?;
        self.mov(dword_ptr(r14 + apic::TIMER_INITIAL), (milliseconds * apic::MILLISECOND) as i32)
    }

    /// Has `vector` enter at `handler`: a 64-bit interrupt gate (SDM 3A 7.14.1).
    pub(crate) fn gate(&mut self, vector: u32, handler: CodeLabel) -> Built {
        let gate = IDT + 16 * u64::from(vector);
        self.lea(rax, ptr(handler))?;
        self.mov(word_ptr(gate), ax)?;
        self.mov(ecx, cs)?;
        self.mov(word_ptr(gate + 2), cx)?;
        self.mov(word_ptr(gate + 4), 0x8e00)?;
        self.shr(eax, 16)?;
        self.mov(word_ptr(gate + 6), ax)?;
        self.mov(qword_ptr(gate + 8), 0)?;
        self.mov(word_ptr(IDT_POINTER), 0xfff)?;
        self.mov(dword_ptr(IDT_POINTER + 2), IDT as i32)?;
        self.mov(dword_ptr(IDT_POINTER + 6), 0)?;
        self.lidt(ptr(IDT_POINTER))
    }

    /// `end of interrupt`, and back.
    pub(crate) fn end_of_interrupt(&mut self) -> Built {
        self.mov(dword_ptr(r14 + apic::EOI), 0)?;
        self.iretq()
    }

    /// A handler of a vector that stores 1 at a word, and what comes before it: code that jumps over it.
    pub(crate) fn handler_that_stores(&mut self, vector: u32, word: u64) -> Built {
        self.handler(vector, |c| {
            c.mov(dword_ptr(word), 1)?;
            if vector == NMI { c.iretq() } else { c.end_of_interrupt() }
        })
    }

    /// Code that handles a vector.
    pub(crate) fn handler(&mut self, vector: u32, code: impl Fn(&mut Self) -> Built) -> Built {
        let (mut handler, mut over) = (self.create_label(), self.create_label());
        self.jmp(over)?;
        self.set_label(&mut handler)?;
        code(self)?;
        self.place(&mut over)?;
        self.gate(vector, handler)
    }

    /// Writes a byte to the serial port.
    pub(crate) fn print(&mut self, byte: u8) -> Built {
        self.mov(edx, 0x3f8)?;
        self.mov(eax, u32::from(byte))?;
        self.out(iced_x86::code_asm::dx, iced_x86::code_asm::al)
    }

    /// A byte of memory is one more.
    pub(crate) fn count_byte(&mut self, address: u64) -> Built {
        self.inc(byte_ptr(address))
    }
}
