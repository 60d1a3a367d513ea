//! This vCPU: its number, its publication page, and what the runtime keeps for it alone.
//!
//! Every stack of a vCPU lies in its private area, which is aligned to its size: the stack pointer tells which vCPU this is.

use core::cell::Cell;
use core::ptr::{addr_of, addr_of_mut};

use stallbench_abi::arena::GENERATIONS;
use stallbench_abi::layout::{self, private_area as area};
use stallbench_abi::vcpu::{CONTEXTS, Context, ContextKind, Phase, VcpuPage, Wait};

use crate::{boot, cpu};

/// What interrupts find under their vector.
pub type Handler = fn();

/// What the runtime keeps for one vCPU, at [`area::RUNTIME`], zeroed at start.
#[derive(Debug)]
#[repr(C)]
pub struct Private {
    handlers: [Cell<Option<Handler>>; 256],
    /// The call that each context is in.
    calls: [Cell<CurrentCall>; CONTEXTS],
    /// Bytes of its part of the arena's stacks in use.
    arena_stack_used: Cell<u64>,
    /// Objects of the arena that this vCPU has made.
    objects_made: Cell<u32>,
    /// A word that means what the case has it mean.
    flag: Cell<u32>,
}

/// The cross-CPU call that a context is in.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CurrentCall {
    /// Its number, 0 outside any call.
    pub number: u64,
    /// 1 when its wait argument is 0.
    pub asynchronous: u64,
}

const _: () = assert!(size_of::<Private>() as u64 <= area::RING - area::RUNTIME);

fn area() -> u64 {
    cpu::stack_pointer() & !(layout::PRIVATE_STRIDE - 1)
}

fn private() -> &'static Private {
    // SAFETY: the host maps these zeroed bytes for this vCPU alone, zero is a valid value of each field, and `Cell` confines
    // them to one vCPU: an interrupt handler restores what it changes before it returns.
    unsafe { &*((area() + area::RUNTIME) as *const Private) }
}

/// The publication page. Written by plain stores, so that the host can watch it.
pub(crate) fn page() -> *mut VcpuPage {
    (area() + area::PAGE_PUBLISHED) as *mut VcpuPage
}

/// Number of this vCPU.
pub fn vcpu() -> usize {
    ((area() - layout::PRIVATE) / layout::PRIVATE_STRIDE) as usize
}

/// Whether this vCPU is the one that begins.
pub fn is_initiator() -> bool {
    vcpu() as u64 == boot::knob(&stallbench_abi::knob::INITIATOR)
}

/// Bytes of this vCPU's part of the arena's stacks in use.
pub(crate) fn arena_stack_used() -> &'static Cell<u64> {
    &private().arena_stack_used
}

/// The generation of an object that this vCPU makes: no other object at its address has it, whoever made that, until one vCPU
/// has made 65,536.
pub(crate) fn next_generation() -> u32 {
    let made = private().objects_made.get().wrapping_add(1);
    private().objects_made.set(made);
    // The number of the vCPU plus one: never 0, and a vCPU's number is less than 255.
    (made << 8 | (vcpu() as u32 + 1)) & GENERATIONS
}

/// A word of this vCPU's own, for its case and the handlers of that: 0 at first.
pub fn flag() -> *mut u32 {
    private().flag.as_ptr()
}

/// Sets the handler of a vector on this vCPU.
pub fn set_handler(vector: u8, handler: Handler) {
    private().handlers[usize::from(vector)].set(Some(handler));
}

/// The handler of a vector on this vCPU.
pub(crate) fn handler(vector: u8) -> Option<Handler> {
    private().handlers[usize::from(vector)].get()
}

/// Publishes the phase of this vCPU.
pub fn enter_phase(phase: Phase) {
    // SAFETY: the page is this vCPU's own; a plain store that the host may see at any time.
    unsafe { addr_of_mut!((*page()).phase).write_volatile(phase) };
    progress();
}

/// Publishes that this vCPU got something done.
pub fn progress() {
    // SAFETY: the word is this vCPU's own.
    unsafe { cpu::add_undivided(addr_of_mut!((*page()).progress), 1) };
}

/// Publishes that this vCPU has come to a rendezvous, in which others may turn their caches off; before it lets them know.
pub fn enter_rendezvous() {
    change_rendezvous(1);
}

/// Publishes that this vCPU leaves the rendezvous: nobody's caches are off any more.
pub fn leave_rendezvous() {
    change_rendezvous(u32::MAX);
}

fn change_rendezvous(by: u32) {
    // SAFETY: as in `enter_phase`. An interrupt in between leaves the word as it finds it.
    unsafe {
        let word = addr_of_mut!((*page()).rendezvous);
        word.write_volatile(word.read_volatile().wrapping_add(by));
    }
}

/// Does what a case finds when it begins, as a firmware would have left it: no invariant of its protocol is asked of that.
pub fn set_up(work: impl FnOnce()) {
    // SAFETY: as in `enter_phase`.
    let publish = |value| unsafe { addr_of_mut!((*page()).set_up).write_volatile(value) };
    publish(1);
    work();
    publish(0);
}

/// Publishes whether this vCPU has nothing to do.
pub(crate) fn set_idle(idle: bool) {
    // SAFETY: as in `enter_phase`.
    unsafe { addr_of_mut!((*page()).idle).write_volatile(u32::from(idle)) };
}

/// Publishes the APIC id that the processor states.
pub(crate) fn set_apic_id(id: u32) {
    // SAFETY: as in `enter_phase`.
    unsafe { addr_of_mut!((*page()).apic_id).write_volatile(id) };
}

/// Depth of the context that runs.
pub fn depth() -> usize {
    // SAFETY: as in `enter_phase`.
    unsafe { addr_of!((*page()).depth).read_volatile() as usize }
}

/// Enters a context above the present one.
pub(crate) fn enter_context(kind: ContextKind, vector: u8, frame: u64) {
    let depth = depth() + 1;
    assert!(depth < CONTEXTS, "interrupts are nested too deep");
    let page = page();
    // SAFETY: as in `enter_phase`; `depth` is below `CONTEXTS`. The depth comes first: an NMI that interrupts this takes the
    // slot above, not this one. What the host may see in between has no active wait, since contexts are left without one.
    unsafe {
        addr_of_mut!((*page).depth).write_volatile(depth as u32);
        let context = addr_of_mut!((*page).contexts).cast::<Context>().add(depth);
        addr_of_mut!((*context).kind).write_volatile(kind);
        addr_of_mut!((*context).vector).write_volatile(u32::from(vector));
        addr_of_mut!((*context).frame).write_volatile(frame);
        addr_of_mut!((*context).wait.active).write_volatile(0);
        private().calls[depth].set(CurrentCall::default());
        cpu::add_undivided(addr_of_mut!((*page).interrupts), 1);
        if kind == ContextKind::NMI {
            cpu::add_undivided(addr_of_mut!((*page).nmis), 1);
        }
    }
}

/// Returns to the context below.
pub(crate) fn leave_context() {
    // SAFETY: as in `enter_phase`.
    unsafe { addr_of_mut!((*page()).depth).write_volatile(depth() as u32 - 1) };
}

/// The published wait of the context that runs.
pub(crate) fn wait() -> *mut Wait {
    // SAFETY: the depth is below `CONTEXTS`, see `enter_context`.
    unsafe { addr_of_mut!((*addr_of_mut!((*page()).contexts).cast::<Context>().add(depth())).wait) }
}

/// The call that this context is in.
pub fn current_call() -> CurrentCall {
    private().calls[depth()].get()
}

/// Enters a call; returns the one that this context was in.
pub fn set_current_call(call: CurrentCall) -> CurrentCall {
    private().calls[depth()].replace(call)
}
