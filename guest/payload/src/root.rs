//! Everything that the payload shares between vCPUs, placed in the arena before the second of them is up.

use stallbench_rt::arena::{self, Shared};

use crate::{call, case, mtrr, pool, rcu};

/// The payload's root in the arena.
#[repr(C)]
pub(crate) struct Root {
    pub(crate) call: call::Shared,
    pub(crate) pool: pool::Shared,
    pub(crate) rcu: rcu::Shared,
    pub(crate) mtrr: mtrr::Shared,
    pub(crate) case: case::Words,
    pub(crate) acceptance: case::AcceptanceWords,
    pub(crate) rendezvous: case::rendezvous::Words,
    pub(crate) records: case::RecordsWords,
    pub(crate) rounds: case::RoundsWords,
    pub(crate) litmus: case::LitmusWords,
    pub(crate) interrupted: case::InterruptedWords,
}

// SAFETY: made of what is shared; zero is valid.
unsafe impl Shared for Root {}

/// Places what vCPUs share. vCPU 0, before the others are up.
pub(crate) fn place() {
    let root = arena::place_static::<Root>();
    arena::set_payload_root(root);
    root.call.place();
    root.pool.place();
    root.rcu.place();
    root.mtrr.place();
    root.case.place();
    root.acceptance.place();
    root.rendezvous.place();
    root.records.place();
}

/// Sets the handlers of this vCPU.
pub(crate) fn set_handlers() {
    call::set_handlers();
    case::set_handlers();
    mtrr::choose_global_pages();
}

/// The payload's root.
pub(crate) fn root() -> &'static Root {
    // SAFETY: `place` set it, with this type.
    unsafe { arena::payload_root() }
}
