//! Deviations from the manual's procedure (SDM 3A 12.11.8), one a run: a step that one vCPU leaves out, and no other.

use stallbench_abi::event::{EventKind, MtrrStep};
use stallbench_abi::knob::{GLOBAL_PAGES, INITIATOR, MTRR_SKIP, global_pages, skip};
use stallbench_rt::{boot, cpu, event, this};

/// Whether this vCPU leaves a step out; that it does is recorded. One load where no scenario asks for it.
#[inline(always)]
pub(super) fn skips(step: u8) -> bool {
    boot::word(&MTRR_SKIP) == step && leaves_out(step)
}

#[cold]
#[inline(never)]
fn leaves_out(step: u8) -> bool {
    // Interrupts are off in an interrupt handler anyway: only the initiator can have them on.
    let skips = if step == skip::INTERRUPTS_OFF { this::is_initiator() } else { is_last_target() };
    if skips {
        event::record(EventKind::MTRR, MtrrStep::SKIPPED.0, u64::from(step), 0);
    }
    skips
}

/// Whether this is the highest vCPU that is not the initiator: the one that a deviation concerns.
pub(super) fn is_last_target() -> bool {
    let initiator = boot::knob(&INITIATOR) as usize;
    let last = boot::vcpus() - 1;
    this::vcpu() == if initiator == last { last.saturating_sub(1) } else { last }
}

/// Step 2: interrupts off, unless it is left out.
pub(super) fn disable_interrupts() -> cpu::InterruptsWere {
    if skips(skip::INTERRUPTS_OFF) { cpu::InterruptsWere::UNTOUCHED } else { cpu::disable_interrupts() }
}

/// Switches global pages off where the scenario wants none. Each vCPU, before it comes online.
pub(crate) fn choose_global_pages() {
    if boot::word(&GLOBAL_PAGES) == global_pages::OFF {
        cpu::set_cr4(cpu::cr4() & !cpu::CR4_GLOBAL_PAGES);
    }
}
