//! The protocol in loom, which tries every order of its steps that the memory model allows.

use loom::sync::atomic::{AtomicU8, Ordering};
use loom::sync::{Condvar, Mutex};

use super::{Cell, Requests, Words};

/// A signal that is pending, or swallowed by its handler.
#[derive(Default)]
struct Signal {
    pending: Mutex<bool>,
    arrived: Condvar,
}

impl Signal {
    fn send(&self) {
        *self.pending.lock().unwrap() = true;
        self.arrived.notify_one();
    }

    /// In user space: the handler runs, to no effect.
    fn swallow(&self) {
        *self.pending.lock().unwrap() = false;
    }

    /// In the kernel: until it arrives.
    fn wait(&self) {
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.arrived.wait(pending).unwrap();
        }
        *pending = false;
    }
}

/// A byte. The signal can be swallowed just behind each of the accesses of the vCPU's thread, and so just before the next.
struct Byte {
    byte: AtomicU8,
    signal: &'static Signal,
}

impl Cell for Byte {
    fn swap(&self, value: u8) -> u8 {
        let was = self.byte.swap(value, Ordering::AcqRel);
        self.signal.swallow();
        was
    }

    fn insert(&self, bits: u8) {
        self.byte.fetch_or(bits, Ordering::Release);
    }
}

struct Model {
    words: Words<Byte, Byte>,
    signal: &'static Signal,
}

impl Model {
    /// Leaked: where loom finds a deadlock it unwinds, and cannot bear to see its own objects dropped then.
    fn new() -> &'static Self {
        let signal: &Signal = Box::leak(Box::default());
        let byte = || Byte { byte: AtomicU8::new(0), signal };
        Box::leak(Box::new(Self { words: Words::new(byte(), byte()), signal }))
    }

    fn kick(&self, what: Requests) {
        self.words.request(what);
        self.signal.send();
    }

    /// `KVM_RUN` of a guest that never exits by itself.
    fn run(&self) {
        if self.words.immediate_exit.byte.load(Ordering::Acquire) == 0 {
            self.signal.wait();
        }
    }

    /// The loop of a vCPU's thread until it has found all of `wanted`.
    fn run_until(&self, wanted: Requests, take: impl Fn(&Words<Byte, Byte>) -> Requests) {
        let mut found = Requests::default();
        loop {
            found.0 |= take(&self.words).0;
            if found.contains(wanted) {
                return;
            }
            self.run();
        }
    }
}

/// Runs a vCPU against a kicker; loom reports a deadlock when a kick is lost.
fn explore(requests: &'static [Requests], take: fn(&Words<Byte, Byte>) -> Requests) {
    let mut orders = loom::model::Builder::new();
    // One kick is explored completely, two up to this many preemptions: enough for each of them to be torn apart.
    orders.preemption_bound = (requests.len() > 1).then_some(4);
    orders.check(move || {
        let model = Model::new();
        let wanted = Requests(requests.iter().fold(0, |all, one| all | one.0));
        let vcpu = loom::thread::spawn(move || model.run_until(wanted, take));
        for &request in requests {
            model.kick(request);
        }
        vcpu.join().unwrap();
    });
}

#[test]
fn kick_is_never_lost() {
    explore(&[Requests::ATTEND], Words::take);
}

#[test]
fn two_kicks_in_a_row_are_both_found() {
    explore(&[Requests::TURN, Requests::ATTEND], Words::take);
}

#[test]
fn kick_beside_an_access_to_complete_is_never_lost() {
    explore(&[Requests::ATTEND], |words| {
        words.hold_back();
        words.take()
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn flag_cleared_after_the_requests_loses_a_kick() {
    explore(&[Requests::ATTEND], |words| {
        let requests = Requests(words.requests.swap(0));
        words.immediate_exit.swap(0);
        requests
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn signal_without_the_flag_loses_a_kick() {
    loom::model(|| {
        let model = Model::new();
        let vcpu = loom::thread::spawn(move || model.run_until(Requests::ATTEND, Words::take));
        model.words.requests.insert(Requests::ATTEND.0);
        model.signal.send();
        vcpu.join().unwrap();
    });
}
