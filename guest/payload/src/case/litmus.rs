//! Subject `litmus`: the tests by which memory models are told apart, a thread a vCPU.
//!
//! The tests are those of Owens, Sarkar and Sewell (A Better x86 Memory Model: x86-TSO, 2009) and of herdtools7, by their names there.
//! What a thread has read is in shared words at its end.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use stallbench_abi::knob::{FENCES, LITMUS, fences, litmus};
use stallbench_rt::{boot, this, words};

use super::case;
use crate::root::root;

case!(
    LITMUS_TEST,
    "litmus",
    "each vCPU does the few loads and stores of a thread of a litmus test, and says what it read",
    [LITMUS, FENCES],
    run
);

/// What the case shares: each word in a word of 8 bytes of its own.
#[repr(C)]
pub(crate) struct Words {
    memory: [Spaced; 2],
    read: [Spaced; 4],
    /// What locked instructions in the place of fences exchange.
    unused: Spaced,
}

#[repr(C, align(8))]
struct Spaced(AtomicU32);

/// A step of a thread.
#[derive(Clone, Copy)]
enum Step {
    /// Stores a number to a word.
    Store(usize, u32),
    /// Loads a word; which of those that were read it becomes.
    Load(usize, usize),
    /// What the knob says.
    Fence,
}

use Step::{Fence, Load, Store};

const X: usize = 0;
const Y: usize = 1;

const STORE_BUFFERING: &[&[Step]] = &[&[Store(X, 1), Fence, Load(Y, 0)], &[Store(Y, 1), Fence, Load(X, 1)]];
const MESSAGE_PASSING: &[&[Step]] = &[&[Store(X, 1), Fence, Store(Y, 1)], &[Load(Y, 0), Fence, Load(X, 1)]];
const LOAD_BUFFERING: &[&[Step]] = &[&[Load(X, 0), Fence, Store(Y, 1)], &[Load(Y, 1), Fence, Store(X, 1)]];
const S: &[&[Step]] = &[&[Store(X, 2), Fence, Store(Y, 1)], &[Load(Y, 0), Fence, Store(X, 1)]];
const R: &[&[Step]] = &[&[Store(X, 1), Fence, Store(Y, 1)], &[Store(Y, 2), Fence, Load(X, 0)]];
const TWO_AND_TWO_WRITES: &[&[Step]] = &[&[Store(X, 1), Fence, Store(Y, 2)], &[Store(Y, 1), Fence, Store(X, 2)]];
const READS_OF_WRITES: &[&[Step]] =
    &[&[Store(X, 1)], &[Store(Y, 1)], &[Load(X, 0), Fence, Load(Y, 1)], &[Load(Y, 2), Fence, Load(X, 3)]];
const FORWARDING: &[&[Step]] =
    &[&[Store(X, 1), Load(X, 0), Fence, Load(Y, 1)], &[Store(Y, 1), Load(Y, 2), Fence, Load(X, 3)]];

fn threads() -> &'static [&'static [Step]] {
    match boot::word(&LITMUS) {
        litmus::SB => STORE_BUFFERING,
        litmus::MP => MESSAGE_PASSING,
        litmus::LB => LOAD_BUFFERING,
        litmus::S => S,
        litmus::R => R,
        litmus::TWO_PLUS_TWO_W => TWO_AND_TWO_WRITES,
        litmus::IRIW => READS_OF_WRITES,
        _ => FORWARDING,
    }
}

fn run() {
    let shared = &root().litmus;
    if this::is_initiator() {
        let names = ["x", "y", "r0", "r1", "r2", "r3"];
        names.iter().zip(shared.memory.iter().chain(&shared.read)).for_each(|(name, word)| words::name(name, &word.0));
    }
    let Some(thread) = threads().get(this::vcpu()) else { return };
    let mut read = [None; 4];
    for step in *thread {
        match *step {
            Store(word, value) => store(&shared.memory[word].0, value),
            Load(word, which) => read[which] = Some(shared.memory[word].0.load(Ordering::Relaxed)),
            Fence => fence(&shared.unused.0),
        }
        compiler_fence(Ordering::SeqCst);
    }
    for (word, value) in shared.read.iter().zip(read) {
        value.into_iter().for_each(|value| word.0.store(value, Ordering::Relaxed));
    }
}

/// A plain store, or by XCHG, which is locked (SDM 3A 9.1.2.2).
fn store(word: &AtomicU32, value: u32) {
    if boot::word(&FENCES) == fences::XCHG {
        word.swap(value, Ordering::SeqCst);
    } else {
        word.store(value, Ordering::Relaxed);
    }
}

fn fence(unused: &AtomicU32) {
    match boot::word(&FENCES) {
        // SAFETY: orders memory accesses, nothing else.
        fences::MFENCE => unsafe { asm!("mfence", options(nostack, preserves_flags)) },
        // SAFETY: a locked instruction that leaves the word on top of the stack as it is.
        fences::LOCK => unsafe { asm!("lock or dword ptr [rsp], 0") },
        fences::LOCK_SHARED => _ = unused.swap(1, Ordering::SeqCst),
        _ => {}
    }
}
