//! Getting a vCPU out of `KVM_RUN` without ever losing a kick. `docs/kick-protocol.md` tells the same at more length.
//!
//! Two words per vCPU: *requests*, what its thread is to do, and *immediate_exit*, which KVM reads when it is entered. And a
//! signal, whose handler does nothing: it ends a `KVM_RUN` that is under way with EINTR. It is of no use in user space, where
//! the handler swallows it.
//!
//! ```text
//! kicker                         vCPU's thread, before each KVM_RUN
//! K1 requests |= what            V1 was = swap(immediate_exit, 0)
//! K2 immediate_exit |= 1         V2 now = swap(requests, 0); act on it
//! K3 signal                      V3 KVM_RUN: EINTR at once if immediate_exit is 1, else
//!                                            EINTR when a signal comes
//! ```
//!
//! No kick is lost. Consider K2 and V1, which write the same byte and so have an order:
//!
//! - K2 before V1: V1 reads what K2 (release) or a later kick wrote, and acquires it. K1 happened before, so V2 finds the request.
//! - V1 before K2: if the thread is not yet at V3's look at the byte, it finds 1 there and comes back at once. If it is past it, it
//!   is in the kernel when K3 arrives, and the signal ends `KVM_RUN`. Either way the next V1 comes after K2: the first case.
//!
//! With V1 and V2 exchanged, a kick whose K1 to K3 fall between them is lost: the request is set after it was looked for, the
//! flag is cleared, and the signal was swallowed in user space. K2 and V1 are read-modify-writes: they are what gives the byte one
//! order that both sides read from. A plain store in V1 could also be delayed in the store buffer past V2, to the same effect.
//!
//! A kick that is not needed any more costs one early return from `KVM_RUN`: it is counted as stale.

#[cfg(test)]
mod model;

use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::flag::ImmediateExit;

/// A byte that kickers and a vCPU's thread share; the protocol is written against this so that a model can run it.
pub(crate) trait Cell {
    /// Exchanges, with acquire and release ordering.
    fn swap(&self, value: u8) -> u8;
    /// Sets bits, with release ordering.
    fn insert(&self, bits: u8);
}

impl Cell for AtomicU8 {
    fn swap(&self, value: u8) -> u8 {
        self.swap(value, Ordering::AcqRel)
    }

    fn insert(&self, bits: u8) {
        self.fetch_or(bits, Ordering::Release);
    }
}

/// What a vCPU's thread is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests(u8);

impl Requests {
    /// Look at the orders: there is at least one.
    pub(crate) const ATTEND: Self = Self(1);
    /// Let another thread have the CPU.
    pub(crate) const TURN: Self = Self(2);

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The two words of the protocol.
#[derive(Debug)]
pub(crate) struct Words<I, R> {
    immediate_exit: I,
    requests: R,
}

impl<I: Cell, R: Cell> Words<I, R> {
    pub(crate) fn new(immediate_exit: I, requests: R) -> Self {
        Self { immediate_exit, requests }
    }

    /// Kicker, K1 and K2. The signal has to follow.
    pub(crate) fn request(&self, what: Requests) {
        self.requests.insert(what.0);
        self.immediate_exit.insert(1);
    }

    /// The vCPU's thread, V1 and V2. Until the next `KVM_RUN` it may not clear the byte again.
    pub(crate) fn take(&self) -> Requests {
        self.immediate_exit.swap(0);
        Requests(self.requests.swap(0))
    }

    /// The vCPU's thread, before a `KVM_RUN` that is only to complete an access and not to enter the guest. The byte stays set
    /// until the next [`Self::take`], so that it can overwrite no kick.
    pub(crate) fn hold_back(&self) {
        self.immediate_exit.insert(1);
    }
}

/// How often vCPUs were kicked, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KickCounters {
    /// Kicks that were sent.
    pub sent: u64,
    /// Times that a vCPU's thread found a request; two kicks in a row can be found as one.
    pub acknowledged: u64,
    /// Times that `KVM_RUN` was interrupted and no request was found.
    pub stale: u64,
}

/// In the place of a CPU time: no turn has begun.
const ASKED: u64 = u64::MAX;

/// What a vCPU's thread shares with those who kick it.
#[derive(Debug)]
pub(crate) struct Link {
    words: Words<ImmediateExit, AtomicU8>,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    stale: AtomicU64,
    /// CPU time, in ns, that the vCPU's thread had had when it last gave up the CPU; [`ASKED`] from a request to do so on.
    turn_began: AtomicU64,
    /// CPU time, in ns, that it had had when that was last read.
    ran: AtomicU64,
    /// Entries into the guest that nothing held back.
    entries: AtomicU64,
}

impl Link {
    pub(crate) fn new(immediate_exit: ImmediateExit) -> Self {
        let zero = || AtomicU64::new(0);
        let words = Words::new(immediate_exit, AtomicU8::new(0));
        Self {
            words,
            sent: zero(),
            acknowledged: zero(),
            stale: zero(),
            turn_began: zero(),
            ran: zero(),
            entries: zero(),
        }
    }

    /// Kicker: asks for something and gets the vCPU out of `KVM_RUN` (K1 to K3).
    pub(crate) fn kick<T>(&self, thread: &JoinHandle<T>, what: Requests) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.words.request(what);
        // It fails for a thread that has ended, which needs no kick.
        let _ = thread.kill(SIGRTMIN());
    }

    /// Before there is a thread: asks for something that it is to find first of all.
    pub(crate) fn ask(&self, what: Requests) {
        self.words.request(what);
    }

    /// The vCPU's thread: what it is asked to do, before `KVM_RUN`. `interrupted`: the last one ended with EINTR.
    pub(crate) fn take(&self, interrupted: bool) -> Requests {
        let requests = self.words.take();
        if !requests.is_empty() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else if interrupted {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
        requests
    }

    /// The vCPU's thread: the next `KVM_RUN` completes an access and does not enter the guest.
    pub(crate) fn hold_back(&self) {
        self.words.hold_back();
    }

    /// The vCPU's thread: counts the `KVM_RUN` that comes next, unless it would return before the guest runs.
    pub(crate) fn count_entry(&self) {
        if !self.words.immediate_exit.is_set() {
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The entries that were counted.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The vCPU's thread: a new turn begins now, at this CPU time of its own.
    pub(crate) fn begin_turn(&self, ran: Duration) {
        self.turn_began.store(nanoseconds(ran), Ordering::Relaxed);
    }

    /// Kicker: keeps the CPU time that the vCPU's thread has had.
    pub(crate) fn keep_ran(&self, ran: Duration) {
        self.ran.store(nanoseconds(ran), Ordering::Relaxed);
    }

    /// The CPU time that was kept.
    pub(crate) fn ran(&self) -> Duration {
        Duration::from_nanos(self.ran.load(Ordering::Relaxed))
    }

    /// Kicker: whether the thread has used up its turn. It says so once a turn: the thread that is then asked to give it up may
    /// not get to run, and find the request, for long.
    pub(crate) fn ends_turn(&self, turn: Duration) -> bool {
        let began = self.turn_began.load(Ordering::Relaxed);
        let over = self.ran.load(Ordering::Relaxed).saturating_sub(began) >= nanoseconds(turn);
        over && self.turn_began.compare_exchange(began, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn counters(&self) -> KickCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KickCounters { sent: read(&self.sent), acknowledged: read(&self.acknowledged), stale: read(&self.stale) }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Installs the handler of the kicks' signal, once in the process.
pub(crate) fn install_handler() {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        register_signal_handler(SIGRTMIN(), nothing)
            .expect("SIGRTMIN is a valid signal and sigaction takes any handler");
    });
}
