//! Every schedule of a guest, and every arrival of an interrupt.
//!
//! The payload runs on KVM under control ([`stallbench_core::controlled`]): a vCPU stops at every access to what vCPUs share, and the
//! search decides who goes on, and when an interrupt is delivered. What a vCPU does from one stop to the next depends on nothing but
//! its own registers and memory and on what it read: KVM is asked for each such passage once, and the graph of all states of the
//! machine is put together from them. docs/explore.md tells the method and what it rests on.
//!
//! | module | what it owns |
//! |---|---|
//! | `local` | the state of one vCPU |
//! | `apic` | what is requested of a local APIC, and in service |
//! | `bare` | what of a search is KVM's |
//! | `arena` | the memory that vCPUs share |
//! | `buffers` | what a vCPU has stored and others do not see yet |
//! | `devices` | what of its devices a vCPU alone knows |
//! | `code` | the instructions at which vCPUs stop |
//! | `early` | what a vCPU has sent and not written yet |
//! | `drains` | the instructions that wait until others see it |
//! | `ahead` | passages that several threads ask for |
//! | `passage` | what a vCPU does from one stop to the next |
//! | `stage` | passages, asked of KVM |
//! | `start` | from the first instruction to the start line |
//! | `graph` | states of the machine, and the choices between them |
//! | `order` | which of them comes next |
//! | `spin` | which vCPUs get nothing done |
//! | `search` | all of them |
//! | `end` | what is in memory when a run is over |
//! | `settings` | what is explored |
//! | `walk` | one schedule after another |
//! | `minimise` | a shorter way to where one came |
//! | `checkpoint` | a search in a file |
//! | `event` | what happens at each step of a way |
//! | `hash` | a name of 128 bits for a state |
//! | `explain` | what of a way matters |
//! | `trace` | a way as text |
//! | `replay` | a trace, followed once more |
//! | `reach` | what the whole graph says |
//! | `returned` | in which order calls return |
//! | `safety` | what must hold in every state and on every way |
//! | `fuse` | steps that are one with the step before |
//! | `fair` | sets of states that a fair schedule never leaves |
#![forbid(unsafe_code)]

mod ahead;
mod apic;
mod arena;
mod bare;
mod buffers;
mod checkpoint;
mod code;
mod devices;
mod drains;
mod early;
mod end;
mod event;
mod explain;
mod fair;
mod fuse;
mod graph;
mod hash;
mod local;
mod minimise;
mod moment;
mod order;
mod passage;
mod private;
mod reach;
#[cfg(test)]
#[path = "../../../tests/real_kvm.rs"]
mod real_kvm;
mod replay;
mod returned;
mod safety;
mod search;
mod settings;
mod spin;
mod stage;
mod start;
mod trace;
mod walk;

#[cfg(test)]
use stallbench_core::HostKvm;

pub use ahead::{Ahead, alongside};
pub use checkpoint::RestoreError;
pub use early::MOST_OWED;
pub use end::{End, Kinds};
pub use event::{Access, Deed, Event, Place};
pub use explain::{Row, account};
pub use graph::Choice;
pub use hash::StateHash;
pub use minimise::Minimised;
pub use moment::Moment;
pub use passage::Refusal;
pub use replay::{Against, Difference, Replayed, missing_symbol};
pub use safety::{Broken, Invariant, TooManyCalls};
pub use search::{Counts, ExploreError, Findings, Landed, Leg, Limits, Livelock, Search, Stuck, Turning, Way};
pub use settings::{Icr, Irq, Model, Passages, Settings, Varied};
pub use stage::WAITS;
pub use start::StartError;
pub use trace::{Step, Subject, Trace, TraceError, VERSION as TRACE_VERSION, chain};
pub use walk::{Walking, Walks};
