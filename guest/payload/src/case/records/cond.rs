//! C32: on_each_cpu_cond() allocated a mask until 2020, and without memory went to its targets one by one.
//!
//! ```text
//! on_each_cpu_cond(condition, function, wait=0)
//!   mask = allocate
//!   memory:     add each CPU of the condition to the mask; one call to the mask
//!   no memory:  for each CPU of the condition, a call to that CPU alone
//! ```
//!
//! The calls in a row come from one CPU and use its one record, which is free again only when the callback of the call before
//! has ended. So without memory wait=0 waits, and it does so only with two targets or more.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::event::{AllocSite, EventKind, Fallback};
use stallbench_abi::knob::INITIATOR;
use stallbench_rt::mask::{Mask, SharedMask};
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, event, this, wait_until, words};

use super::{address_of, is_fixed};
use crate::call::{self, Function};
use crate::case::{case, count_down};
use crate::pool;
use crate::root::root;

case!(
    EACH_COND,
    "on-each-cpu-cond",
    "an asynchronous call to all that meet a condition, with a mask that is allocated; the callbacks wait for the caller",
    [CALL, ALLOC, ALLOC_SITE, APIC, INITIATOR, FIX],
    each_cond
);

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// What the callbacks wait for.
    go: AtomicU32,
}

fn each_cond() {
    if !this::is_initiator() {
        return;
    }
    let words = &root().records;
    words::name("go", &words.cond.go);
    words::name("left", &words.left);
    words.left.store(call::others().count(), Ordering::Relaxed);
    on_each_cpu_cond(meets_condition, Function { run: needs_its_caller, info: 0 });
    words.cond.go.store(1, Ordering::Release);
    let ended = Condition::of(&words.left, 0).count(call::others());
    wait_until!("caller", "", "callbacks left", COUNT, ended, equal);
}

fn on_each_cpu_cond(condition: fn(usize) -> bool, function: Function) {
    let targets = || call::others().iter().filter(|&vcpu| condition(vcpu));
    if is_fixed() {
        // smp_call_function_many_cond(): the condition goes down to where the targets are walked, and no mask is needed.
        return call_many(targets().fold(Mask::default(), with), function);
    }
    let Some(mask) = pool::allocate::<SharedMask>(AllocSite::CPU_MASK, "cpumask") else {
        event::record(EventKind::FALLBACK, Fallback::SERIAL.0, 0, 0);
        return targets().for_each(|target| assert!(call::single(target, function, false).is_ok()));
    };
    targets().for_each(|target| mask.insert(target));
    call_many(mask.get(), function);
    pool::free(address_of(mask));
}

fn with(mut mask: Mask, vcpu: usize) -> Mask {
    mask.insert(vcpu);
    mask
}

fn call_many(targets: Mask, function: Function) {
    assert!(call::many(targets, function, false).is_ok());
}

/// The condition: here all meet it.
fn meets_condition(_vcpu: usize) -> bool {
    true
}

fn needs_its_caller(_info: u64) {
    let initiator = Mask::one(boot::knob(&INITIATOR) as usize);
    let go = Condition::of(&root().records.cond.go, 1).any(initiator);
    wait_until!("callback", "", "go", GATE, go, equal);
    count_down(&root().records.left);
}
