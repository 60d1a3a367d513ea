//! One set of commands over a machine, and a prompt for them.
//!
//! Every command asks a [`Target`]: where its machine comes from, a file or a guest that stands still, is the target's business.
//! No KVM here; no threads but those of [`remote`] and [`tui`]. What a target holds was written by a guest, or lies in a file from anywhere: it is data, whatever it
//! is, and the worst that it leads to is a line that says so.
//!
//! | module | what it owns |
//! |---|---|
//! | [`target`] | what commands are asked of |
//! | [`live`] | a machine that can run on: what it is asked, and the copy of it that commands look at |
//! | [`gdb`] | the same machine for gdb, by its remote protocol |
//! | [`session`] | a target, the vCPU that is looked at, and what was read of the guest's file so far |
//! | [`command`] | the commands, a file each |
//! | [`answer`] | what a command says, for people and for programs |
//! | [`error`] | why a command could not answer |
//! | [`follow`] | lines of commands, followed one command after the other |
//! | [`remote`] | a session behind a socket, and who talks to it; with threads of its own |
//! | [`steps`] | a machine at a step of a trace: what it is asked |
//! | [`socket`] | a socket in the file system that is its owner's alone |
//! | [`tui`] | the live view: frames on a terminal, again and again |
//! | [`mod@prompt`] | the line editor: history and completion |
#![forbid(unsafe_code)]

mod address;
pub mod answer;
mod arguments;
mod bits;
pub mod command;
mod complete;
pub mod error;
pub mod follow;
pub mod gdb;
mod guest;
mod line;
mod linear;
pub mod live;
mod nearest;
mod place;
pub mod prompt;
mod region;
mod registers;
pub mod remote;
pub mod session;
pub mod socket;
mod source;
pub mod steps;
mod style;
mod symbols;
pub mod target;
pub mod tui;
mod types;

#[cfg(test)]
mod sample;

pub use answer::Answer;
pub use error::CommandError;
pub use follow::Follower;
pub use line::commands;
pub use session::{Ask, Session};
pub use style::{printable, printable_json};
pub use target::Target;
