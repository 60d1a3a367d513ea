//! The socket that gdb comes to, and one that it came by.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt;

use super::address::Address;
use super::error::GdbError;
use crate::socket::{Listening, admit};

/// A client that takes no answer for so long has gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client that says nothing for so long is asked whether it is there, this often and this many times: half a minute in all.
const SILENCE: Duration = Duration::from_secs(15);
const ASKING: Duration = Duration::from_secs(5);
const ASKED: u32 = 3;

/// Waits for gdb. A socket in the file system is gone with it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Unix(Listening),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at an address.
    ///
    /// # Errors
    ///
    /// [`GdbError`] says in one line what is in the way.
    pub fn bind(address: &Address) -> Result<Self, GdbError> {
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => GdbError::Taken { address: address.clone() },
            _ => GdbError::Listen { address: address.clone(), source },
        };
        let (socket, address) = match address {
            Address::Unix(path) => (Socket::Unix(Listening::at(path)?), address.clone()),
            Address::Tcp { .. } => {
                port(address).map(|(listener, bound)| (Socket::Tcp(listener), bound)).map_err(failed)?
            }
        };
        socket.set_nonblocking().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// Where it listens: of a TCP port 0, the one that was free.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Who else may come there, as words; nobody where it is a socket that only its owner opens.
    pub fn is_open_to(&self) -> Option<&'static str> {
        let Socket::Tcp(listener) = &self.socket else { return None };
        Some(match listener.local_addr() {
            Ok(address) if address.ip().is_loopback() => "every user of this machine",
            _ => "whoever reaches that port",
        })
    }

    /// The client that waits to be let in, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<Stream>> {
        let stream = match &self.socket {
            Socket::Unix(listening) => listening.accept().map(Stream::Unix),
            Socket::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        };
        match stream {
            // Somebody else's is hung up on.
            Ok(stream) if !stream.may_come_in() => Ok(None),
            Ok(stream) => stream.prepare().map(|()| Some(stream)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            // It has gone before it was let in.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Socket {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(listening) => listening.set_nonblocking(),
            Self::Tcp(listener) => listener.set_nonblocking(true),
        }
    }
}

/// Listens on the first of the addresses that takes it.
fn port(address: &Address) -> io::Result<(TcpListener, Address)> {
    let listener = TcpListener::bind(&address.resolved()?[..])?;
    let bound = match address {
        Address::Tcp { host, .. } => Address::Tcp { host: host.clone(), port: listener.local_addr()?.port() },
        Address::Unix(_) => address.clone(),
    };
    Ok((listener, bound))
}

/// Has the kernel ask a client that says nothing whether it is still there: one that vanishes without a word must not hold the
/// machine (tcp(7), SO_KEEPALIVE).
fn miss(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE)?;
    sockopt::set_tcp_keepintvl(stream, ASKING)?;
    Ok(sockopt::set_tcp_keepcnt(stream, ASKED)?)
}

/// A client's end.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Whether it is of our user, where that can be known.
    fn may_come_in(&self) -> bool {
        match self {
            Self::Unix(stream) => admit(stream).is_ok(),
            Self::Tcp(_) => true,
        }
    }

    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(PATIENCE))
            }
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                miss(stream)?;
                stream.set_write_timeout(Some(PATIENCE))
            }
        }
    }

    /// The same once more, for the thread that reads.
    pub(super) fn again(&self) -> io::Result<Self> {
        match self {
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
        }
    }

    /// Whether it came by a port, where nobody knows which user it is.
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Ends what goes either way; whoever reads sees the end.
    pub(super) fn close(&self) {
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
