//! Decoding and looking ahead, on code of a few instructions in a made-up memory, and what a proof makes of steps that no real machine
//! takes at the right moment. All else that is executed is tested on KVM: tests/truth.

use iced_x86::Mnemonic;
use stallbench_state::machine::{Deliverable, Registers, Segment, SystemRegisters};
use stallbench_state::memory::{Memory, Snippet};

use super::dead::Dead;
use super::effect::{Decode, Effect, Refusal};
use super::{Limits, Next, Prover, Question, Steps, Unproved};
use crate::test::world::World;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x1_2000;
/// Large page 0x40_0000 of linear memory lies here.
const ELSEWHERE: u64 = 0;
/// Present and writable, accessed and dirty; and a large page.
const ENTRY: u64 = 0x63;
const LARGE: u64 = 0xe3;

/// Memory with page tables: the first 2 MiB are where they are, and once more at 4 MiB.
fn memory(code: &[u8]) -> Snippet {
    let mut memory = Snippet { base: 0, bytes: vec![0; 0x2_0000] };
    let mut word = |at: usize, word: u64| memory.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    word(0x1000, 0x2000 | ENTRY);
    word(0x2000, 0x3000 | ENTRY);
    word(0x3000, LARGE);
    word(0x3010, ELSEWHERE | LARGE);
    // Beyond the memory that there is: a device.
    word(0x3018, 0xfee0_0000 | LARGE);
    memory.bytes[CODE as usize..CODE as usize + code.len()].copy_from_slice(code);
    memory
}

fn system() -> SystemRegisters {
    SystemRegisters {
        cr0: 1 << 31 | 1,
        cr3: 0x1000,
        efer: 1 << 10 | 1 << 8,
        cs: Segment { access: 0xa09b, ..Segment::default() },
        gs: Segment { base: DATA, ..Segment::default() },
        ..SystemRegisters::default()
    }
}

fn decoded(code: &[u8], registers: Registers) -> Result<Effect, Refusal> {
    let registers = Registers { rip: CODE, rsp: DATA + 0x100, ..registers };
    Decode::new().at(&registers, &system(), &memory(code))
}

/// Address, size, whether it is read, whether it is written.
fn touches(code: &[u8], registers: Registers) -> Vec<(u64, usize, bool, bool)> {
    let effect = decoded(code, registers).expect("a known instruction");
    effect.touches.iter().map(|touch| (touch.address, touch.before.len(), touch.reads, touch.writes)).collect()
}

#[test]
fn instruction_reads_and_writes_what_its_operands_say() {
    let at = |rbx| Registers { rbx, ..Registers::default() };
    // mov eax, [rbx]
    assert_eq!(touches(&[0x8b, 0x03], at(DATA)), [(DATA, 4, true, false)]);
    // mov [rbx], eax, by another linear address
    assert_eq!(touches(&[0x89, 0x03], at(0x40_0000 + DATA)), [(DATA, 4, false, true)]);
    // lock inc dword gs:[rbx]
    assert_eq!(touches(&[0x65, 0xf0, 0xff, 0x03], at(8)), [(DATA + 8, 4, true, true)]);
    // push rax; call rel32
    assert_eq!(touches(&[0x50], at(0)), [(DATA + 0xf8, 8, false, true)]);
    assert_eq!(touches(&[0xe8, 0, 0, 0, 0], at(0)), [(DATA + 0xf8, 8, false, true)]);
    // mov rax, [rbx], over the end of a page
    assert_eq!(touches(&[0x48, 0x8b, 0x03], at(DATA - 3)), [(DATA - 3, 3, true, false), (DATA, 5, true, false)]);
    // lea rax, [rbx]; pause
    assert_eq!(touches(&[0x48, 0x8d, 0x03], at(DATA)), []);
    assert_eq!(touches(&[0xf3, 0x90], at(DATA)), []);
}

#[test]
fn bit_in_memory_lies_as_far_from_the_operand_as_its_index_says() {
    // bts [rbx], ecx and bts [rbx], rcx
    let at = |rcx: i64| Registers { rbx: DATA, rcx: rcx.cast_unsigned(), ..Registers::default() };
    assert_eq!(touches(&[0x0f, 0xab, 0x0b], at(70)), [(DATA + 8, 4, true, true)]);
    assert_eq!(touches(&[0x0f, 0xab, 0x0b], at(-1)), [(DATA - 4, 4, true, true)]);
    assert_eq!(touches(&[0x48, 0x0f, 0xab, 0x0b], at(130)), [(DATA + 16, 8, true, true)]);
}

#[test]
fn what_is_no_function_of_the_state_is_refused_by_name() {
    let cases: [(&[u8], &str); 12] = [
        (&[0x0f, 0x31], "rdtsc"),
        (&[0x0f, 0xc7, 0xf0], "rdrand"),
        (&[0x0f, 0x33], "rdpmc"),
        (&[0xec], "in"),
        (&[0xee], "out"),
        (&[0x0f, 0x30], "wrmsr"),
        (&[0x0f, 0x32], "rdmsr"),
        (&[0x9c], "pushfq"),
        (&[0x48, 0xcf], "iretq"),
        (&[0x0f, 0x22, 0xd8], "mov"),
        (&[0x0f, 0x57, 0xc0], "xorps"),
        (&[0xf3, 0x6e], "outsb"),
    ];
    for (code, name) in cases {
        let refused = decoded(code, Registers { rcx: 1, ..Registers::default() }).map(|_| ());
        assert_eq!(refused, Err(Refusal::Instruction(name.to_owned())));
    }
}

#[test]
fn access_to_where_no_memory_is_reaches_a_device() {
    let at = |rbx| decoded(&[0x8b, 0x03], Registers { rbx, ..Registers::default() }).map(|_| ());
    assert_eq!(at(0x60_0300), Err(Refusal::Device(0xfee0_0300)));
    assert_eq!(at(0x20_0000), Err(Refusal::Unreadable), "not mapped");
    assert_eq!(decoded(&[0x06], Registers::default()).map(|_| ()), Err(Refusal::Unreadable), "no instruction");
}

#[test]
fn register_that_is_overwritten_before_it_is_looked_at_is_dead() {
    let dead = |code: &[u8]| Dead::at(&mut Decode::new(), CODE, &system(), &memory(code));
    let left = |code: &[u8]| {
        let all = Registers { rax: 1, rbx: 1, rcx: 1, rflags: 0x8d7, ..Registers::default() };
        let Registers { rax, rbx, rcx, rflags, .. } = dead(code).canonical(&all);
        (rax, rbx, rcx, rflags)
    };
    // mov eax, [rbx]; cmp eax, ecx; jne: EAX and the flags
    assert_eq!(left(&[0x8b, 0x03, 0x39, 0xc8, 0x75, 0xfa]), (0, 1, 1, 2));
    // cmp eax, ecx; jne
    assert_eq!(left(&[0x39, 0xc8, 0x75, 0xfc]), (1, 1, 1, 2));
    // jne, whose flags are looked at; what lies behind it is not
    assert_eq!(left(&[0x75, 0xfe, 0x31, 0xc0]), (1, 1, 1, 0x8d7));
    // mov al, 1: a part only; mov eax, eax: it is looked at
    assert_eq!(left(&[0xb0, 1, 0xeb, 0xfc]), (1, 1, 1, 0x8d7));
    assert_eq!(left(&[0x89, 0xc0, 0xeb, 0xfc]), (1, 1, 1, 0x8d7));
    // shl eax, cl; cmp eax, ecx: what shl leaves undefined (OF and AF) may be what it was
    assert_eq!(left(&[0xd3, 0xe0, 0x39, 0xc8, 0x75, 0xfa]), (1, 1, 1, 0x812));
}

#[test]
fn looking_ahead_is_no_fetch() {
    let mut decode = Decode::new();
    Dead::at(&mut decode, CODE, &system(), &memory(&[0x90, 0xeb, 0xfe]));
    assert_eq!((decode.fetched.len(), decode.tables.len()), (0, 0));
    let nop = decode.ahead(CODE, &system(), &memory(&[0x90])).expect("an instruction");
    assert_eq!(nop.mnemonic(), Mnemonic::Nop);
}

/// A vCPU that goes from one of these registers to the next, for ever.
struct Round {
    memory: Snippet,
    registers: Vec<Registers>,
    at: usize,
}

impl Steps for Round {
    fn vcpu(&self) -> usize {
        0
    }

    fn memory(&self) -> &dyn Memory {
        &self.memory
    }

    fn write(&mut self, _: u64, _: &[u8]) -> bool {
        false
    }

    fn has_breakpoints(&self) -> bool {
        false
    }

    fn registers(&mut self) -> Result<Registers, String> {
        Ok(self.registers[self.at % self.registers.len()])
    }

    fn place(&mut self, _: &Registers) -> Result<(), String> {
        Err("it goes its way".to_owned())
    }

    fn step(&mut self) -> Result<Registers, String> {
        self.at += 1;
        self.registers()
    }
}

/// What comes of a vCPU that executes `sti; nop; cli; jmp` for ever, looked at with IF=0 and with these vectors pending.
fn window(pending: &[u8]) -> Result<usize, Unproved> {
    const STI_NOP_CLI_JMP: &[u8] = &[0xfb, 0x90, 0xfa, 0xeb, 0xfb];
    let at = |rip, rflags| Registers { rip: CODE + rip, rflags, rsp: DATA, ..Registers::default() };
    let registers = vec![at(0, 2), at(1, 0x202), at(2, 0x202), at(3, 2)];
    let mut round = Round { memory: memory(STI_NOP_CLI_JMP), registers, at: 0 };
    let mut world = World::new(1);
    world.runs(0);
    pending.iter().for_each(|vector| world.pending(0, *vector));
    let state = world.state(0);
    (state.registers, state.system) = (Ok(round.registers[0]), Ok(system()));
    let limits = Limits { steps: 100, states: 100 };
    let (ghost, kept_out) = (Vec::new(), Vec::new());
    let mut prover = Prover::new(Question { machine: world.machine, ghost, host_action: None, kept_out, limits });
    loop {
        match prover.next(&round.memory) {
            Next::Visit => prover.visit(&mut round),
            Next::Done(result) => return result.map(|proof| proof.components[0].states.len()),
        }
    }
}

/// On a real machine the interrupt would have to arrive in the two instructions between `cli` and the next `sti`.
#[test]
fn interrupt_that_a_later_instruction_lets_in_stands_in_the_way() {
    assert_eq!(window(&[]), Ok(4));
    assert_eq!(window(&[0x41]), Err(Unproved::Deliverable { vcpu: 0, what: Deliverable::Vector(0x41) }));
}
