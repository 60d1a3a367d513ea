//! What a machine was found to be, and what a guest program says about itself, as plain data.
//!
//! No KVM, no threads, no unsafe code: everything here builds and can be tested on a machine without `/dev/kvm`. `core` fills
//! these types, `stall` and `runner` read them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`machine`] | the captured state of each vCPU: registers, local APIC, pending events |
//! | [`apic`] | the registers of a local APIC |
//! | [`msr`] | the model-specific registers that a capture reads, by name |
//! | [`mtrr`] | memory type range registers: values, validity, the types that memory has |
//! | [`memory`] | reading guest memory |
//! | [`paging`] | from linear to guest-physical addresses |
//! | [`published`] | what the vCPUs publish about themselves, read from guest memory |
//! | [`program`] | a guest's ELF file: cases, wait sites, symbols |
//! | [`certificate`] | proofs that a machine makes no progress any more |
//! | [`dump`] | one machine at one moment in one file |
//! | [`host`] | the fingerprint of the KVM host |
#![forbid(unsafe_code)]

pub mod apic;
pub mod certificate;
pub mod dump;
pub mod host;
pub mod machine;
pub mod memory;
pub mod msr;
pub mod mtrr;
pub mod paging;
pub mod program;
pub mod published;
