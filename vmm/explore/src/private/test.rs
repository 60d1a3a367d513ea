//! What is met, and what is not.

use iced_x86::{Decoder, DecoderOptions};
use stallbench_state::machine::{RFLAGS_IF, Registers};
use stallbench_state::memory::Snippet;

use super::*;

/// mov [rax], rcx; mov rcx, [rax]; wrmsr; iretq; push rcx
const STORE: &[u8] = &[0x48, 0x89, 0x08];
const LOAD: &[u8] = &[0x48, 0x8b, 0x08];
const WRMSR: &[u8] = &[0x0f, 0x30];
const IRETQ: &[u8] = &[0x48, 0xcf];
const PUSH: &[u8] = &[0x51];

const WORD: u64 = private(1) + area::RUNTIME;
const TASK_STACK: u64 = private(1) + area::TASK_STACK_TOP - 0x100;

/// An instruction of a passage: what it is, where, with interrupts on, and RAX, RCX, RSP.
type Executed = (&'static [u8], u64, bool, [u64; 3]);

/// What vCPU 1 executes: a passage from its task, then one of a handler.
fn meets(task: &[Executed], delivered: Inject, handler: &[Executed]) -> Option<u64> {
    let mut private = Private::of(1);
    let memory = frame_at(handler.first().map_or(0, |first| first.3[2]));
    let mut first = private.looker(0, None);
    task.iter().for_each(|it| executes(&mut first, &memory, it));
    assert!(private.take(&first.looked(), 1).is_empty());
    let mut second = private.looker(1, Some(delivered));
    handler.iter().for_each(|it| executes(&mut second, &memory, it));
    private.take(&second.looked(), 2).first().copied()
}

fn executes(looker: &mut Looker, memory: &Snippet, &(bytes, rip, is_on, [rax, rcx, rsp]): &Executed) {
    let rflags = if is_on { RFLAGS_IF } else { 0 };
    let general = Registers { rax, rcx, rsp, rip, rflags, ..Registers::default() };
    let it = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    looker.look(memory, &ProcessorState { general, ..ProcessorState::default() }, &it);
}

/// A frame of what was interrupted with an empty stack of 0x100 bytes.
fn frame_at(rsp: u64) -> Snippet {
    let words = [0x10_0000, 8, RFLAGS_IF, TASK_STACK, 16];
    Snippet { base: rsp, bytes: words.into_iter().flat_map(u64::to_le_bytes).collect() }
}

const HANDLER_STACK: u64 = TASK_STACK - 40;
const VECTOR: Inject = Inject::Vector(0xfb);

#[test]
fn word_that_a_handler_writes_and_its_task_reads_is_told_with_its_instruction() {
    let task = (LOAD, 0x10, true, [WORD, 0, TASK_STACK]);
    let handler = (STORE, 0x20, false, [WORD + 4, 0, HANDLER_STACK]);
    assert_eq!(meets(&[task], VECTOR, &[handler]), Some(0x10));
    let nobody_writes = (LOAD, 0x20, false, [WORD + 4, 0, HANDLER_STACK]);
    assert_eq!(meets(&[task], VECTOR, &[nobody_writes]), None);
    let elsewhere = (STORE, 0x20, false, [WORD + 8, 0, HANDLER_STACK]);
    assert_eq!(meets(&[task], VECTOR, &[elsewhere]), None);
}

#[test]
fn word_that_is_read_with_interrupts_off_meets_an_nmi_alone() {
    let task = (LOAD, 0x10, false, [WORD, 0, TASK_STACK]);
    let handler = (STORE, 0x20, false, [WORD, 0, HANDLER_STACK]);
    assert_eq!(meets(&[task], VECTOR, &[handler]), None);
    assert!(meets(&[task], Inject::Nmi, &[handler]).is_some());
}

#[test]
fn word_of_two_handlers_is_met_where_one_can_come_into_the_other_seen_or_not() {
    let mut private = Private::of(1);
    let mut met = |delivered, it, to| {
        let mut looker = private.looker(0, Some(delivered));
        executes(&mut looker, &frame_at(HANDLER_STACK), &it);
        private.take(&looker.looked(), to)
    };
    let [outer, inner] = [0x20, 0x30].map(|rip| (STORE, rip, false, [WORD, 0, HANDLER_STACK]));
    assert!(met(VECTOR, outer, 1).is_empty(), "none comes into itself with interrupts off");
    assert!(met(Inject::Vector(0xfc), inner, 2).is_empty(), "nor into another");
    assert!(met(Inject::Nmi, (LOAD, 0x40, false, [WORD, 0, HANDLER_STACK]), 3).contains(&0x20));
    let reentered = (STORE, 0x50, true, [WORD, 0, HANDLER_STACK]);
    assert!(met(VECTOR, reentered, 4).contains(&0x50), "into itself with interrupts on");
}

/// An interrupt can come in front of both then, and finds the first of them done between them.
#[test]
fn word_that_is_read_with_interrupts_off_meets_an_interrupt_where_those_were_on_before() {
    let before = (LOAD, 0x10, true, [WORD + 8, 0, TASK_STACK]);
    let off = (LOAD, 0x18, false, [WORD, 0, TASK_STACK]);
    let handler = (STORE, 0x20, false, [WORD, 0, HANDLER_STACK]);
    assert_eq!(meets(&[before, off], VECTOR, &[handler]), Some(0x18));
    let after = (LOAD, 0x18, true, [WORD + 8, 0, TASK_STACK]);
    assert_eq!(meets(&[off, after], VECTOR, &[handler]), None, "it comes behind it alone");
}

#[test]
fn stack_of_a_handler_is_its_own_and_that_of_its_task_is_not() {
    let task = (STORE, 0x10, true, [TASK_STACK - 48, 0, TASK_STACK - 48]);
    let pushes = (PUSH, 0x20, false, [0, 0, HANDLER_STACK]);
    assert_eq!(meets(&[task], VECTOR, &[pushes]), None, "below what was interrupted");
    let task = (STORE, 0x10, true, [TASK_STACK + 8, 0, TASK_STACK]);
    let reaches = (LOAD, 0x20, false, [TASK_STACK + 8, 0, HANDLER_STACK]);
    assert!(meets(&[task], VECTOR, &[reaches]).is_some(), "above it");
}

#[test]
fn behind_its_iret_a_handler_is_over() {
    let task = (LOAD, 0x10, true, [WORD, 0, TASK_STACK]);
    let over = (IRETQ, 0x20, false, [0, 0, HANDLER_STACK]);
    let store = (STORE, 0x30, true, [WORD, 0, TASK_STACK]);
    assert_eq!(meets(&[task], VECTOR, &[over, store]), None);
}

#[test]
fn registers_meet_like_memory() {
    let task = (WRMSR, 0x10, true, [0, 0x200, TASK_STACK]);
    let [handler, other] = [0x200, 0x201].map(|msr| (WRMSR, 0x20, false, [0, msr, HANDLER_STACK]));
    assert_eq!(meets(&[task], VECTOR, &[handler]), Some(0x10));
    assert_eq!(meets(&[task], VECTOR, &[other]), None);
}

#[test]
fn words_outside_of_the_arena_are_shared_where_one_writes() {
    let at = GHOST + PAGE;
    let of = |vcpu, bytes| {
        let mut private = Private::of(vcpu);
        let mut looker = private.looker(0, None);
        executes(&mut looker, &frame_at(0), &(bytes, 0x10 + vcpu as u64, true, [at, 0, TASK_STACK]));
        assert!(private.take(&looker.looked(), 1).is_empty());
        private
    };
    assert_eq!(of(0, LOAD).shares(&of(1, STORE)), Some((at, [0x10, 0x11])));
    assert_eq!(of(0, LOAD).shares(&of(1, LOAD)), None);
}

/// What a handler of one instruction and its IRETQ lead to.
fn leads_elsewhere(handler: &[Executed]) -> bool {
    let memory = frame_at(HANDLER_STACK);
    let mut looker = Private::of(1).looker(0, Some(VECTOR));
    handler.iter().for_each(|it| executes(&mut looker, &memory, it));
    looker.looked().leads_elsewhere
}

#[test]
fn handler_that_writes_its_frame_or_leaves_by_another_leads_elsewhere() {
    let leaves = (IRETQ, 0x24, false, [0, 0, HANDLER_STACK]);
    let stores = |address| [(STORE, 0x20, false, [address, 0, HANDLER_STACK]), leaves];
    assert!(leads_elsewhere(&stores(HANDLER_STACK)), "RIP");
    assert!(leads_elsewhere(&stores(HANDLER_STACK + 24)), "RSP");
    let other_stack = (IRETQ, 0x24, false, [0, 0, HANDLER_STACK - 0x80]);
    assert!(leads_elsewhere(&[(LOAD, 0x20, false, [WORD, 0, HANDLER_STACK]), other_stack]));
    for address in [HANDLER_STACK - 8, HANDLER_STACK + FRAME, WORD] {
        assert!(!leads_elsewhere(&stores(address)), "{address:#x}");
    }
    assert!(!leads_elsewhere(&[(LOAD, 0x20, false, [HANDLER_STACK, 0, HANDLER_STACK]), leaves]), "it looks");
}

#[test]
fn interrupt_that_is_ended_with_interrupts_off_that_were_on_before_is_ended_late() {
    let at = |was_on, is_on| {
        let mut looker = Private::of(1).looker(0, None);
        executes(&mut looker, &frame_at(0), &(LOAD, 0x10, was_on, [WORD, 0, TASK_STACK]));
        executes(&mut looker, &frame_at(0), &(WRMSR, 0x18, is_on, [0, END.into(), TASK_STACK]));
        looker.ends_late()
    };
    assert!(at(true, false));
    // With interrupts on that is a stop, or refused.
    assert!(!at(false, false) && !at(true, true));
}

/// rep stosq, upwards and downwards, of three words.
#[test]
fn string_instruction_accesses_what_lies_where_it_goes() {
    let at = |rflags| {
        let general = Registers { rdi: WORD, rcx: 3, rip: 0x10, rflags, ..Registers::default() };
        let it = Decoder::with_ip(64, &[0xf3, 0x48, 0xab], 0x10, DecoderOptions::NONE).decode();
        let mut looker = Private::of(1).looker(0, None);
        looker.accesses(&ProcessorState { general, ..ProcessorState::default() }, &it);
        looker.found.iter().map(|access| (access.at, access.size)).collect::<Vec<_>>()
    };
    assert_eq!(at(0), [(Location::Memory(WORD), 24)]);
    assert_eq!(at(RFLAGS_DF), [(Location::Memory(WORD - 16), 24)]);
}

#[test]
fn what_is_declared_is_all_of_an_access() {
    let access = |address, size| Access {
        size,
        at: Location::Memory(address),
        writes: true,
        rip: 0x10,
        context: Context::Task,
        own: false,
        behind_open: [true; 2],
    };
    let page = private(1) + area::PAGE_PUBLISHED;
    assert!(is_declared(1, &access(page, PAGE)));
    assert!(!is_declared(1, &access(page, PAGE + 1)), "it runs on");
    let mut private = Private::of(1);
    private.add(access(GHOST - 8, 16 + size_of::<GhostPage>() as u64));
    assert!(private.writes_outside().is_some());
}
