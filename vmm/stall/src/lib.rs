//! Stalls as pure logic: when to suspect one, what a captured machine says about it, and how sure that is.
//!
//! No KVM, no threads, no clock: whoever drives a machine passes in what it read. docs/stall.md tells the rules.
//!
//! | module | what it owns |
//! |---|---|
//! | [`watch`] | suspicion: progress weighed against CPU time |
//! | [`claim`] | published waits, held against the machine |
//! | [`activity`] | what each vCPU does |
//! | [`graph`] | who can still act: the fixpoint |
//! | [`analysis`] | all of that for one captured machine |
//! | [`proof`] | the stopped machine as a closed system, and its certificate |
//! | [`register`] | general registers as the decoder names them |
//! | [`lifetime`] | objects whose life is over |
//! | [`mod@conclude`] | two captures to a verdict with kind and culprit |
//! | [`mod@slow`] | who is busy while others wait |
//! | [`report`] | the words of a verdict, plain data |
#![forbid(unsafe_code)]

pub mod activity;
pub mod analysis;
pub mod claim;
pub mod code;
pub mod conclude;
mod culprit;
pub mod graph;
mod history;
pub mod lifetime;
pub mod proof;
pub mod register;
pub mod report;
mod root;
pub mod set;
pub mod slow;
pub mod watch;

#[cfg(test)]
mod test;

pub use analysis::{Analysis, Declared, View};
pub use conclude::{Ran, conclude, kind_without_waits, proved};
pub use watch::{Advice, Policy, Watch};
