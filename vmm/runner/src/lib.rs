//! Scenarios, their execution, oracles, verdicts and reports.

pub mod control;
pub mod dump;
pub mod evidence;
pub mod execute;
pub mod explore;
pub mod layout;
pub mod nearest;
pub mod oracle;
pub mod outcome;
pub mod plain;
pub mod repeat;
pub mod replay;
pub mod report;
pub mod result;
#[cfg(test)]
mod sample;
pub mod scenario;
pub mod session;
pub mod story;
pub mod trace;
mod turnstile;
