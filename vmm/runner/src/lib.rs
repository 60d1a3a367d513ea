//! Scenarios, their execution, oracles, verdicts and reports.

pub mod nearest;
pub mod outcome;
#[cfg(test)]
mod sample;
pub mod scenario;
