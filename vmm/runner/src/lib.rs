//! Scenarios, their execution, oracles, verdicts and reports.

pub mod outcome;
