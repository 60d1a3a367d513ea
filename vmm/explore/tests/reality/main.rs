//! What is explored against the machine itself, on this machine's /dev/kvm.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod buffers;
mod cell;
mod differential;
mod early;
mod irq;
mod litmus;
mod passages;
#[path = "../../../../tests/real_kvm.rs"]
mod real_kvm;
mod workers;

use stallbench_core::HostKvm;
