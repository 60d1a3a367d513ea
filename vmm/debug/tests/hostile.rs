//! Machines that nobody would make, for every command: registers, memory and the guest's file of a real dump with whatever else in them.
//!
//! What is asked of commands is an answer or a line; a panic fails the test. The numbers come from a seed, so that a failure is found again:
//! `STALLBENCH_SEEDS=1000:2000 cargo test -p stallbench-debug --test hostile` takes those instead of a few.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use stallbench_debug::{Session, Target, printable};
use stallbench_state::dump::{About, Dump};
use stallbench_state::machine::{MachineState, VcpuState};
use stallbench_state::memory::Memory;

/// What is asked of each machine.
const LINES: &[&str] = &[
    "about",
    "vcpus",
    "waits",
    "waits --dot",
    "waits --svg",
    "verdict",
    "view",
    "bt",
    "events",
    "regs all",
    "control all",
    "sregs all",
    "lapic all",
    "mtrr all",
    "msr all",
    "print boot",
    "print knobs",
    "print ghost",
    "print pause",
    "print faults",
    "print page 1",
    "print contexts",
    "print contexts 1",
    "print epitaph",
    "print log",
    "print record::CallSingle $rsp",
    "print mark $rdi",
    "print frame $rsp",
    "mem $rsp",
    "mem $rbp q 64",
    "disas",
    "disas $rip+1 40",
    "paging $rip",
    "paging $rsp 1",
    "idt",
    "idt 1 3",
    "gdt",
    "gdt 1",
    "disas kmalloc.rs:122 2",
    "mem gate 4 d",
    "search $rip",
    "symbols interrupt",
];

/// Numbers out of a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Anything, with a liking for what lies at edges and where the guest has something.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.next(),
            1 => u64::MAX - self.below(64),
            2 => self.below(64),
            3 => 0x10_0000 + self.below(0x4_0000),
            4 => 0x200_0000 + self.below(0x8_0000),
            _ => 1 << self.below(64),
        }
    }
}

/// Memory of a dump with other bytes in places.
struct Memories {
    dumped: Dump,
    other: BTreeMap<u64, u8>,
}

impl Memory for Memories {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let there = self.dumped.memory.read(address, bytes);
        if there {
            let end = address.saturating_add(bytes.len() as u64);
            self.other.range(address..end).for_each(|(at, byte)| bytes[(at - address) as usize] = *byte);
        }
        there
    }
}

struct Hostile {
    memory: Memories,
    payload: Vec<u8>,
}

impl Target for Hostile {
    fn about(&self) -> &About {
        &self.memory.dumped.about
    }

    fn machine(&self) -> &MachineState {
        &self.memory.dumped.machine
    }

    fn memory(&self) -> &dyn Memory {
        &self.memory
    }

    fn filled(&self) -> Vec<Range<u64>> {
        self.memory.dumped.filled()
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn is_live(&self) -> bool {
        false
    }
}

fn dump(name: &str) -> Dump {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/dumps").join(name);
    Dump::read(&fs::read(&path).expect("the shelf is there")).expect("it is a dump")
}

fn spoil_registers(vcpu: &mut VcpuState, numbers: &mut Numbers) {
    if let Ok(registers) = &mut vcpu.registers {
        for register in
            [&mut registers.rip, &mut registers.rsp, &mut registers.rbp, &mut registers.rdi, &mut registers.rflags]
        {
            if numbers.below(2) == 0 {
                *register = numbers.value();
            }
        }
    }
    if let Ok(system) = &mut vcpu.system {
        for register in [
            &mut system.cr0,
            &mut system.cr3,
            &mut system.cr4,
            &mut system.efer,
            &mut system.idt.base,
            &mut system.gdt.base,
        ] {
            if numbers.below(8) == 0 {
                *register = numbers.value();
            }
        }
        system.gdt.limit = numbers.next() as u16;
    }
    if let Ok(apic) = &mut vcpu.apic {
        (apic.icr, apic.svr, apic.tpr) = (numbers.next(), numbers.next() as u32, numbers.next() as u32);
        apic.irr[numbers.below(8) as usize] = numbers.next() as u32;
    }
    if let Some(Ok(mtrr)) = &mut vcpu.mtrr {
        mtrr.ranges[numbers.below(8) as usize] = (numbers.next(), numbers.next());
        mtrr.default_type = numbers.next();
    }
}

/// Whole words where commands look: the pages of contract structures, stacks, tables.
fn spoil_memory(numbers: &mut Numbers) -> BTreeMap<u64, u8> {
    let mut other = BTreeMap::new();
    for _ in 0..numbers.below(2000) {
        let (base, size) = [
            (0x20_0000, 0x3000),
            (0x40_0000, 0x4000),
            (0xc0_0000, 0x8000),
            (0x200_0000, 0x1000),
            (0x200_9000, 0x1000),
            (0x201_3000, 0xd000),
            (0x202_0000, 0x2_0000),
        ][numbers.below(7) as usize];
        let at = base + numbers.below(size / 8) * 8;
        (at..).zip(numbers.value().to_le_bytes()).for_each(|(at, byte)| {
            other.insert(at, byte);
        });
    }
    other
}

fn ask_everything(seed: u64, hostile: Hostile) {
    let mut session = Session::new(Box::new(hostile));
    for line in LINES {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let said = session.run(&words).map_or_else(|error| printable(&error.to_string()), |answer| answer.text);
        // Colours are the only sequences, and they end with an m.
        let coloured = said
            .split('\u{1b}')
            .skip(1)
            .all(|part| part.starts_with('[') && part.find(|c: char| !"[0123456789;".contains(c)) == part.find('m'));
        assert!(
            coloured && !said.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\u{1b}')),
            "seed {seed}: {line}: {said:?}"
        );
    }
}

/// The seeds, of the environment or a few.
fn seeds() -> Range<u64> {
    let asked = std::env::var("STALLBENCH_SEEDS").ok();
    let parsed = asked.map(|asked| {
        let (from, to) = asked.split_once(':').expect("STALLBENCH_SEEDS=FROM:TO");
        from.parse().expect("a number")..to.parse().expect("a number")
    });
    parsed.unwrap_or(0..16)
}

#[test]
fn registers_and_memory_of_any_content_are_answered() {
    for seed in seeds() {
        let mut numbers = Numbers(seed);
        let mut dumped =
            dump(["deadlock.core", "lifetime.core", "livelock.core", "not-accepting.core"][seed as usize % 4]);
        dumped.machine.vcpus.iter_mut().for_each(|vcpu| spoil_registers(vcpu, &mut numbers));
        let payload = dumped.payload.clone();
        ask_everything(seed, Hostile { memory: Memories { dumped, other: spoil_memory(&mut numbers) }, payload });
    }
}

#[test]
fn guest_file_of_any_content_is_answered() {
    for seed in seeds() {
        let mut numbers = Numbers(seed);
        let dumped = dump("deadlock.core");
        let mut payload = dumped.payload.clone();
        if seed % 4 == 0 {
            payload.truncate(numbers.below(payload.len() as u64) as usize);
        }
        for _ in 0..1 + numbers.below(400) {
            let at = numbers.below(payload.len() as u64) as usize;
            if let Some(byte) = payload.get_mut(at) {
                *byte = numbers.next() as u8;
            }
        }
        ask_everything(seed, Hostile { memory: Memories { dumped, other: BTreeMap::new() }, payload });
    }
}
