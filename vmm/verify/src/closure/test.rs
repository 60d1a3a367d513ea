//! Certificates of a small machine, made by hand, checked on the real device.

use stallbench_core::HostKvm;
use stallbench_state::certificate::{Bytes, Certificate, Component, Edge, RFLAGS, RIP, State, VcpuState, Word};

use super::*;
use crate::processor::Bus;
use crate::sample::{
    CODE, DATA, RAX, RBX, RCX, RDI, RSP, SPIN, aside, certificate, cycle, processor, run, span, spinning, vcpu,
};
use crate::{shape, verify};

fn host() -> HostKvm {
    HostKvm::open().expect("/dev/kvm")
}

#[track_caller]
fn holds(certificate: &Certificate) -> Holds {
    verify(&host(), certificate).expect("it holds")
}

/// In what it is false.
#[track_caller]
fn wrong(certificate: &Certificate) -> Wrong {
    match verify(&host(), certificate) {
        Err(VerifyError::False(falsehood)) => falsehood.wrong,
        other => panic!("{other:?}"),
    }
}

/// What is said of it.
#[track_caller]
fn said(certificate: &Certificate) -> String {
    match verify(&host(), certificate) {
        Err(VerifyError::False(falsehood)) => falsehood.to_string(),
        other => panic!("{other:?}"),
    }
}

/// One vCPU in states that follow each other, with code and no data.
fn alone(code: &[u8], states: Vec<VcpuState>) -> Certificate {
    certificate(code, vec![], vec![cycle(0, states)])
}

fn two_spins() -> Certificate {
    certificate(SPIN, vec![], vec![spinning(0, DATA), spinning(1, DATA + 0x40)])
}

#[test]
fn spins_on_words_that_do_not_change_hold() {
    let expected = Holds { states: 9, vcpus: 2, transitions: 6, executed: 12 };
    assert_eq!(holds(&two_spins()), expected);
}

#[test]
fn no_state_can_be_left_out() {
    for state in 0..3 {
        let mut without = two_spins();
        without.components[1].states.remove(state);
        let wrong = wrong(&without);
        assert!(matches!(wrong, Wrong::EdgeFromNowhere { .. } | Wrong::NotAnEdge { .. }), "{wrong:?}");
        // The same with edges that know of it.
        let edges = &mut without.components[1].edges;
        edges.retain(|edge| edge.from != state && edge.to != state);
        let behind = |index: usize| index - usize::from(index > state);
        edges.iter_mut().for_each(|edge| (edge.from, edge.to) = (behind(edge.from), behind(edge.to)));
        let said = said(&without);
        assert!(said.contains("which is no state of the set: "), "{said}");
    }
    let mut none = two_spins();
    none.components[0].states.clear();
    none.components[0].edges.clear();
    assert_eq!(said(&none), "vcpu0: there is no state that it could be in");
}

#[test]
fn no_edge_can_be_left_out_moved_or_added() {
    for index in 0..3 {
        let mut without = two_spins();
        without.components[1].edges.remove(index);
        let to = (index + 1) % 3;
        assert_eq!(
            said(&without),
            format!("state {index} of vcpu1: no edge says that executing one instruction leads to state {to}")
        );
        let mut moved = two_spins();
        moved.components[1].edges[index].to = index;
        assert_eq!(
            said(&moved),
            format!(
                "state {index} of vcpu1: the edge to state {index} does not exist: executing one instruction leads to state {to}"
            )
        );
        let mut more = two_spins();
        more.components[1].edges.push(Edge { from: index, vcpu: 1, to: index });
        assert_eq!(wrong(&more), Wrong::NotAnEdge { to: index, because: NotAnEdge::Second });
    }
}

#[test]
fn no_register_of_a_state_can_be_another() {
    for register in 0..18 {
        for state in 0..3 {
            let mut changed = two_spins();
            let value = &mut changed.components[0].states[state].vcpus[0].registers[register];
            *value = Word(value.0 ^ 1 << 2);
            let result = verify(&host(), &changed);
            assert!(matches!(result, Err(VerifyError::False(_))), "state {state}, register {register}: {result:?}");
        }
    }
}

#[test]
fn word_that_ends_a_wait_leads_out_of_the_set() {
    let mut ended = two_spins();
    ended.memory.runs.push(run(DATA + 0x40, &[1]));
    assert_eq!(
        said(&ended),
        "state 0 of vcpu1: executing one instruction leads to rip 0x8002, which is no state of the set: rax is 0x1, not 0x0 as in state 1"
    );
}

#[test]
fn code_that_is_another_leads_out_of_the_set() {
    let mut other = two_spins();
    other.memory.runs.push(run(CODE + 4, &[0x75]));
    assert!(matches!(wrong(&other), Wrong::NotClosed { rip, .. } if rip == CODE + 6));
}

#[test]
fn interrupts_nmis_and_timers_that_reach_a_vcpu_are_named() {
    let mut waiting = two_spins();
    waiting.components[1].states.iter_mut().for_each(|state| state.vcpus[0].registers[RFLAGS] = Word(0x246));
    holds(&waiting);
    waiting.vcpus[1].irr[7] = Word(1 << 28);
    assert_eq!(said(&waiting), "state 0 of vcpu1: vector 0xfc is deliverable");
    waiting.vcpus[1].tpr = Word(0xff);
    holds(&waiting);
    let mut masked = two_spins();
    masked.vcpus[1].irr[7] = Word(1 << 28);
    holds(&masked);
    masked.vcpus[0].nmi_pending = 1;
    assert_eq!(said(&masked), "state 0 of vcpu0: an NMI is deliverable");
    let mut armed = two_spins();
    armed.vcpus[1].lvt_timer = Word(0xec);
    assert_eq!(said(&armed), "state 0 of vcpu1: the timer of its local APIC is not masked (LVT timer 0xec)");
}

/// A vCPU that toggles a word: xor dword [rbx], 1; jmp.
fn toggling(number: usize, word: u64) -> Component {
    let at = |offset, flags| vcpu(CODE + offset, flags, &[(RBX, word)]);
    let mut component = cycle(number, vec![at(0x20, 0x46), at(0x23, 0x2), at(0x20, 0x2), at(0x23, 0x46)]);
    component.cells = vec![span(word, 4)];
    for (state, cell) in component.states.iter_mut().zip([0, 1, 1, 0]) {
        state.cells = vec![Bytes(vec![cell, 0, 0, 0])];
    }
    component
}

fn code_of_both() -> Vec<u8> {
    let mut code = SPIN.to_vec();
    code.resize(0x20, 0x90);
    code.extend([0x83, 0x33, 1, 0xeb, 0xfb]);
    code
}

#[test]
fn memory_that_changes_holds_as_cells_only() {
    let good = certificate(&code_of_both(), vec![], vec![spinning(0, DATA), toggling(1, DATA + 0x40)]);
    assert_eq!(holds(&good).states, 12);
    let mut without = good.clone();
    without.components[1].cells.clear();
    without.components[1].states.iter_mut().for_each(|state| state.cells.clear());
    assert_eq!(wrong(&without), Wrong::Changes { address: DATA + 0x40, was: 0, is: 1 });
    let mut other = good;
    other.components[1].states[1].cells = vec![Bytes(vec![1, 1, 0, 0])];
    assert!(said(&other).contains("byte 1 of cell 0 is 0x0, not 0x1 as in state 1"));
}

#[test]
fn what_one_changes_and_another_reads_is_named() {
    let overlapping = certificate(&code_of_both(), vec![], vec![spinning(0, DATA), toggling(1, DATA)]);
    assert_eq!(said(&overlapping), "state 0 of vcpu0: vcpu1 changes 0x10000, which vcpu0 reads");
    let halfway = certificate(&code_of_both(), vec![], vec![spinning(0, DATA + 1), toggling(1, DATA)]);
    assert_eq!(said(&halfway), "state 0 of vcpu0: vcpu1 changes 0x10001, which vcpu0 reads");
}

#[test]
fn store_to_what_is_anothers_is_named_though_it_changes_nothing() {
    // mov [rbx], eax; jmp
    let mut code = code_of_both();
    code.resize(0x30, 0x90);
    code.extend([0x89, 0x03, 0xeb, 0xfc]);
    let storing = |word| {
        let at = |offset| vcpu(CODE + offset, 2, &[(RBX, word)]);
        certificate(&code, vec![], vec![cycle(0, vec![at(0x30), at(0x32)]), toggling(1, DATA)])
    };
    holds(&storing(DATA + 0x80));
    assert_eq!(said(&storing(DATA)), "state 0 of vcpu0: it writes 0x10000, of which vcpu1 has states");
}

#[test]
fn memory_that_changes_where_reads_are_not_seen_is_refused() {
    let two = certificate(&code_of_both(), vec![], vec![spinning(0, DATA), toggling(1, CODE + 0x800)]);
    assert_eq!(said(&two), "vcpu1: 0x8800 changes, in a page of code: whoever reads it cannot be seen");
    let mut one = toggling(1, CODE + 0x800);
    one.vcpus = vec![0];
    one.edges.iter_mut().for_each(|edge| edge.vcpu = 0);
    holds(&certificate(&code_of_both(), vec![], vec![one]));
    let on_tables = Certificate { aside: vec![span(0x3800, 8)], ..two_spins() };
    assert_eq!(
        said(&on_tables),
        "vcpu0 and vcpu1: 0x3800 changes, in a page of page tables: whoever reads it cannot be seen"
    );
}

#[test]
fn what_is_set_aside_beside_code_decides_nothing_if_nobody_is_led_by_it() {
    let aside = vec![span(CODE + 0x800, 8)];
    holds(&Certificate { aside: aside.clone(), ..two_spins() });
    let reading = certificate(SPIN, vec![], vec![spinning(0, DATA), spinning(1, CODE + 0x800)]);
    assert!(matches!(wrong(&Certificate { aside, ..reading }), Wrong::NotClosed { .. }));
    let executed = Certificate { aside: vec![span(CODE + 4, 1)], ..two_spins() };
    assert!(matches!(verify(&host(), &executed), Err(VerifyError::False(_) | VerifyError::Host(_))));
}

/// inc rcx, and this jump back, with RCX and what it leaves in the flags set aside.
fn counting(jump: u8, least: u64, most: u64, flags: u64) -> Certificate {
    let at = |offset| VcpuState {
        aside: vec![aside(RCX, least, most), aside(RFLAGS, 0, flags)],
        ..vcpu(CODE + offset, 2, &[])
    };
    alone(&[0x48, 0xff, 0xc1, jump, 0xfb], vec![at(0), at(3)])
}

#[test]
fn counter_that_decides_nothing_may_hold_anything() {
    let found = holds(&counting(0xeb, 0, u64::MAX, 0x8d4));
    assert_eq!((found.states, found.transitions), (2, 2));
    assert!(found.executed > 2 * WITHOUT, "{found:?}");
}

#[test]
fn counter_that_leaves_its_bounds_or_ends_its_loop_is_found() {
    let said_of_bounds = said(&counting(0xeb, 0, 100, 0x8d4));
    assert!(said_of_bounds.contains("rcx is 0x65, not within 0x0 to 0x64 as in state 1"), "{said_of_bounds}");
    let said_of_flags = said(&counting(0xeb, 0, u64::MAX, 0x8c4));
    assert!(said_of_flags.contains("rflags is "), "{said_of_flags}");
    // jnz: the loop ends where the counter wraps.
    assert!(matches!(wrong(&counting(0x75, 0, u64::MAX, 0x8d4)), Wrong::NotClosed { rip, .. } if rip == CODE + 5));
}

#[test]
fn memory_set_aside_may_hold_anything_that_decides_nothing_whoever_changes_it() {
    // inc dword [rbx]; jmp, and the same with jnz
    let counting = |jump| {
        let flags = vec![aside(RFLAGS, 0, 0x8d4)];
        let at = |offset| VcpuState { aside: flags.clone(), ..vcpu(CODE + offset, 2, &[(RBX, DATA)]) };
        let component = |vcpu| cycle(vcpu, vec![at(0), at(2)]);
        let aside = vec![span(DATA, 4)];
        Certificate { aside, ..certificate(&[0xff, 0x03, jump, 0xfc], vec![], vec![component(0), component(1)]) }
    };
    holds(&counting(0xeb));
    assert!(matches!(wrong(&counting(0x75)), Wrong::NotClosed { .. }));
}

#[test]
fn halt_leads_to_a_vcpu_that_halts() {
    let halted = |flags| {
        let mut component =
            cycle(0, vec![vcpu(CODE, flags, &[]), VcpuState { does: Does::Halts, ..vcpu(CODE + 1, flags, &[]) }]);
        component.edges.pop();
        certificate(&[0xf4], vec![], vec![component])
    };
    assert_eq!(holds(&halted(2)).transitions, 1);
    holds(&halted(0x202));
    let mut awaited = halted(0x202);
    awaited.components[0].states.remove(0);
    awaited.components[0].edges.clear();
    holds(&awaited);
    awaited.vcpus[0].irr[2] = Word(1);
    assert_eq!(said(&awaited), "state 0 of vcpu0: vector 0x40 is deliverable");
}

#[test]
fn step_after_a_halt_is_none_that_halts() {
    // Two vCPUs in turn: what a halt leaves behind in KVM must not reach the next instruction.
    let mut halting = cycle(0, vec![vcpu(CODE, 2, &[]), VcpuState { does: Does::Halts, ..vcpu(CODE + 1, 2, &[]) }]);
    halting.edges.pop();
    halting.states.extend([0x10, 0x11].map(|offset| State { vcpus: vec![vcpu(CODE + offset, 2, &[])], cells: vec![] }));
    halting.edges.extend([Edge { from: 2, vcpu: 0, to: 3 }, Edge { from: 3, vcpu: 0, to: 2 }]);
    let mut code = vec![0x90; 0x14];
    code[0] = 0xf4;
    code[0x11..].copy_from_slice(&[0xeb, 0xfd, 0x90]);
    holds(&certificate(&code, vec![], vec![halting]));
}

#[test]
fn jump_to_itself_is_a_state_that_leads_to_itself() {
    assert_eq!(holds(&alone(&[0xeb, 0xfe], vec![vcpu(CODE, 2, &[])])).transitions, 1);
}

#[test]
fn fence_is_one_instruction_on_every_host() {
    for modrm in [0xf0, 0xe8, 0xf8] {
        let at = |offset| vcpu(CODE + offset, 2, &[]);
        // A fence, nop, jmp.
        let code = [0x0f, 0xae, modrm, 0x90, 0xeb, 0xfa];
        holds(&alone(&code, vec![at(0), at(3), at(4)]));
        assert_eq!(
            wrong(&alone(&code, vec![at(0), at(4)])),
            Wrong::NotClosed { rip: CODE + 3, difference: "rip is 0x8003, not 0x8000 as in state 0".into() }
        );
    }
}

#[test]
fn call_and_return_go_by_the_stack() {
    // call 0x8010; jmp 0x8000; at 0x8010: ret
    let mut code = vec![0xe8, 0x0b, 0, 0, 0, 0xeb, 0xf9];
    code.resize(0x10, 0x90);
    code.push(0xc3);
    let top = DATA + 0x1000;
    let at = |offset, rsp| vcpu(CODE + offset, 2, &[(RSP, rsp)]);
    let states = vec![at(0, top), at(0x10, top - 8), at(5, top)];
    let with =
        |returns: u64| certificate(&code, vec![run(top - 8, &returns.to_le_bytes())], vec![cycle(0, states.clone())]);
    holds(&with(CODE + 5));
    assert_eq!(wrong(&with(CODE)), Wrong::Changes { address: top - 8, was: 0, is: 5 });
}

#[test]
fn repeated_instruction_is_one_transition() {
    // repne scasb for a byte that is not there; then mov ecx, 4 and mov edi, DATA; jmp.
    let mut code = vec![0xf2, 0xae, 0xb9, 4, 0, 0, 0, 0xbf];
    code.extend((DATA as u32).to_le_bytes());
    code.extend([0xeb, 0xf2]);
    let at = |offset, rcx, rdi| vcpu(CODE + offset, 0x97, &[(RAX, 3), (RCX, rcx), (RDI, rdi)]);
    let (begin, end) = (DATA, DATA + 4);
    let states = vec![at(0, 4, begin), at(2, 0, end), at(7, 4, end), at(12, 4, begin)];
    // 3 - 4: carry, sign, auxiliary carry, and parity of 0xff.
    let bytes = |last| vec![run(DATA, &[5, 6, 7, last])];
    holds(&certificate(&code, bytes(4), vec![cycle(0, states.clone())]));
    assert!(matches!(wrong(&certificate(&code, bytes(3), vec![cycle(0, states)])), Wrong::NotClosed { .. }));
}

#[test]
fn instruction_that_goes_on_and_on_is_left() {
    // rep stosb over 2 MiB that are all one page.
    let state = vcpu(CODE, 2, &[(RCX, 0x20_0000), (RDI, 0x20_0000)]);
    let mut endless = alone(&[0xf3, 0xaa], vec![state]);
    let (table, entry) = (DATA + 0x1000, (DATA | 0x63).to_le_bytes());
    endless.memory.runs.push(run(table, &[entry; 512].concat()));
    endless.memory.runs.push(run(0x3008, &(table | 0x63).to_le_bytes()));
    assert!(matches!(wrong(&endless), Wrong::Unending { .. }));
}

#[test]
fn code_that_stores_to_itself_what_is_there_holds() {
    // mov byte [rip - 7], value; jmp
    let storing = |value| {
        let code = [0xc6, 0x05, 0xf9, 0xff, 0xff, 0xff, value, 0xeb, 0xf7];
        alone(&code, vec![vcpu(CODE, 2, &[]), vcpu(CODE + 7, 2, &[])])
    };
    holds(&storing(0xc6));
    assert_eq!(wrong(&storing(0x90)), Wrong::Changes { address: CODE, was: 0xc6, is: 0x90 });
}

#[test]
fn instruction_across_pages_is_fetched_from_both() {
    let at = |offset| vcpu(CODE + 0xffd + offset, 2, &[]);
    let mut across = alone(&[0x90], vec![at(0), at(5)]);
    across.memory.pages.insert(4, Word(CODE + 0x1000));
    across.memory.runs.push(run(CODE + 0xffd, &[0xb8, 0, 0, 0, 0, 0xeb, 0xf9]));
    holds(&across);
}

#[test]
fn what_is_no_function_of_a_state_is_named() {
    let executing = |code: &[u8]| wrong(&alone(code, vec![vcpu(CODE, 2, &[])]));
    assert_eq!(executing(&[0x0f, 0x31]), Wrong::Refused("rdtsc"));
    assert_eq!(executing(&[0x0f, 0xc7, 0xf0]), Wrong::Refused("rdrand, rdseed or rdpid"));
    assert_eq!(executing(&[0xec]), Wrong::Refused("an access to a port"));
    assert_eq!(executing(&[0x0f, 0x0b]), Wrong::Raises, "ud2");
    assert_eq!(executing(&[0xcd, 0x80]), Wrong::Refused("a software interrupt"));
}

#[test]
fn access_beyond_the_certificate_is_named() {
    let accessing = |code: &[u8], address| wrong(&alone(code, vec![vcpu(CODE, 2, &[(RBX, address)])]));
    let reads = |address, size| Wrong::Foreign { access: "reads", address, size };
    assert_eq!(accessing(&[0x8b, 0x03], DATA + 0x2000), reads(DATA + 0x2000, 4));
    assert_eq!(accessing(&[0x8b, 0x03], DATA + 0x1ffe), reads(DATA + 0x2000, 2));
    assert_eq!(accessing(&[0x88, 0x03], 0x1f_0000), Wrong::Foreign { access: "writes", address: 0x1f_0000, size: 1 });
    assert_eq!(accessing(&[0x8b, 0x03], 0x20_0000), Wrong::Raises, "not mapped");
}

#[test]
fn code_beyond_the_certificate_is_named() {
    let at = |rip| wrong(&alone(SPIN, vec![vcpu(rip, 2, &[])]));
    for rip in [0x9000, 0x20_0000, 1 << 63] {
        assert_eq!(at(rip), Wrong::Code { linear: rip });
    }
    let mut elsewhere = two_spins();
    elsewhere.vcpus[0].cr3 = Word(0x7000);
    assert_eq!(wrong(&elsewhere), Wrong::Code { linear: CODE });
}

#[test]
fn page_tables_that_the_processor_changes_are_named() {
    let mut fresh = alone(SPIN, spinning(0, DATA).states.into_iter().flat_map(|state| state.vcpus).collect());
    // Not accessed yet.
    fresh.memory.runs.push(run(0x3000, &0x83_u64.to_le_bytes()));
    assert_eq!(wrong(&fresh), Wrong::Tables { page: 0x3000 });
}

#[test]
fn tables_that_only_another_vcpu_walks_do_not_change_either() {
    // mov [rbx], eax; jmp: into the entry for the second GiB of vCPU 1's tables, which nobody uses.
    let code = [0x89, 0x03, 0xeb, 0xfc];
    let at = |offset, rbx| vcpu(CODE + offset, 2, &[(RAX, 8), (RBX, rbx)]);
    let of = |rbx, number| cycle(number, vec![at(0, rbx), at(2, rbx)]);
    let mut certificate = certificate(&code, vec![], vec![of(0x1_1008, 0), of(DATA, 1)]);
    certificate.memory.runs.extend([run(0x1_1000, &0x3063_u64.to_le_bytes()), run(DATA, &[8])]);
    certificate.memory.pages.push(Word(0x1_2000));
    certificate.memory.runs.push(run(0x1_2000, &0x1_1063_u64.to_le_bytes()));
    certificate.vcpus[1].cr3 = Word(0x1_2000);
    assert_eq!(wrong(&certificate), Wrong::Tables { page: 0x1_1000 });
    certificate.memory.runs.push(run(0x1_1008, &[8]));
    holds(&certificate);
}

#[test]
fn byte_that_changes_for_one_instruction_only_has_changed() {
    let memory = Memory::new(&two_spins().memory).expect("memory");
    let certificate = two_spins();
    let owners = Owners::of(&certificate);
    let mut recorder = Recorder::new(&memory, &owners, &certificate, 0, 0);
    for byte in [1, 0] {
        recorder.write(DATA, &[byte]).expect("nobody's");
    }
    assert_eq!(recorder.changed(), Some(Wrong::Changes { address: DATA, was: 0, is: 1 }));
}

#[test]
fn local_apic_is_no_memory() {
    let mut polling = two_spins();
    polling.memory.pages.push(Word(0xfee0_0000));
    assert_eq!(said(&polling), "vcpu0: the memory of the certificate has the page 0xfee00000, where its local APIC is");
}

#[test]
fn system_registers_that_no_processor_has_are_named() {
    let mut impossible = two_spins();
    impossible.vcpus[1].cr4 = Word(0x20 | 1 << 63);
    assert_eq!(said(&impossible), "vcpu1: its system registers hold what no processor can");
    let mut other = two_spins();
    other.vcpus[1].segments[0].3 = Word(0xc09b);
    assert_eq!(wrong(&other), Wrong::Mode);
}

/// All states that a component of running vCPUs can come to, and its edges.
fn explored(code: &[u8], cell: u64, starts: &[u64], word: u32) -> Certificate {
    let vcpus: Vec<_> = starts.iter().map(|&rip| vcpu(rip, 2, &[(RBX, cell)])).collect();
    let mut component = Component {
        vcpus: (0..starts.len()).collect(),
        cells: vec![span(cell, 4)],
        states: vec![State { vcpus, cells: vec![Bytes(word.to_le_bytes().to_vec())] }],
        ..Component::default()
    };
    let base = certificate(code, vec![], vec![component.clone()]);
    let places = vec![(0..starts.len()).map(|who| (0, who)).collect::<Vec<_>>()];
    shape::check(&base).expect("well formed");
    let memory = Memory::new(&base.memory).expect("memory");
    let layout = Layout::of(&base, &memory, &places).expect("code");
    let vm = machine::create(&host(), &memory, layout.holds(), starts.len()).expect("a vm");
    let mut processors: Vec<_> = (0..starts.len())
        .map(|index| Processor::new(&vm, index, starts.len(), &processor()).expect("a vcpu"))
        .collect();
    let owners = Owners::of(&base);
    let mut from = 0;
    while from < component.states.len() {
        for (who, processor) in processors.iter_mut().enumerate() {
            let state = component.states[from].clone();
            memory.write(cell, &state.cells[0].0);
            let registers = state.vcpus[who].registers.map(|word| word.0);
            let mut recorder = Recorder::new(&memory, &owners, &base, 0, who);
            let mut bytes = [0; MOST_BYTES];
            memory.read(registers[RIP], &mut bytes);
            let executed = processor.execute(&registers, &Opening::of(&bytes), &mut recorder).expect("a result");
            let mut next = state;
            next.vcpus[who].registers = executed.registers.map(Word);
            next.cells = vec![Bytes(memory.copy(cell, 4))];
            let to = component.states.iter().position(|known| *known == next).unwrap_or_else(|| {
                component.states.push(next);
                component.states.len() - 1
            });
            component.edges.push(Edge { from, vcpu: who, to });
        }
        from += 1;
    }
    Certificate { components: vec![component], ..base }
}

/// Waits until the word is `mine`, and makes it the other's: cmp dword [rbx], mine; jne; mov dword [rbx], other; jmp.
fn hands_over(mine: u8, other: u8, store: &[u8]) -> Vec<u8> {
    let back = (9 + store.len() as i8).wrapping_neg() as u8;
    let mut code = vec![0xb8, other, 0, 0, 0, 0x83, 0x3b, mine, 0x75, 0xfb];
    code.extend(store);
    code.extend([0xeb, back.wrapping_sub(3)]);
    code
}

#[test]
fn token_that_two_hand_to_each_other_holds_in_every_order() {
    // xchg [rbx], eax; mov [rbx], eax
    for store in [[0x87, 0x03], [0x89, 0x03]] {
        let mut code = hands_over(0, 1, &store);
        code.resize(0x20, 0x90);
        code.extend(hands_over(1, 0, &store));
        let good = explored(&code, DATA, &[CODE, CODE + 0x20], 0);
        let found = holds(&good);
        assert!(found.states > 10 && found.transitions == 2 * found.states as usize, "{found:?}");
        // Any of them; a few are enough for an emulated host.
        for index in (0..good.components[0].edges.len()).step_by(7) {
            let mut without = good.clone();
            without.components[0].edges.remove(index);
            assert!(matches!(wrong(&without), Wrong::NoEdge { .. }));
        }
    }
}

#[test]
fn plain_increment_of_a_shared_word_is_not_one_step() {
    // xor byte [rbx], 1 is a read and a write; jmp.
    let code = |prefix: &[u8]| {
        let mut code = prefix.to_vec();
        code.extend([0x80, 0x33, 1, 0xeb, (-5 - prefix.len() as i8) as u8]);
        code
    };
    holds(&explored(&code(&[0xf0]), DATA, &[CODE, CODE], 0));
    assert_eq!(wrong(&explored(&code(&[]), DATA, &[CODE, CODE], 0)), Wrong::Torn { address: DATA });
}

#[test]
fn stores_that_may_pass_loads_are_named() {
    // Each stores to a word of its own and looks at the other's: xor eax, 1; mov [rbx], al; cmp byte [rbx + 2], 2; jmp.
    let storing = |own: u8, other: u8| vec![0x83, 0xf0, 1, 0x88, 0x43, own, 0x80, 0x7b, other, 2, 0xeb, 0xf4];
    let mut code = storing(0, 2);
    code.resize(0x20, 0x90);
    code.extend(storing(2, 0));
    let certificate = explored(&code, DATA, &[CODE, CODE + 0x20], 0);
    assert!(matches!(wrong(&certificate), Wrong::Delayed { size: 1, .. }));
}
