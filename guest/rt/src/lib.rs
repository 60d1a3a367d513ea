//! The ring-0 runtime of stallbench guests: from the first instruction of a vCPU to its case, and under it.
//!
//! It owns entry and bring-up, interrupt dispatch, the local APIC, the arena, wait sites, the event ring and the epitaph. It
//! knows no protocol: those are the payload's. Everything here runs in ring 0 with the page tables that the host built; what
//! vCPUs share comes from the arena, everything else is private to one of them, and the image has no writable data at all.
//!
//! No instruction outside plain integer x86-64, no time-stamp counter, no random source, no delay.
#![no_std]

pub mod apic;
pub mod arena;
pub mod boot;
pub mod bring_up;
pub mod cpu;
#[cfg(guest_image)]
mod entry;
pub mod epitaph;
pub mod event;
mod fault;
pub mod interrupt;
pub mod irq_off;
pub mod list;
pub mod lock;
pub mod log;
pub mod mask;
pub mod pause;
pub mod procedure;
pub mod this;
pub mod wait;
pub mod words;

pub use stallbench_abi as abi;
