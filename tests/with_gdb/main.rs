//! `--gdb`: the real gdb, and clients that are none, on dumps and on machines that run. Every wait has a deadline.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../binary.rs"]
mod binary;
#[path = "../executable.rs"]
mod executable;
#[path = "../gdb.rs"]
mod gdb;
#[path = "../missing.rs"]
mod missing;

mod client;
mod dump;
mod live;
mod server;
