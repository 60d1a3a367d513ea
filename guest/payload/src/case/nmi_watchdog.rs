//! Subject `nmi`: the self-test of the NMI watchdog (arch/x86/kernel/nmi.c of 2.6.28).
//!
//! The contract is that of set_mtrr(): the callback waits for a store that the caller makes after the call returns. But the
//! callback enables interrupts, so that those it holds still take other interrupts and NMIs.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use stallbench_abi::knob::INITIATOR;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, boot, cpu, this, wait_until, words};

use super::{case, hold_pool};
use crate::call::{self, Function};
use crate::root::root;

/// NMIs that each vCPU has to take: more than five, as the original asks.
const NMIS: u32 = 6;

case!(
    NMI_WATCHDOG,
    "nmi-watchdog",
    "check_nmi_watchdog(): all others spin with interrupts on while NMIs are counted, until the caller says that it is over",
    [CALL, ARCH, ALLOC, ALLOC_SITE, APIC, FENCE, SPIN, INITIATOR, FLIP],
    check_nmi_watchdog
);

fn check_nmi_watchdog() {
    if !this::is_initiator() {
        return;
    }
    hold_pool();
    let words = &root().case;
    words::name("endflag", &words.endflag);
    let busy = Function { run: nmi_cpu_busy, info: core::ptr::from_ref(&words.endflag) as u64 };
    words.left.store(call::others().count(), Ordering::Relaxed);
    if call::all(busy, false).is_err() {
        panic!("nmi: timed out waiting for other CPUs");
    }
    take_nmis();
    words.endflag.store(1, Ordering::Release);
    let ended = Condition::of(&words.left, 0).count(call::others());
    wait_until!("check_nmi_watchdog", "", "callbacks left", COUNT, ended, equal);
}

/// Stands for the performance counters that send NMIs in the original: here the caller sends them, through the ICR, and goes
/// on when the others have counted each. An NMI that comes while another is pending merges with it, so they come one at a time.
fn take_nmis() {
    let others = call::others();
    for nmi in 1..=NMIS {
        apic::send_nmi_to_all();
        for vcpu in others.iter() {
            let counted = Condition::of(root().case.nmis.get(vcpu), nmi).any(Mask::one(vcpu));
            wait_until!("check_nmi_watchdog", "", "NMIs counted", COUNT, counted, equal);
        }
    }
}

/// The NMI handler: counts, as `nmi_count(cpu)` does.
pub(super) fn count_nmi() {
    root().case.nmis.get(this::vcpu()).fetch_add(1, Ordering::SeqCst);
}

/// Enables interrupts in an interrupt handler and waits for the end of the test.
fn nmi_cpu_busy(info: u64) {
    // SAFETY: `endflag` is static, as it is since 2.6.28 (in 2005 it lay on the caller's stack).
    let endflag = unsafe { &*(info as *const AtomicU32) };
    cpu::enable_interrupts();
    fence(Ordering::SeqCst);
    let initiator = Mask::one(boot::knob(&INITIATOR) as usize);
    wait_until!("nmi_cpu_busy", "", "endflag", GATE, Condition::of(endflag, 0).any(initiator), different);
    super::count_down(&root().case.left);
}
