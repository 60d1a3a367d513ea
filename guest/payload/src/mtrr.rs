//! MTRRs: programming one processor's registers, and the rendezvous in which all do it at once (Linux until 2.6.35).

pub mod generic;
mod rendezvous;
mod skip;

pub use rendezvous::{REPLICATE, set_mtrr};
pub(crate) use skip::choose_global_pages;

use stallbench_rt::lock::SpinLock;

/// What MTRR programming shares between vCPUs.
#[repr(C)]
pub struct Shared {
    /// Held from prepare to post: CPUs that are let go at once program one after the other (`set_atomicity_lock`).
    atomicity: SpinLock,
    reserved: core::sync::atomic::AtomicU32,
    saved: generic::Saved,
    state: generic::State,
}
