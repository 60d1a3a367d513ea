//! Programming the MTRRs of the processor that runs this (arch/x86/kernel/cpu/mtrr/generic.c; SDM 3A 12.11.8, steps 4 to 13).

use core::sync::atomic::{AtomicU64, Ordering};

use stallbench_abi::event::{EventKind, MtrrStep};
use stallbench_abi::knob::{CACHE_LINES, MTRR_SAVED, SELF_SNOOP};
use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;
use stallbench_abi::mtrr::{RangeInput, WholeInput};
use stallbench_abi::{knob, mtrr};
use stallbench_rt::{arena, boot, cpu, event, irq_off, pause_point, procedure, this};

use super::skip::{self, skips};
use crate::root::root;

/// IA32_MTRR_PHYSBASE0; pair `n` is at `2 * n` behind it, its mask one further.
const PHYS_BASE_0: u32 = 0x200;
/// Variable ranges: VCNT of every host that the CPUID model is for.
const RANGES: u32 = 8;
/// IA32_MTRR_PHYSMASK.V.
const MASK_VALID: u64 = 1 << 11;
/// The fixed-range registers.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// IA32_PAT.
const PAT: u32 = 0x277;
/// IA32_MTRR_DEF_TYPE.
const DEFAULT_TYPE: u32 = 0x2ff;
/// E, FE and the type of IA32_MTRR_DEF_TYPE.
const DEFAULT_TYPE_FIELDS: u64 = 0xcff;

/// What prepare saves for post. Static and shared, protected by the lock that is held between them, as in the original; knob
/// `mtrr-saved` has it otherwise.
#[repr(C)]
pub(super) struct Saved {
    cr4: AtomicU64,
    default_type: AtomicU64,
}

// SAFETY: atomics, valid when zero.
unsafe impl arena::Shared for Saved {}

/// Where this processor saves.
fn saved() -> &'static Saved {
    let shared = &root().mtrr;
    if boot::word(&MTRR_SAVED) == knob::mtrr_saved::PER_CPU {
        shared.saved_per_cpu.get(this::vcpu())
    } else {
        &shared.saved
    }
}

/// Whether processors program one after the other.
fn is_locked() -> bool {
    boot::word(&MTRR_SAVED) == knob::mtrr_saved::LOCKED
}

/// One variable range.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Its number.
    pub register: u32,
    /// Its base.
    pub base: u64,
    /// Its size, a power of two; 0 clears it.
    pub size: u64,
    /// Its memory type.
    pub memory_type: u64,
}

impl From<RangeInput> for Range {
    fn from(input: RangeInput) -> Self {
        let RangeInput { base, size, register, memory_type } = input;
        Self { register, base, size, memory_type: u64::from(memory_type) }
    }
}

/// generic_set_mtrr(): programs one range. `skip` leaves the write itself out.
pub(crate) fn set(range: Range, skip: bool) {
    programmed(|| {
        if !skip {
            write_range(range);
        }
    });
}

/// Writes MTRRs as the procedure asks for.
fn programmed(write: impl FnOnce()) {
    let were = skip::disable_interrupts();
    prepare();
    write();
    post();
    cpu::restore_interrupts(were);
}

fn write_range(range: Range) {
    let base_register = PHYS_BASE_0 + 2 * range.register;
    let (base, mask) = if range.size == 0 {
        (cpu::read_msr(base_register), 0)
    } else {
        let addresses = (1u64 << MAX_PHYS_ADDR_BITS) - 1;
        (range.base | range.memory_type, !(range.size - 1) & addresses | MASK_VALID)
    };
    if range.size != 0 {
        cpu::write_msr(base_register, base);
    }
    cpu::write_msr(base_register + 1, mask);
    event::record(EventKind::MTRR, MtrrStep::RANGE.0, base, mask);
}

/// The state that set_all() replicates (`mtrr_state`), saved by the initiator before it calls the others.
#[repr(C)]
pub(super) struct State {
    /// Bases and masks, in the order of their registers.
    ranges: [AtomicU64; 2 * RANGES as usize],
    fixed: [AtomicU64; FIXED.len()],
    default_type: AtomicU64,
    pat: AtomicU64,
}

/// Programs this processor alone with the state of [`mtrr`], and saves all its registers for the others.
pub(crate) fn set_own_and_save() {
    set_alone_and_save(|| {
        let range = PHYS_BASE_0 + 2 * mtrr::RANGE as u32;
        cpu::write_msr(range, mtrr::RANGE_BASE);
        cpu::write_msr(range + 1, mtrr::RANGE_MASK);
        write_whole(&WholeInput { default_type: mtrr::DEFAULT_TYPE, fixed: mtrr::FIXED, pat: mtrr::PAT });
    });
}

/// Programs all but the variable ranges of this processor alone, and saves all its registers for the others.
pub(crate) fn set_whole_and_save(whole: &WholeInput) {
    set_alone_and_save(|| write_whole(whole));
}

/// Nobody else programs meanwhile, so the registers can be saved behind the procedure.
fn set_alone_and_save(write: impl FnOnce()) {
    procedure::enter();
    programmed(write);
    save();
    procedure::leave();
}

fn write_whole(whole: &WholeInput) {
    for (register, value) in FIXED.into_iter().zip(whole.fixed) {
        cpu::write_msr(register, value);
    }
    cpu::write_msr(PAT, whole.pat);
    set_default_type(whole.default_type);
}

/// get_mtrr_state().
fn save() {
    let state = &root().mtrr.state;
    for (register, saved) in (PHYS_BASE_0..).zip(&state.ranges) {
        saved.store(cpu::read_msr(register), Ordering::Relaxed);
    }
    for (register, saved) in FIXED.into_iter().zip(&state.fixed) {
        saved.store(cpu::read_msr(register), Ordering::Relaxed);
    }
    state.default_type.store(cpu::read_msr(DEFAULT_TYPE), Ordering::Relaxed);
    state.pat.store(cpu::read_msr(PAT), Ordering::Relaxed);
}

/// generic_set_all(): gives this processor the saved state, PAT included. `skip` leaves the writes out.
pub(crate) fn set_all(skip: bool) {
    programmed(|| {
        if !skip {
            write_all();
        }
    });
}

/// set_mtrr_state(): writes what differs, and says which classes of registers did.
fn write_all() {
    let state = &root().mtrr.state;
    let ranges =
        (PHYS_BASE_0..).zip(&state.ranges).fold(false, |any, (register, saved)| write_changed(register, saved) | any);
    let fixed =
        FIXED.into_iter().zip(&state.fixed).fold(false, |any, (register, saved)| write_changed(register, saved) | any);
    let default_type = state.default_type.load(Ordering::Relaxed);
    let changed = saved().default_type.load(Ordering::Relaxed) != default_type;
    if changed {
        set_default_type(default_type);
    }
    write_changed(PAT, &state.pat);
    let classes = u64::from(ranges) | u64::from(fixed) << 1 | u64::from(changed) << 2;
    root().mtrr.changes.fetch_or(classes as u32, Ordering::Relaxed);
    event::record(EventKind::MTRR, MtrrStep::ALL.0, classes, 0);
    pause_point!("set_mtrr_state/written");
}

fn write_changed(register: u32, saved: &AtomicU64) -> bool {
    let value = saved.load(Ordering::Relaxed);
    let differs = cpu::read_msr(register) != value;
    if differs {
        cpu::write_msr(register, value);
    }
    differs
}

/// Post writes the default type: until then the MTRRs stay off.
fn set_default_type(value: u64) {
    saved().default_type.store(value, Ordering::Relaxed);
}

/// prepare_set(): caches off and flushed, global pages off, translations flushed, MTRRs off.
fn prepare() {
    if is_locked() {
        root().mtrr.atomicity.lock();
    }
    pause_point!("prepare_set/begin");
    if !skips(knob::skip::NO_FILL) {
        cpu::set_cr0((cpu::cr0() | cpu::CR0_CACHE_DISABLE) & !cpu::CR0_NOT_WRITE_THROUGH);
    }
    pause_point!("prepare_set/caches-off");
    if !skips(knob::skip::WBINVD) {
        flush_caches();
    }
    let cr4 = cpu::cr4();
    saved().cr4.store(cr4, Ordering::Relaxed);
    if cr4 & cpu::CR4_GLOBAL_PAGES != 0 && !skips(knob::skip::PGE) {
        cpu::set_cr4(cr4 & !cpu::CR4_GLOBAL_PAGES);
    }
    if !skips(knob::skip::CR3) {
        cpu::reload_cr3();
    }
    let default_type = cpu::read_msr(DEFAULT_TYPE);
    saved().default_type.store(default_type, Ordering::Relaxed);
    pause_point!("prepare_set/saved");
    if !skips(knob::skip::DISABLE) {
        cpu::write_msr(DEFAULT_TYPE, default_type & !DEFAULT_TYPE_FIELDS);
    }
    event::record(EventKind::MTRR, MtrrStep::PREPARED.0, 0, 0);
}

/// post_set(): translations flushed, MTRRs on, translations flushed, caches on, global pages on.
///
/// The second flush is step 11 of the manual. The original has the first alone, before the MTRRs are on, and the change of
/// CR4.PGE at the end; without the second flush (`mtrr-skip=flush-after`) this is what it does.
fn post() {
    cpu::reload_cr3();
    cpu::write_msr(DEFAULT_TYPE, saved().default_type.load(Ordering::Relaxed));
    if !skips(knob::skip::FLUSH) {
        cpu::reload_cr3();
    }
    if !skips(knob::skip::CACHES_ON) {
        cpu::set_cr0(cpu::cr0() & !cpu::CR0_CACHE_DISABLE);
    }
    let cr4 = saved().cr4.load(Ordering::Relaxed);
    if cr4 & cpu::CR4_GLOBAL_PAGES != 0 && !skips(knob::skip::PGE_BACK) {
        cpu::set_cr4(cr4);
    }
    event::record(EventKind::MTRR, MtrrStep::POSTED.0, 0, 0);
    pause_point!("post_set/restored");
    if is_locked() {
        root().mtrr.atomicity.unlock();
    }
}

/// WBINVD, unless the caches of processors that share memory keep themselves current (CPUID.01H:EDX.SS): then the manual lets
/// step 5 be left out. How much it writes back, which no guest sees, is declared: a visible step a line.
fn flush_caches() {
    if boot::word(&SELF_SNOOP) == knob::answer::YES {
        return;
    }
    cpu::write_back_and_invalidate_caches();
    (0..boot::knob(&CACHE_LINES)).for_each(|_| irq_off::step());
}
