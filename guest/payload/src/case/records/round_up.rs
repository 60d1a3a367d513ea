//! C13: a debugger that rounds up the other CPUs, and one of them that never answered the last time.
//!
//! ```text
//! kgdb:    for each other CPU: an asynchronous call by the record of that CPU, which must be free
//!          wait for the CPUs to come, but not for ever;  the session;  let them go
//! callback: says that it came;  waits until the session is over
//! ```

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_rt::arena::SharedArray;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, cpu, this, wait_bounded, wait_until, words};

use super::is_fixed;
use crate::call::{self, CallSingle, Function};
use crate::case::case;
use crate::root::root;

case!(
    ROUND_UP,
    "round-up",
    "two sessions of a debugger that rounds up all others, while the last vCPU has its interrupts off",
    [CALL, APIC, FIX],
    round_up_case
);

/// The vCPU with the debugger.
const DEBUGGER: usize = 0;
/// Turns that the debugger waits for who does not come.
const PATIENCE: u64 = 200;

/// Shared words.
#[repr(C)]
pub(super) struct Words {
    /// The record of each vCPU.
    records: SharedArray<CallSingle>,
    /// 1 from the call to a vCPU until it comes (`kgdb_info[cpu].rounding_up`).
    rounding_up: SharedArray<AtomicU32>,
    /// vCPUs that have still to come.
    missing: AtomicU32,
    /// vCPUs that have still to leave.
    inside: AtomicU32,
    /// Sessions that are over.
    over: AtomicU32,
    /// 1 once the last vCPU has its interrupts off.
    deaf: AtomicU32,
    /// What the last vCPU waits for with its interrupts off, which comes when the debugger is done.
    device: AtomicU32,
}

impl Words {
    pub(super) fn place(&self) {
        self.records.place(boot::vcpus());
        self.rounding_up.place(boot::vcpus());
    }
}

fn words() -> &'static Words {
    &root().records.round_up
}

fn round_up_case() {
    match this::vcpu() {
        DEBUGGER => debugger(),
        me if me == stuck() => poll_device(),
        _ => {}
    }
}

/// The vCPU that takes no interrupts.
fn stuck() -> usize {
    boot::vcpus() - 1
}

/// Waits for a device with interrupts off, outside any handler.
fn poll_device() {
    bring_up::take_part();
    let were = cpu::disable_interrupts();
    words().deaf.store(1, Ordering::Release);
    let ready = Condition::of(&words().device, 1).any(Mask::one(DEBUGGER));
    wait_until!("poll_device", "", "device", GATE, ready, equal);
    cpu::restore_interrupts(were);
}

fn debugger() {
    let words = words();
    words::name("missing", &words.missing);
    words::name("csd", words.records.get(stuck()).flags());
    words::name("sessions", &words.over);
    let deaf = Condition::of(&words.deaf, 1).any(Mask::one(stuck()));
    wait_until!("debugger", "", "interrupts are off", GATE, deaf, equal);
    for _session in 0..2 {
        round_up();
        words.over.fetch_add(1, Ordering::SeqCst);
        let left = Condition::of(&words.inside, 0).count(call::others().without(stuck()));
        wait_until!("debugger", "", "CPUs inside", COUNT, left, equal);
    }
    words.device.store(1, Ordering::Release);
}

/// kgdb_roundup_cpus(), and what comes behind it: the wait for those that were called.
fn round_up() {
    let words = words();
    let others = call::others();
    words.missing.store(others.count(), Ordering::SeqCst);
    let session = u64::from(words.over.load(Ordering::Relaxed));
    for target in others.iter() {
        let rounding_up = words.rounding_up.get(target);
        if is_fixed() && rounding_up.load(Ordering::Acquire) != 0 {
            continue;
        }
        rounding_up.store(1, Ordering::SeqCst);
        let callback = Function { run: nmi_callback, info: session };
        assert!(call::single_async(target, words.records.get(target), callback).is_ok());
    }
    // Those that can come have come before the patience with the rest begins, however slow the host is.
    let came = Condition::of(&words.missing, 1).any(others.without(stuck()));
    wait_until!("debugger", "", "CPUs not rounded up", COUNT, came, equal);
    let all = Condition::of(&words.missing, 0).count(others);
    let all_came = wait_bounded!("debugger", "", "CPUs not rounded up", COUNT, all, PATIENCE);
    assert!(!all_came, "a vCPU with its interrupts off was rounded up");
}

/// kgdb_nmicallback(), in the call's interrupt.
fn nmi_callback(session: u64) {
    let words = words();
    words.rounding_up.get(this::vcpu()).store(0, Ordering::SeqCst);
    words.inside.fetch_add(1, Ordering::SeqCst);
    words.missing.fetch_sub(1, Ordering::SeqCst);
    let over = Condition::of(&words.over, session as u32).any(Mask::one(DEBUGGER));
    wait_until!("nmi_callback", "", "sessions over", GATE, over, different);
    words.inside.fetch_sub(1, Ordering::SeqCst);
}
