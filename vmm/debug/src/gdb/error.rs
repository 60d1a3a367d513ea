//! Why gdb cannot be waited for.

use std::io;

use thiserror::Error;

use super::address::Address;

/// Why gdb cannot be waited for. Each is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GdbError {
    /// It is not an address.
    #[error("expected unix:PATH, HOST:PORT or :PORT, and not '{text}'")]
    Address {
        /// What was said.
        text: String,
    },
    /// Somebody else waits there, or a file is in the way.
    #[error("{address} is taken")]
    Taken {
        /// Where.
        address: Address,
    },
    /// It cannot be listened there.
    #[error("cannot wait at {address}: {source}")]
    Listen {
        /// Where.
        address: Address,
        /// What the host said.
        source: io::Error,
    },
}
