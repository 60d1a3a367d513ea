//! C34: all meet in NMIs, and one is in an NMI already: the second stays pending until it is out of the first.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::layout::vector;
use stallbench_rt::arena::SharedArray;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, boot, this, wait_until, words as names};

use super::{PEER, be_ready, case, is_fixed, others, wait_until_ready, words};
use crate::case::count_down;

case!(
    NMI_RENDEZVOUS,
    "nmi-rendezvous",
    "all vCPUs are asked by NMI to come, one of them is held in an NMI already",
    [APIC, FIX],
    run
);

/// It is to stay in its NMI.
const STAY: u32 = 1;
/// It is to come to the rendezvous: a bit of the mask of those that are asked.
const COME: u32 = 2;
/// It may leave the NMI in which it stays.
const LEAVE: u32 = 4;

#[repr(C)]
pub(super) struct Words {
    /// What each vCPU is asked for.
    asked: SharedArray<AtomicU32>,
    /// 1 once a vCPU stays in its NMI.
    stays: AtomicU32,
    /// 1 once a vCPU has come, for each.
    came: SharedArray<AtomicU32>,
}

impl Words {
    pub(super) fn place(&self) {
        self.asked.place(boot::vcpus());
        self.came.place(boot::vcpus());
    }
}

fn asked(vcpu: usize) -> &'static AtomicU32 {
    words().nmi.asked.get(vcpu)
}

fn run() {
    this::set_handler(vector::NMI, nmi);
    if !this::is_initiator() {
        return be_ready();
    }
    names::name("missing", &words().missing);
    wait_until_ready();
    words().missing.store(others().count(), Ordering::SeqCst);
    hold_sibling();
    stop_machine_nmi();
    asked(PEER).fetch_or(LEAVE, Ordering::SeqCst);
    let out = Condition::of(&words().nmi.stays, 0).any(Mask::one(PEER));
    wait_until!("release_sibling", "", "sibling in its NMI", GATE, out, equal);
}

/// Has one vCPU stay in an NMI until it is told to leave.
fn hold_sibling() {
    ask(PEER, STAY);
    let stays = Condition::of(&words().nmi.stays, 1).any(Mask::one(PEER));
    wait_until!("hold_sibling", "", "sibling in its NMI", GATE, stays, equal);
}

/// Asks every other vCPU to come and waits until each has.
fn stop_machine_nmi() {
    others().iter().for_each(|vcpu| ask(vcpu, COME));
    for vcpu in others().iter() {
        let came = Condition::of(words().nmi.came.get(vcpu), 1).any(Mask::one(vcpu));
        wait_until!("stop_machine_nmi", "", "arrival", ACCEPTANCE, came, equal);
    }
}

fn ask(vcpu: usize, what: u32) {
    asked(vcpu).fetch_or(what, Ordering::SeqCst);
    apic::send_nmi(vcpu);
}

/// The handler: does what this vCPU is asked for, if anything. It may have done so already, in the NMI before.
fn nmi() {
    if is_asked(COME) {
        come();
    }
    if is_asked(STAY) {
        words().nmi.stays.store(1, Ordering::SeqCst);
        stay();
        words().nmi.stays.store(0, Ordering::SeqCst);
    }
}

/// Whether this vCPU is asked for it, which it is no more then.
fn is_asked(what: u32) -> bool {
    asked(this::vcpu()).fetch_and(!what, Ordering::SeqCst) & what != 0
}

fn come() {
    words().nmi.came.get(this::vcpu()).store(1, Ordering::SeqCst);
    count_down(&words().missing);
}

/// Waits in the NMI. The fix is that it looks at what it is asked for there too, instead of waiting for an NMI that tells it.
fn stay() {
    let heeds = if is_fixed() { LEAVE | COME } else { LEAVE };
    while asked(this::vcpu()).load(Ordering::SeqCst) & LEAVE == 0 {
        let told = Condition::of(asked(this::vcpu()), 0).bits(heeds).any(Mask::one(0));
        wait_until!("stay", "", "leave to go", GATE, told, different);
        if is_fixed() && is_asked(COME) {
            come();
        }
    }
}
