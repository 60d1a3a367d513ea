//! A small machine for tests: page tables that map the first 2 MiB one to one, a page of code, two of data.

use stallbench_state::certificate::{
    Aside, Bytes, Certificate, Component, Does, Edge, Memory, Processor, RFLAGS, RIP, Run, SegmentRegister, Span,
    State, VERSION, VcpuState, Word,
};

/// Where the code lies.
pub(crate) const CODE: u64 = 0x8000;
/// Where data lie.
pub(crate) const DATA: u64 = 0x1_0000;
/// Places of registers.
pub(crate) const RAX: usize = 0;
pub(crate) const RBX: usize = 1;
pub(crate) const RCX: usize = 2;
pub(crate) const RDI: usize = 5;
pub(crate) const RSP: usize = 6;

/// Of page tables: present, writable, accessed, dirty; and the last for a large page.
const ENTRY: u64 = 0x63;
const LARGE: u64 = 0xe3;

/// A processor in 64-bit mode whose local APIC is on and quiet.
pub(crate) fn processor() -> Processor {
    let segment = |selector, access| SegmentRegister(selector, Word(0), Word(0xffff_ffff), Word(access));
    let mut segments = [segment(0x10, 0xc093); 8];
    segments[0] = segment(8, 0xa09b);
    segments[6] = SegmentRegister(0x18, Word(0), Word(0x67), Word(0x8b));
    segments[7] = SegmentRegister(0, Word(0), Word(0), Word(0x1_0000));
    Processor {
        cr0: Word(0x8000_0011),
        cr3: Word(0x1000),
        cr4: Word(0x20),
        efer: Word(0x500),
        apic_base: Word(0xfee0_0900),
        segments,
        svr: Word(0x1ff),
        lvt_timer: Word(0x1_0000),
        ..Processor::default()
    }
}

/// Bytes at an address.
pub(crate) fn run(address: u64, bytes: &[u8]) -> Run {
    Run { address: Word(address), bytes: Bytes(bytes.to_vec()) }
}

/// Bytes by their address and number.
pub(crate) fn span(address: u64, size: u64) -> Span {
    Span { address: Word(address), size }
}

/// A register that is set aside.
pub(crate) fn aside(register: usize, least: u64, most: u64) -> Aside {
    Aside { register, least: Word(least), most: Word(most) }
}

/// A vCPU that runs, with registers by their places.
pub(crate) fn vcpu(rip: u64, rflags: u64, registers: &[(usize, u64)]) -> VcpuState {
    let mut vcpu = VcpuState { does: Does::Runs, ..VcpuState::default() };
    for &(place, value) in [(RIP, rip), (RFLAGS, rflags)].iter().chain(registers) {
        vcpu.registers[place] = Word(value);
    }
    vcpu
}

/// A component of one vCPU whose states follow each other and lead back to the first.
pub(crate) fn cycle(number: usize, states: Vec<VcpuState>) -> Component {
    let count = states.len();
    Component {
        vcpus: vec![number],
        states: states.into_iter().map(|vcpu| State { vcpus: vec![vcpu], cells: Vec::new() }).collect(),
        edges: (0..count).map(|from| Edge { from, vcpu: number, to: (from + 1) % count }).collect(),
        ..Component::default()
    }
}

/// A machine of these components with this code and these data.
pub(crate) fn certificate(code: &[u8], data: Vec<Run>, components: Vec<Component>) -> Certificate {
    let word = |address, word: u64| run(address, &word.to_le_bytes());
    let tables = [word(0x1000, 0x2000 | ENTRY), word(0x2000, 0x3000 | ENTRY), word(0x3000, LARGE)];
    let mut runs = tables.to_vec();
    runs.push(run(CODE, code));
    runs.extend(data);
    let vcpus = components.iter().map(|component| component.vcpus.len()).sum();
    Certificate {
        aside: Vec::new(),
        stallbench_certificate: VERSION,
        payload: String::new(),
        run: "a test".into(),
        vcpus: vec![processor(); vcpus],
        components,
        memory: Memory { pages: [0x1000, 0x2000, 0x3000, CODE, DATA, DATA + 0x1000].map(Word).to_vec(), runs },
    }
}

/// A spin on a word that is 0: mov eax, [rbx]; test eax, eax; je.
pub(crate) const SPIN: &[u8] = &[0x8b, 0x03, 0x85, 0xc0, 0x74, 0xfa];

/// The states of a vCPU in that spin, on the word at this address.
pub(crate) fn spinning(number: usize, word: u64) -> Component {
    let at = |offset| vcpu(CODE + offset, 0x46, &[(RBX, word)]);
    cycle(number, vec![at(0), at(2), at(4)])
}
