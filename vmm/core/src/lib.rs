//! A minimal multi-vCPU VMM on KVM, as a library.
//!
//! It makes a machine, boots a guest that keeps the contract of `stallbench-abi` or a plain one that keeps none, runs one thread
//! a vCPU, stops all of them on demand and captures their state. It knows no scenario, no stall and no report: whoever drives a machine
//! pulls its state through [`Machine`] and is told of doorbells and faults by [`Machine::next_event`].
//!
//! | module | what it owns | thread |
//! |---|---|---|
//! | [`host`] | `/dev/kvm`, what it can do, the host's fingerprint | any |
//! | [`controlled`] | a machine of which every step is the caller's to take | creator's |
//! | [`cpuid`] | the CPUID model that every guest sees on every host | any |
//! | [`memory`] | guest memory and its KVM slots | any |
//! | `boot` | what lies in memory and in registers before the first instruction | creator's |
//! | [`machine`] | a machine from creation to its end; stopping all vCPUs | creator's |
//! | [`event`] | what vCPUs tell the outside | both |
//! | [`observe`] | being told of accesses and instructions as they happen | the vCPU's |
//! | [`stop`] | where a machine stops by itself | both |
//! | [`watch`] | who last wrote chosen words | the vCPU's |
//! | [`probe`] | questions that no capability answers, asked by tiny guests | caller's |
//! | `serial` | the serial port of a plain guest | the vCPUs' |
//! | `breakpoint` | the breakpoints of a processor | any |
//! | `statistics` | what KVM counts of each vCPU | any |
//! | `board` | orders to all vCPUs' threads, and their answers | both |
//! | `floor` | whose turn it is to step | the vCPUs' |
//! | `kick`, `flag` | getting a vCPU out of `KVM_RUN` | both |
//! | `vcpu` | the loop of a vCPU's thread, its exits, its capture | the vCPU's |

pub mod controlled;
pub mod cpuid;
pub mod event;
pub mod host;
pub mod machine;
pub mod memory;
mod mmu;
pub mod observe;
pub mod probe;
pub mod stop;
pub mod watch;

mod board;
mod boot;
mod breakpoint;
mod clock;
mod flag;
mod floor;
mod kick;
#[cfg(test)]
#[path = "../../../tests/real_kvm.rs"]
mod real_kvm;
#[cfg(test)]
mod sample;
mod serial;
mod statistics;
mod vcpu;

pub use board::Capture;
pub use boot::image::ImageError;
pub use boot::plain::{MOST_MEMORY, taken};
pub use clock::process_cpu_time;
pub use event::{Fault, MachineEvent};
pub use host::{HostError, HostKvm, remedy_of_exhaustion};
pub use kick::KickCounters;
pub use machine::{
    CreateError, Machine, MachineConfig, PauseError, Paused, PlainConfig, ResumeError, StartError, VcpuError,
    VisitError,
};
pub use mmu::make_room;
pub use serial::Console;
pub use statistics::Counts;
pub use stop::{Hit, StopError, Stops, Watched};
pub use vcpu::kept::Keep;
pub use vcpu::visit::{StepError, Visited, Visitor};
