//! The call layers: how one vCPU makes others run a function.
//!
//! | knob `call` | file | from |
//! |---|---|---|
//! | `kmalloc-2.6.28` | `kmalloc` | Linux 2.6.28: without memory, a record on the stack for all targets, and wait |
//! | `kmalloc-2.6.29` | `kmalloc` | Linux 2.6.29-rc: without memory, one target after the other |
//! | `release` | `kmalloc` | the proposal of January 2009: wait only until the target has copied the record |
//! | `percpu-lock` | `percpu_lock` | Linux 2.6.30 (8969a5ede0f9): one record a CPU, with a lock |
//! | `percpu-lockless` | `lockless` | Linux 2.6.32 to 2.6.38: the multi-target record has no lock any more |
//! | `percpu-unlock-first` | `unlock_first` | Linux 4.1 (8053871d0f7f): unlock asynchronous records before their callback |
//! | `llist` | `llist` | today |
//!
//! `arch=own-helper` (`own_helper`) replaces all of them, as an architecture without the generic code does.
//! `arch=generic-old-handler` keeps the sender and takes a handler that knows no RELEASE flag: that differs for `release` alone.
//!
//! There is no time-out anywhere in these protocols, but for the bounded variant of `own_helper`.

mod arch;
mod inbox;
mod kmalloc;
mod llist;
mod lockless;
mod own_helper;
mod percpu_lock;
mod record;
mod unlock_first;

use core::sync::atomic::AtomicU32;

use stallbench_abi::event::{CallShape, EventKind};
use stallbench_abi::knob::{self, ARCH, CALL};
use stallbench_abi::layout::vector;
use stallbench_rt::arena::{self, SharedArray};
use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::this::{self, CurrentCall};
use stallbench_rt::{boot, cpu, event};

use crate::rcu;
use crate::root::root;
use record::CallMany;
pub(crate) use record::CallSingle;

/// What a call makes its targets run: a function and its argument, the address of a record in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// The function.
    pub run: fn(u64),
    /// Its argument.
    pub info: u64,
}

/// Why a call did not reach its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The target is not online (-ENXIO).
    Offline,
    /// The targets did not answer in time (bounded variant).
    TimedOut,
}

/// A cross-CPU call that is being made.
#[derive(Clone, Copy)]
struct Call {
    function: Function,
    wait: bool,
    /// Its number, for events and published waits.
    number: u64,
}

/// What the call layers share between vCPUs.
#[repr(C)]
pub struct Shared {
    inboxes: SharedArray<inbox::Inbox>,
    stacks: SharedArray<llist::Inbox>,
    /// The list of multi-target calls.
    queue: inbox::Queue,
    /// Each vCPU's own record for single-target calls (`csd_data`).
    single: SharedArray<CallSingle>,
    /// Each vCPU's own record for multi-target calls (`cfd_data`).
    many: SharedArray<CallMany>,
    /// Each vCPU's own records for each target, the sender's row first.
    per_target: SharedArray<CallSingle>,
    own_helper: own_helper::Shared,
}

/// Which code a scenario runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Kmalloc,
    PercpuLock,
    Lockless,
    UnlockFirst,
    Llist,
    OwnHelper,
}

fn layer() -> Layer {
    if boot::word(&ARCH) == knob::arch::OWN_HELPER {
        return Layer::OwnHelper;
    }
    match boot::word(&CALL) {
        knob::call::PERCPU_LOCK => Layer::PercpuLock,
        knob::call::PERCPU_LOCKLESS => Layer::Lockless,
        knob::call::PERCPU_UNLOCK_FIRST => Layer::UnlockFirst,
        knob::call::LLIST => Layer::Llist,
        _ => Layer::Kmalloc,
    }
}

/// Whether the case makes calls, on a layer that allocates its records.
pub(crate) fn allocates() -> bool {
    layer() == Layer::Kmalloc && crate::case::takes(&CALL)
}

impl Shared {
    pub(crate) fn place(&self) {
        let vcpus = boot::vcpus();
        match layer() {
            Layer::Kmalloc => self.place_inboxes(vcpus),
            Layer::PercpuLock | Layer::Lockless => {
                self.place_inboxes(vcpus);
                self.single.place(vcpus);
                self.many.place(vcpus);
            }
            Layer::UnlockFirst | Layer::Llist => {
                self.stacks.place(vcpus);
                self.single.place(vcpus);
                self.per_target.place(vcpus * vcpus);
            }
            Layer::OwnHelper => {}
        }
    }

    fn place_inboxes(&self, vcpus: usize) {
        self.inboxes.place(vcpus);
        for vcpu in 0..vcpus {
            self.inboxes.get(vcpu).init();
        }
        self.queue.init();
    }

    fn per_target(&self, sender: usize, target: usize) -> &'static CallSingle {
        self.per_target.get(sender * boot::vcpus() + target)
    }
}

/// Where a record is found from whose head call_rcu() was given.
pub(crate) fn rcu_head_of(record: u64) -> &'static rcu::Head {
    // SAFETY: the only records that call_rcu() gets are multi-target calls of the pool, not yet freed.
    unsafe { &(*(record as *const CallMany)).rcu }
}

/// Sets this vCPU's handlers.
pub(crate) fn set_handlers() {
    this::set_handler(vector::CALL_FUNCTION, call_function_interrupt);
    this::set_handler(vector::CALL_FUNCTION_SINGLE, call_function_single_interrupt);
    this::set_handler(vector::RESCHEDULE, rcu::leave_idle);
}

fn call_function_interrupt() {
    rcu::leave_idle();
    match layer() {
        Layer::Kmalloc => kmalloc::multi_interrupt(),
        Layer::PercpuLock => percpu_lock::multi_interrupt(),
        Layer::Lockless => lockless::multi_interrupt(),
        Layer::UnlockFirst => unlock_first::interrupt(),
        Layer::Llist => llist::interrupt(),
        Layer::OwnHelper => own_helper::interrupt(),
    }
}

fn call_function_single_interrupt() {
    rcu::leave_idle();
    match layer() {
        Layer::Kmalloc => kmalloc::single_interrupt(),
        Layer::PercpuLock | Layer::Lockless => percpu_lock::single_interrupt(),
        Layer::UnlockFirst => unlock_first::interrupt(),
        Layer::Llist => llist::interrupt(),
        Layer::OwnHelper => own_helper::interrupt(),
    }
}

/// Runs what others have left in this vCPU's queue, without an interrupt that says so. Interrupts are off.
pub fn flush_own_queue() {
    call_function_single_interrupt();
}

/// smp_call_function_single(): `target` runs the function.
pub fn single(target: usize, function: Function, wait: bool) -> Result<(), CallError> {
    numbered(CallShape::SINGLE, function, wait, |call| {
        match layer() {
            // The layers with lock-free inboxes take their record first, even for themselves.
            Layer::Kmalloc | Layer::PercpuLock | Layer::Lockless | Layer::OwnHelper if target == this::vcpu() => {
                record::run_here(call);
                Ok(())
            }
            Layer::Kmalloc => kmalloc::single(target, call),
            Layer::PercpuLock | Layer::Lockless => percpu_lock::single(target, call),
            Layer::UnlockFirst => unlock_first::single(target, call),
            Layer::Llist => llist::single(target, call),
            Layer::OwnHelper if !online().contains(target) => Err(CallError::Offline),
            Layer::OwnHelper => own_helper::many(Mask::one(target), call),
        }
    })
}

/// smp_call_function_single_async(): `target` runs the function, by a record of the caller's. Of the layers with lock-free
/// inboxes.
pub(crate) fn single_async(target: usize, record: &'static CallSingle, function: Function) -> Result<(), CallError> {
    numbered(CallShape::SINGLE, function, false, |call| llist::single_async(target, record, call))
}

/// A word that is 0 while a vCPU's inbox is empty. Of the layers with lock-free inboxes.
pub(crate) fn newest(target: usize) -> &'static AtomicU32 {
    root().call.stacks.get(target).newest()
}

/// smp_call_function_many(): the online members of `mask`, but for the caller, run the function.
pub fn many(mask: Mask, function: Function, wait: bool) -> Result<(), CallError> {
    numbered(CallShape::MANY, function, wait, |call| {
        let targets = mask.and(online()).without(this::vcpu());
        match layer() {
            Layer::Kmalloc => kmalloc::many(targets, call),
            Layer::PercpuLock => percpu_lock::many(targets, call),
            Layer::Lockless => lockless::many(targets, call),
            Layer::UnlockFirst => unlock_first::many(targets, call),
            Layer::Llist => llist::many(targets, call),
            Layer::OwnHelper => own_helper::many(targets, call),
        }
    })
}

/// smp_call_function_many() with a mask that others change meanwhile. Of `percpu-lockless`.
pub(crate) fn many_of(mask: &SharedMask, function: Function, wait: bool) -> Result<(), CallError> {
    numbered(CallShape::MANY, function, wait, |call| lockless::many_of(mask, call))
}

/// smp_call_function_many() without its short cut for a single target. Of `percpu-lockless`.
pub(crate) fn broadcast(targets: Mask, function: Function, wait: bool) -> Result<(), CallError> {
    numbered(CallShape::MANY, function, wait, |call| {
        lockless::broadcast(targets, call);
        Ok(())
    })
}

/// The interrupt of a multi-target call whose target has been through the list already, on that of another. Of `percpu-lockless`.
pub(crate) fn interrupt_once_more(target: usize) {
    stallbench_rt::apic::send(target, vector::CALL_FUNCTION);
}

/// A vCPU's own record for multi-target calls. Of the layers that have one.
pub(crate) fn own_many(vcpu: usize) -> &'static CallMany {
    root().call.many.get(vcpu)
}

/// smp_call_function(): all online vCPUs but the caller run the function.
pub fn all(function: Function, wait: bool) -> Result<(), CallError> {
    many(online(), function, wait)
}

/// vCPUs that interrupts can be sent to.
pub fn online() -> Mask {
    arena::root().online.get()
}

/// The online vCPUs but this one.
pub fn others() -> Mask {
    online().without(this::vcpu())
}

/// Makes a call with a number, so that events and waits can name it.
fn numbered(
    shape: CallShape,
    function: Function,
    wait: bool,
    make: impl FnOnce(Call) -> Result<(), CallError>,
) -> Result<(), CallError> {
    let call = Call { function, wait, number: event::next_call() };
    event::record(EventKind::CALL, u32::from(wait) | shape.0 << 8, call.number, function.run as usize as u64);
    let outer = this::set_current_call(CurrentCall { number: call.number, asynchronous: u64::from(!wait) });
    let result = make(call);
    this::set_current_call(outer);
    event::record(EventKind::CALL_RETURN, u32::from(result.is_err()), call.number, 0);
    result
}

/// Runs `work` with interrupts off.
fn with_interrupts_off(work: impl FnOnce()) {
    let were = cpu::disable_interrupts();
    work();
    cpu::restore_interrupts(were);
}
