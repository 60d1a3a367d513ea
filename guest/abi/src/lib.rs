//! The contract between the VMM and the guests that it runs.
//!
//! One definition, used by both sides: no port, address, magic or offset of the contract stands anywhere else. Everything is
//! `#[repr(C)]`, of fixed width, with its layout asserted at compile time. The guest writes these structures with plain stores
//! into its own memory, the host reads them there: observing a guest costs it no exit.
//!
//! The host treats every value that a guest wrote as untrusted data: an unknown number is shown as a number. What a guest
//! publishes is a claim that the host confirms against the machine before it counts.
//!
//! | module | what it holds |
//! |---|---|
//! | [`layout`] | guest-physical addresses, the private area of a vCPU, descriptor tables, vectors |
//! | [`boot`] | the boot block: what the host hands the guest |
//! | [`knob`] | the knobs of a case and their values, by name and number |
//! | [`vcpu`] | what each vCPU publishes: phase, progress, waits, epitaph, log |
//! | [`event`] | the event ring of a vCPU |
//! | [`shared`] | the ghost page that all vCPUs write and no guest decision reads |
//! | [`arena`] | lifetime marks of the objects that vCPUs share |
//! | [`image`] | what a payload's ELF file says about itself: version, cases, wait sites |
//! | [`mtrr`] | what cases program into MTRRs |
//! | [`programme`] | what a programme of many rendezvous programs, by its seed |
//! | [`record`] | the flags of call records, by call layer |
//! | [`pause`] | pause points, and where a scenario holds a vCPU |
//! | [`fault`] | injected faults |
//! | [`port`] | doorbells |
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod plain;

pub mod arena;
pub mod boot;
pub mod event;
pub mod fault;
pub mod image;
pub mod knob;
pub mod layout;
pub mod mtrr;
pub mod pause;
pub mod port;
pub mod programme;
pub mod record;
pub mod shared;
pub mod text;
pub mod vcpu;

pub use plain::Plain;

/// Version of this contract. A payload carries it in an ELF note ([`image::NOTE_NAME`]); the host refuses any other.
pub const VERSION: u32 = 2;
