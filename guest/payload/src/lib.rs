//! The built-in cases, and the protocols that they use.
//!
//! | module | what it holds |
//! |---|---|
//! | [`call`] | the call layers: implementations of smp_call_function() from 2.6.28 to today |
//! | [`mtrr`] | set_mtrr() and its rendezvous, and the programming of the registers |
//! | [`pool`] | the allocator of call records, with injected failure |
//! | [`rcu`] | call_rcu() and its grace period |
//! | [`case`] | the cases, one file a subject |
//!
//! The names are those of Linux where the code is: who knows the original finds its way. The code is our own.
#![no_std]

pub mod call;
pub mod case;
pub mod flip;
pub mod mtrr;
pub mod pool;
pub mod rcu;
mod root;

use stallbench_abi::image::{NOTE_TYPE, Note};
use stallbench_abi::knob::{self, target};
use stallbench_rt::boot;
use stallbench_rt::bring_up::Payload;

/// What this payload does on each vCPU.
pub static PAYLOAD: Payload =
    Payload { place: root::place, handlers: root::set_handlers, online, case: case::run, idle: rcu::idle };

/// Whether interrupts can be sent to a vCPU: all but the last, where a scenario asks for an offline target.
fn online(vcpu: usize) -> bool {
    let last_is_offline = boot::word(&knob::TARGET) == target::OFFLINE;
    !(last_is_offline && vcpu == boot::vcpus() - 1)
}

/// An ELF note: sizes of name and descriptor, type, name (padded to 4 bytes), descriptor.
#[repr(C)]
struct VersionNote {
    name_size: u32,
    descriptor_size: u32,
    note_type: u32,
    name: [u8; 12],
    descriptor: Note,
}

#[used]
#[cfg_attr(guest_image, unsafe(link_section = ".note.stallbench"))]
static VERSION_NOTE: VersionNote = VersionNote {
    name_size: stallbench_abi::image::NOTE_NAME.len() as u32 + 1,
    descriptor_size: size_of::<Note>() as u32,
    note_type: NOTE_TYPE,
    name: stallbench_abi::text::field(stallbench_abi::image::NOTE_NAME),
    descriptor: Note { version: stallbench_abi::VERSION, reserved: 0 },
};
