//! Subject `call`: asynchronous and synchronous calls whose callback does, or does not, need its caller.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::{ALLOC, CALLEE, CALLS, FLIP, INITIATOR, TARGET, WAIT, alloc, answer, callee, flip, target};
use stallbench_abi::vcpu::Until;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::{self, Condition};
use stallbench_rt::{boot, cpu, declare_site, this, wait_until, words};

use super::{case, count_down};
use crate::call::{self, CallError, Function};
use crate::pool;
use crate::root::root;

case!(
    PLAIN,
    "plain",
    "one call; its callback waits for a word that the caller writes once the call has returned",
    [CALL, ARCH, ALLOC, ALLOC_SITE, APIC, FENCE, SPIN, INITIATOR, WAIT, TARGET, CALLEE, FLIP, BOUND],
    plain
);

case!(
    NESTED,
    "nested",
    "calls in a row; the callback of the first waits for a word that the caller writes once the last has returned",
    [CALL, ARCH, ALLOC, ALLOC_SITE, APIC, FENCE, SPIN, INITIATOR, CALLEE, CALLS, FLIP],
    nested
);

fn plain() {
    if !this::is_initiator() {
        return;
    }
    if boot::word(&FLIP) == flip::FALSE_WAIT {
        claim_a_wait();
    }
    hold_pool();
    let words = &root().case;
    name_words();
    words.left.store(targets().count(), Ordering::Relaxed);
    let result = make_call(callback(&words.left));
    if boot::word(&TARGET) == target::OFFLINE {
        assert!(result == Err(CallError::Offline), "a call to an offline vCPU gave {result:?}");
        return;
    }
    if let Err(error) = result {
        panic!("a call failed: {error:?}");
    }
    words.go.store(1, Ordering::Release);
    wait_for_callbacks(&words.left, targets());
}

/// The vCPUs that run the callback.
fn targets() -> Mask {
    let others = call::others();
    match boot::word(&TARGET) {
        target::SINGLE => others.first().map_or(Mask::default(), Mask::one),
        target::MANY => others.without(last_of(others)),
        target::SELF => Mask::one(this::vcpu()),
        target::OFFLINE => Mask::default(),
        _ => others,
    }
}

/// The highest of them; where there is one alone, a number that is none of them.
fn last_of(mask: Mask) -> usize {
    if mask.count() < 2 { boot::vcpus() } else { mask.iter().last().unwrap_or(0) }
}

fn make_call(function: Function) -> Result<(), CallError> {
    let wait = boot::word(&WAIT) == answer::YES;
    match boot::word(&TARGET) {
        // Where there is no other vCPU there is nobody to call.
        target::SINGLE => targets().first().map_or(Ok(()), |target| call::single(target, function, wait)),
        target::MANY => call::many(targets(), function, wait),
        target::SELF => call::single(this::vcpu(), function, wait),
        target::OFFLINE => call::single(boot::vcpus() - 1, function, wait),
        _ => call::all(function, wait),
    }
}

fn nested() {
    if !this::is_initiator() {
        return;
    }
    hold_pool();
    let words = &root().case;
    name_words();
    let others = call::others();
    let later = boot::knob(&CALLS) as u32 - 1;
    words.left_before.store(others.count(), Ordering::Relaxed);
    words.left.store(later * others.count(), Ordering::Relaxed);
    expect_ok(call::all(callback(&words.left_before), false));
    for _ in 0..later {
        expect_ok(call::all(Function { run: ends, info: address(&words.left) }, false));
    }
    words.go.store(1, Ordering::Release);
    wait_for_callbacks(&words.left_before, others);
    wait_for_callbacks(&words.left, others);
}

fn expect_ok(result: Result<(), CallError>) {
    assert!(result.is_ok(), "a call failed: {result:?}");
}

fn name_words() {
    words::name("go", &root().case.go);
    words::name("left", &root().case.left);
}

fn address(word: &AtomicU32) -> u64 {
    core::ptr::from_ref(word) as u64
}

/// The callback that the scenario asks for; it takes one off `left` when it ends.
fn callback(left: &AtomicU32) -> Function {
    let needs_caller = boot::word(&CALLEE) == callee::NEEDS_CALLER;
    Function { run: if needs_caller { needs_its_caller } else { ends }, info: address(left) }
}

declare_site!(GO, "callback", "", "go", GATE);

/// Waits for a word that the caller writes behind the call.
fn needs_its_caller(left: u64) {
    let initiator = Mask::one(boot::knob(&INITIATOR) as usize);
    wait_until!(GO, Condition::of(&root().case.go, 1).any(initiator), equal);
    ends(left);
}

fn ends(left: u64) {
    // SAFETY: the address of a word of `Words`, which is static.
    count_down(unsafe { &*(left as *const AtomicU32) });
}

fn wait_for_callbacks(left: &AtomicU32, targets: Mask) {
    wait_until!("caller", "", "callbacks left", COUNT, Condition::of(left, 0).count(targets), equal);
}

/// `alloc=pool:K`: K calls whose records are not back when the case begins.
///
/// The record of a multi-target call comes back after a grace period, which cannot end before this vCPU idles: so the pool is
/// empty. That of a single-target call comes back with its callback, and a call to one other vCPU is one: then the pool is
/// whole again, and this waits until it is, so that the two pictures do not depend on chance.
pub(crate) fn hold_pool() {
    if boot::word(&ALLOC) != alloc::POOL || !crate::call::allocates() {
        return;
    }
    let others = call::others();
    let left = &root().case.left_before;
    for _ in 0..boot::word_number(&ALLOC) {
        left.store(others.count(), Ordering::Relaxed);
        expect_ok(call::all(Function { run: ends, info: address(left) }, false));
        wait_for_callbacks(left, others);
        if others.count() == 1 {
            let back = Condition::of(pool::held(), 0).any(others);
            wait_until!("hold_pool", "", "records held", COUNT, back, equal);
        }
    }
}

/// `flip=false-wait`: says that it waits at a site where it is not, and never comes back.
fn claim_a_wait() -> ! {
    let condition = Condition::of(&root().case.go, 1).any(call::others());
    wait::publish(core::ptr::from_ref(&GO) as u64, &condition, Until::EQUAL, false);
    loop {
        cpu::relax();
    }
}
