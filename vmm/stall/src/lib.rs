//! Stalls as pure logic: when to suspect one, what a captured machine says about it, and how sure that is.
//!
//! No KVM, no threads, no clock: whoever drives a machine passes in what it read.
//!
//! | module | what it owns |
//! |---|---|
//! | [`report`] | the words of a verdict, plain data |

pub mod report;
