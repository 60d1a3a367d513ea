//! MTRRs: programming one processor's registers, and the rendezvous in which all do it at once (Linux until 2.6.35).

pub mod generic;
mod mutex;
mod rendezvous;
mod skip;

pub use mutex::Mutex;
pub use rendezvous::{REPLICATE, set_mtrr};
pub(crate) use skip::choose_global_pages;

use stallbench_abi::mtrr::WholeInput;
use stallbench_rt::lock::SpinLock;
use stallbench_rt::this;

use crate::root::root;

/// What MTRR programming shares between vCPUs.
#[repr(C)]
pub struct Shared {
    /// Held from prepare to post: CPUs that are let go at once program one after the other (`set_atomicity_lock`).
    atomicity: SpinLock,
    /// Held by an initiator for its whole rendezvous: only one set_mtrr() at a time (`mtrr_mutex`).
    mutex: Mutex,
    saved: generic::Saved,
    state: generic::State,
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
