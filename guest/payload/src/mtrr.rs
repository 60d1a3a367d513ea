//! MTRRs: programming one processor's registers, and the rendezvous in which all do it at once (Linux until 2.6.35).

pub mod generic;
mod mutex;
mod rendezvous;
mod skip;

pub use mutex::Mutex;
pub use rendezvous::{REPLICATE, Steps, set_mtrr, set_mtrr_by};
pub(crate) use skip::choose_global_pages;

use core::sync::atomic::AtomicU32;

use stallbench_abi::mtrr::WholeInput;
use stallbench_rt::arena::SharedArray;
use stallbench_rt::lock::SpinLock;
use stallbench_rt::{boot, this, words};

use crate::root::root;

/// What MTRR programming shares between vCPUs.
#[repr(C)]
pub struct Shared {
    /// Held from prepare to post: CPUs that are let go at once program one after the other (`set_atomicity_lock`).
    atomicity: SpinLock,
    /// Held by an initiator for its whole rendezvous: only one set_mtrr() at a time (`mtrr_mutex`).
    mutex: Mutex,
    saved: generic::Saved,
    /// The same for each vCPU, as since 2022.
    saved_per_cpu: SharedArray<generic::Saved>,
    /// Classes of registers in which vCPUs differed from what they were given (`smp_changes_mask`).
    changes: AtomicU32,
    reserved: AtomicU32,
    state: generic::State,
}

impl Shared {
    pub(crate) fn place(&self) {
        self.saved_per_cpu.place(boot::vcpus());
    }
}

/// Names the word that says what vCPUs had to change.
pub(crate) fn name_changes() {
    words::name("smp_changes", &root().mtrr.changes);
}

/// `mtrr_mutex`.
pub fn mutex() -> &'static Mutex {
    &root().mtrr.mutex
}

/// Programs all but the variable ranges of this vCPU, as its firmware would have, and replicates its state on all others.
pub fn replicate(whole: &WholeInput) {
    this::set_up(|| generic::set_whole_and_save(whole));
    set_mtrr(generic::Range { register: REPLICATE, base: 0, size: 0, memory_type: 0 });
}
