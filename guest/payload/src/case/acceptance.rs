//! Subject `acceptance`: interrupts that are sent and not taken, and vCPUs that are counted and do not come. A file a pattern.
//!
//! vCPU 0 begins, and vCPU 1 is the one that it meets; the others are there, and do what the protocol has them do.

mod bring_up;
mod dying_cpu;
mod early_done;
mod init_again;
mod lock_and_call;
mod monarch;
mod mutual_calls;
mod nmi_rendezvous;
mod ring;

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::{FIX, SIPIS, answer, sipis};
use stallbench_rt::lock::SpinLock;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, arena, boot, cpu, this, wait_until, words as names};

use super::case;
use crate::call::{self, CallError};
use crate::root::root;

/// The vCPU that the initiator, vCPU 0, meets.
const PEER: usize = 1;

/// Words that these cases share between vCPUs.
#[repr(C)]
pub(crate) struct Words {
    /// The lock of `lock-and-call`; in `dying-cpu` what stop_machine() is for.
    lock: SpinLock,
    /// Callbacks that have run.
    ran: AtomicU32,
    /// vCPUs that are where the case wants them when it begins.
    ready: AtomicU32,
    /// 1 when the dead vCPU may come back.
    revived: AtomicU32,
    /// 1 once it has come back.
    back: AtomicU32,
    /// Members of a rendezvous that have still to come.
    missing: AtomicU32,
    /// 1 when they may go.
    gate: AtomicU32,
    /// 1 if the monarch has given up waiting for them.
    timed_out: AtomicU32,
    /// Members that have still to be through with it.
    inside: AtomicU32,
    /// The vCPU that has the token, plus one.
    token: AtomicU32,
    nmi: nmi_rendezvous::Words,
}

impl Words {
    pub(crate) fn place(&self) {
        self.nmi.place();
        if boot::word(&SIPIS) == sipis::ONE {
            // The wait that may never end comes before any case.
            names::name("missing", &arena::root().missing);
        }
    }
}

fn words() -> &'static Words {
    &root().acceptance
}

/// Whether the pattern's historical fix is in.
fn is_fixed() -> bool {
    boot::word(&FIX) == answer::YES
}

fn expect_ok(result: Result<(), CallError>) {
    assert!(result.is_ok(), "a call failed: {result:?}");
}

/// A callback that counts itself.
fn count(_info: u64) {
    words().ran.fetch_add(1, Ordering::SeqCst);
}

/// This vCPU is where the case wants it.
fn be_ready() {
    words().ready.fetch_add(1, Ordering::SeqCst);
}

/// Waits until all others are where the case wants them.
fn wait_until_ready() {
    let others = all().without(this::vcpu());
    let ready = Condition::of(&words().ready, others.count()).count(others);
    wait_until!("begin", "", "vCPUs ready", COUNT, ready, equal);
}

/// All vCPUs, online or not.
fn all() -> Mask {
    let mut all = Mask::default();
    (0..boot::vcpus()).for_each(|vcpu| all.insert(vcpu));
    all
}

/// play_dead(): this vCPU halts with interrupts off, for good as far as anybody else knows. Interrupts are off already.
///
/// Only a run in which nothing stalls ends it ([`revive`]), since a run is over when all vCPUs rest, and this is no rest.
fn play_dead() {
    cpu::halt_until_set(&words().revived);
    words().back.store(1, Ordering::SeqCst);
}

/// Has the dead vCPU come back, as hlt_play_dead() of Linux is woken: by an NMI, and a word that says what it means.
fn revive() {
    words().revived.store(1, Ordering::SeqCst);
    apic::send_nmi(PEER);
    wait_until!("revive", "", "vCPU back", BRING_UP, Condition::of(&words().back, 1).any(Mask::one(PEER)), equal);
}

/// This vCPU is offline from here on: no call goes to it.
fn go_offline() {
    arena::root().online.remove(this::vcpu());
}

/// The others that are online.
fn others() -> Mask {
    call::others()
}
