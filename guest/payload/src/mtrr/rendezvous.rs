//! set_mtrr() and ipi_handler(): all processors meet, program, and part (arch/x86/kernel/cpu/mtrr/main.c until 2.6.35).
//!
//! ```text
//! initiator                                        every other (ipi_handler, in its interrupt)
//!  A0 count = N-1, gate = 0
//!  A1 smp_call_function(ipi_handler, wait=0)
//!  A2 interrupts off                                B1 interrupts off
//!  A3 wait for count == 0             <----------   B2 count -= 1
//!  A4 count = N-1, gate = 1           ---------->   B3 wait for gate == 1
//!  A5 program                                       B4 program
//!  A6 wait for count == 0             <----------   B5 count -= 1
//!  A7 count = N-1, gate = 0           ---------->   B6 wait for gate == 0
//!  A8 wait for count == 0             <----------   B7 count -= 1: the record is not touched behind it
//!  A9 interrupts as before, return                  B8 interrupts as before
//! ```
//!
//! The record lies on the initiator's stack, which is why the third handshake is there. A1 has to return before the others can
//! go on: the call's wait argument is 0, and everything depends on that being so.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use stallbench_abi::knob::{flip, skip};
use stallbench_rt::arena::Held;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{arena, irq_off, pause_point, procedure, this, wait_until, words};

use super::generic::{self, Range};
use super::skip::{self as skipped, is_last_target};
use crate::call::{self, Function};
use crate::flip as flips;

/// The register number that stands for the initiator's whole state (`~0U`).
pub const REPLICATE: u32 = !0;

/// `set_mtrr_data`: the record of the rendezvous.
#[derive(Debug)]
#[repr(C)]
struct Rendezvous {
    count: AtomicU32,
    gate: AtomicU32,
    register: AtomicU32,
    /// 1 where there is a third handshake.
    third_handshake: AtomicU32,
    base: AtomicU64,
    size: AtomicU64,
    memory_type: AtomicU64,
    initiator: AtomicU64,
}

// SAFETY: atomics, valid when zero.
unsafe impl arena::Shared for Rendezvous {}

impl Rendezvous {
    fn range(&self) -> Range {
        Range {
            register: self.register.load(Ordering::Relaxed),
            base: self.base.load(Ordering::Relaxed),
            size: self.size.load(Ordering::Relaxed),
            memory_type: self.memory_type.load(Ordering::Relaxed),
        }
    }

    fn fill(&self, range: Range) {
        self.register.store(range.register, Ordering::Relaxed);
        self.base.store(range.base, Ordering::Relaxed);
        self.size.store(range.size, Ordering::Relaxed);
        self.memory_type.store(range.memory_type, Ordering::Relaxed);
        self.initiator.store(this::vcpu() as u64, Ordering::Relaxed);
    }

    /// Sets the count for the next handshake, and the gate behind it: wmb() in the original, the order of stores on x86.
    fn open(&self, count: u32, gate: u32) {
        self.count.store(count, Ordering::Release);
        self.gate.store(gate, Ordering::Release);
    }

    fn all_came(&self, others: Mask) -> Condition {
        Condition::of(&self.count, 0).count(others).record(core::ptr::from_ref(self) as u64, 0)
    }

    fn gate_is(held: &Held<Self>, value: u32) -> Condition {
        let initiator = Mask::one(held.initiator.load(Ordering::Relaxed) as usize);
        Condition::of(&held.gate, value).any(initiator).held(held)
    }

    fn come(&self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        this::progress();
    }
}

/// What of the rendezvous there is, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// The vCPUs that are called.
    pub called: Mask,
    /// The vCPUs that are waited for. The original counts the CPUs that are booting and calls those that are online.
    pub counted: Mask,
    /// Whether there is the third handshake (A8, B7).
    pub third_handshake: bool,
}

/// set_mtrr(): programs a range on all processors, or replicates the initiator's state ([`REPLICATE`]).
pub fn set_mtrr(range: Range) {
    set_mtrr_by(range, Steps { called: call::others(), counted: call::others(), third_handshake: true });
}

/// As [`set_mtrr`], by these steps alone.
pub fn set_mtrr_by(range: Range, steps: Steps) {
    pause_point!("set_mtrr/begin");
    let others = steps.counted;
    let count = others.count();
    let data = arena::on_stack::<Rendezvous>("set_mtrr");
    words::name("count", &data.count);
    words::name("gate", &data.gate);
    data.fill(range);
    data.third_handshake.store(u32::from(steps.third_handshake), Ordering::Relaxed);
    data.open(count, 0);
    let function = Function { run: ipi_handler, info: data.reference() };
    if call::many(steps.called, function, false).is_err() {
        panic!("mtrr: timed out waiting for other CPUs");
    }
    pause_point!("set_mtrr/A1");
    procedure::enter();
    let section = irq_off::begun("set_mtrr", skipped::disable_interrupts());
    this::enter_rendezvous();
    wait_until!("set_mtrr", "A3", "count", COUNT, data.all_came(others), equal);
    if flips::is(flip::NO_GATE_STORE) {
        data.count.store(count, Ordering::Release);
    } else {
        data.open(count, 1);
    }
    if range.register != REPLICATE {
        generic::set(range, false);
    }
    wait_until!("set_mtrr", "A6", "count", COUNT, data.all_came(others), equal);
    data.open(count, 0);
    if steps.third_handshake {
        wait_until!("set_mtrr", "A8", "count", COUNT, data.all_came(others), equal);
    }
    this::leave_rendezvous();
    section.end();
    procedure::leave();
}

/// What every other processor runs, in its interrupt.
fn ipi_handler(info: u64) {
    // SAFETY: the initiator's record; it keeps it until A8, which waits for the last access at B7.
    let data = unsafe { Held::<Rendezvous>::of(info) };
    procedure::enter();
    let section = irq_off::begin("ipi_handler");
    this::enter_rendezvous();
    data.touch("ipi_handler B2");
    let third_handshake = data.third_handshake.load(Ordering::Relaxed) == 1;
    let early = skipped::skips(skip::BARRIER);
    if early {
        program(data.range());
    }
    data.come();
    pause_point!("ipi_handler/B2");
    wait_until!("ipi_handler", "B3", "gate", GATE, Rendezvous::gate_is(&data, 1), equal);
    data.touch("ipi_handler B3");
    if !early {
        program(data.range());
    }
    data.touch("ipi_handler B5");
    data.come();
    pause_point!("ipi_handler/B5");
    data.touch("ipi_handler B6");
    wait_until!("ipi_handler", "B6", "gate", GATE, Rendezvous::gate_is(&data, 0), equal);
    if third_handshake {
        data.touch("ipi_handler B7");
        data.come();
    }
    this::leave_rendezvous();
    section.end();
    procedure::leave();
}

fn program(range: Range) {
    let skip = is_last_target() && flips::is(flip::NO_MTRR_WRITE);
    if range.register == REPLICATE {
        generic::set_all(skip);
    } else {
        generic::set(range, skip);
    }
}
