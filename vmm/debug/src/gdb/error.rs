//! Why gdb cannot be waited for.

use std::io;

use thiserror::Error;

use super::address::Address;
use crate::socket::ListenError;

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
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// Somebody else waits at that port.
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
