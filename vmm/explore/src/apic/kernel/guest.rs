//! A guest that does as it is told: each vCPU waits at its mailbox for the address of a piece of code.

use stallbench_abi::layout::{ARENA, CODE_SELECTOR, DATA_SELECTOR, IDT, IMAGE, XAPIC, private, private_area, vector};
use stallbench_state::machine::Registers;

/// Of a mailbox: where the vCPU goes next, 0 where it has nothing to do.
pub(super) const COMMAND: u64 = 0;
/// What it read last.
pub(super) const READ: u64 = 8;
/// The vector that it took last.
pub(super) const TAKEN: u64 = 16;
/// NMIs that it took.
pub(super) const NMIS: u64 = 20;
/// Its stack.
const STACK: u64 = 24;

/// Where the x2APIC has its registers (SDM 3A 11.12.1.2).
const X2APIC: u32 = 0x800;
/// cpuid; mov eax, [rdi]; test eax, eax; jz to its begin; jmp rax. CPUID exits on each host, so that others get the CPU: interrupts are off, and
/// under Bochs nothing else ends a spin then, nor PAUSE soon (docs/hosts.md).
const WAIT: &[u8] = &[0x0f, 0xa2, 0x8b, 0x07, 0x85, 0xc0, 0x74, 0xf8, 0xff, 0xe0];
/// mov dword [rdi], 0; jmp to [`WAIT`]
const DONE: &[u8] = &[0xc7, 0x07, 0, 0, 0, 0, 0xeb, 0xee];
/// mov ecx, 3000; sti; pause; cmp dword [rdi + 16], 0; jne to the end; dec ecx; jnz to the pause; cli. Where ring 0 is emulated a
/// shorter time with interrupts on can pass unseen (docs/hosts.md).
const TAKE: &[u8] =
    &[0xb9, 0xb8, 0x0b, 0, 0, 0xfb, 0xf3, 0x90, 0x83, 0x7f, 0x10, 0, 0x75, 0x04, 0xff, 0xc9, 0x75, 0xf4, 0xfa];
/// and qword [rsp + 16], ~RFLAGS.IF; iretq: one interrupt, and no other behind it
const END: &[u8] = &[0x48, 0x81, 0x64, 0x24, 0x10, 0xff, 0xfd, 0xff, 0xff, 0x48, 0xcf];
/// inc dword [rdi + 20]; mov rsp, [rdi + 24]: no IRET, so that the next NMI is held back
const NMI: &[u8] = &[0xff, 0x47, 0x14, 0x48, 0x8b, 0x67, 0x18];

/// cpuid; jmp to it, in real mode: what a vCPU does that was started again.
pub(super) const STARTED: &[u8] = &[0x0f, 0xa2, 0xeb, 0xfc];

/// One operation of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Writes a register of its APIC, by its offset in xAPIC mode.
    Write(u32, u32),
    /// Writes the interrupt command register: the low half, the destination as its mode has it.
    Send(u32, u32),
    /// Reads a register of its APIC.
    Read(u32),
    /// Has interrupts on until it takes one, or for some time.
    Take,
    /// Ends its NMI by an IRET.
    EndNmi,
}

/// The memory of such a guest.
#[derive(Debug, Default)]
pub(super) struct Guest {
    x2apic: bool,
    code: Vec<u8>,
}

impl Guest {
    /// With code to wait, and handlers of these vectors; the interrupt table, too.
    pub(super) fn new(x2apic: bool, vectors: &[u8]) -> (Self, Vec<u8>) {
        let mut guest = Self { x2apic, code: [WAIT, DONE].concat() };
        let mut table = vec![0; 256 * 16];
        for &vector in vectors {
            let handler = match vector {
                vector::NMI => guest.add(NMI),
                // mov dword [rdi + 16], vector
                _ => guest.add(&[&[0xc7, 0x47, TAKEN as u8, vector, 0, 0, 0], END].concat()),
            };
            table[usize::from(vector) * 16..][..16].copy_from_slice(&gate(handler));
        }
        (guest, table)
    }

    /// Adds what a vCPU does for an operation: where it is.
    pub(super) fn operation(&mut self, operation: Operation) -> u64 {
        let mut code = Vec::new();
        match operation {
            Operation::Write(register, value) => code.extend(self.write(register, value, 0)),
            Operation::Send(low, destination) if self.x2apic => code.extend(self.write(0x300, low, destination)),
            Operation::Send(low, destination) => {
                code.extend(self.write(0x310, destination, 0));
                code.extend(self.write(0x300, low, 0));
            }
            // rdmsr; or mov eax, [rsi + register]
            Operation::Read(register) if self.x2apic => code.extend([&select(register)[..], &[0x0f, 0x32]].concat()),
            Operation::Read(register) => code.extend([&[0x8b, 0x86][..], &register.to_le_bytes()].concat()),
            Operation::Take => code.extend(TAKE),
            // A frame of IRET (SDM 3A 7.14.2): SS, RSP, RFLAGS, CS, RIP.
            Operation::EndNmi => code.extend(frame()),
        }
        if matches!(operation, Operation::Read(_)) {
            // mov [rdi + 8], eax
            code.extend([0x89, 0x47, READ as u8]);
        }
        self.add(&code)
    }

    /// mov dword [rsi + register], value; or mov ecx; mov eax; mov edx; wrmsr
    fn write(&self, register: u32, value: u32, high: u32) -> Vec<u8> {
        let [value, high] = [value, high].map(u32::to_le_bytes);
        if self.x2apic {
            return [&select(register)[..], &[0xb8], &value, &[0xba], &high, &[0x0f, 0x30]].concat();
        }
        [&[0xc7, 0x86][..], &register.to_le_bytes(), &value].concat()
    }

    fn add(&mut self, code: &[u8]) -> u64 {
        let begin = self.code.len();
        self.code.extend(code);
        // jmp to DONE
        let back = WAIT.len() as i32 - (self.code.len() as i32 + 5);
        self.code.push(0xe9);
        self.code.extend(back.to_le_bytes());
        IMAGE + begin as u64
    }

    /// What lies at the begin of the image.
    pub(super) fn code(&self) -> &[u8] {
        &self.code
    }
}

/// mov ecx, the register's MSR
fn select(register: u32) -> [u8; 5] {
    let [a, b, c, d] = (X2APIC + (register >> 4)).to_le_bytes();
    [0xb9, a, b, c, d]
}

/// push SS; push [rdi + 24]; push RFLAGS; push CS; push RIP; iretq
fn frame() -> Vec<u8> {
    let done = (IMAGE as u32 + WAIT.len() as u32).to_le_bytes();
    let stack = [0x6a, DATA_SELECTOR as u8, 0xff, 0x77, STACK as u8, 0x6a, 2, 0x6a, CODE_SELECTOR as u8, 0x68];
    [&stack[..], &done, &[0x48, 0xcf]].concat()
}

/// A 64-bit interrupt gate (SDM 3A 7.14.1), on the stack that is in use.
fn gate(handler: u64) -> [u8; 16] {
    let mut gate = [0; 16];
    gate[..2].copy_from_slice(&handler.to_le_bytes()[..2]);
    gate[2..4].copy_from_slice(&CODE_SELECTOR.to_le_bytes());
    gate[5] = 0x8e;
    gate[6..12].copy_from_slice(&handler.to_le_bytes()[2..]);
    gate
}

/// The mailbox of a vCPU.
pub(super) fn mailbox(vcpu: usize) -> u64 {
    ARENA + 64 * vcpu as u64
}

/// The mailbox of a vCPU that has nothing to do.
pub(super) fn empty_mailbox(vcpu: usize) -> [u8; 32] {
    let mut mailbox = [0; 32];
    mailbox[STACK as usize..].copy_from_slice(&stack(vcpu).to_le_bytes());
    mailbox
}

/// The registers of a vCPU that waits.
pub(super) fn registers(vcpu: usize) -> Registers {
    Registers { rip: IMAGE, rflags: 2, rsp: stack(vcpu), rdi: mailbox(vcpu), rsi: XAPIC, ..Registers::default() }
}

fn stack(vcpu: usize) -> u64 {
    private(vcpu) + private_area::TASK_STACK_TOP - 64
}

/// Where the interrupt table lies.
pub(super) const TABLE: u64 = IDT;
