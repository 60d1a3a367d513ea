//! Verdicts over machines made up by hand: each kind, each rule of the culprit, and everything that must be no stall.

mod confirmation;
mod slow;
mod verdicts;
pub(crate) mod world;
