//! Checks of a run beside its progress: the MTRRs that KVM reports, and what the events say of the wait=0 contract and of the
//! lives of shared objects.
//!
//! Pure functions over captured state and events. They judge; what their judgement makes of a verdict is
//! [`crate::execute`]'s.

pub mod cache_off;
pub mod calls;
pub mod control;
pub mod irq_off;
pub mod lifetime;
pub mod mtrr;
pub mod order;
