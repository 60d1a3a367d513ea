//! A session behind a Unix socket: commands for a machine of another process, and completion, with the same answers as here.
//!
//! One JSON object a line, both ways (docs/attach.md has the protocol for others who want to speak it). A [`Server`] lets in
//! processes of the same user, one at a time, and has a thread for who is in; a [`Client`] is a [`Follower`](crate::Follower) like a
//! session. Neither believes the other: what is too long, or nonsense, is a line that says so.

mod client;
mod line;
mod server;
mod wire;

pub use client::{AttachError, Client};
pub use server::{Entry, Server};
pub use wire::VERSION;

use std::path::{Path, PathBuf};

/// What the socket is called in a directory of a run.
const IN_DIRECTORY: &str = "control";

/// The socket that a path names: itself, or `control` in a directory.
pub fn name_of_socket(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(IN_DIRECTORY) } else { path.to_owned() }
}
