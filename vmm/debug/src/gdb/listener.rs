//! The socket that gdb comes to, and one that it came by.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use rustix::net::sockopt;

use super::address::Address;
use super::error::GdbError;

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
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at an address.
    ///
    /// # Errors
    ///
    /// [`GdbError::Taken`] where somebody else does or a file is in the way, [`GdbError::Listen`] where the host cannot.
    pub fn bind(address: &Address) -> Result<Self, GdbError> {
        let (socket, address) = match address {
            Address::Unix(path) => (private(path).map(|socket| Socket::Unix(socket, path.clone())), address.clone()),
            Address::Tcp { .. } => match port(address) {
                Ok((listener, bound)) => (Ok(Socket::Tcp(listener)), bound),
                Err(error) => (Err(error), address.clone()),
            },
        };
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse | ErrorKind::AlreadyExists => GdbError::Taken { address: address.clone() },
            _ => GdbError::Listen { address: address.clone(), source },
        };
        let socket = socket.and_then(|socket| socket.set_nonblocking().map(|()| socket)).map_err(failed)?;
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
            Socket::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Socket::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        };
        match stream {
            Ok(stream) => stream.prepare().map(|()| Some(stream)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            // It has gone before it was let in.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = fs::remove_file(path);
        }
    }
}

impl Socket {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(listener, _) => listener.set_nonblocking(true),
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

/// A socket that nobody else can open at any moment: it is made in a directory that is only ours, and then put in its place, where
/// nothing may be but the socket of a process that is gone.
fn private(path: &Path) -> io::Result<UnixListener> {
    // Nobody could name it where it is too long for an address.
    SocketAddr::from_pathname(path)?;
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path)?;
    }
    let beside = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let room = beside.join(format!(".gdb-{}", process::id()));
    DirBuilder::new().mode(0o700).create(&room)?;
    let made = room.join("s");
    let bound = UnixListener::bind(&made).and_then(|listener| {
        fs::set_permissions(&made, Permissions::from_mode(0o600))?;
        fs::hard_link(&made, path)?;
        Ok(listener)
    });
    let _ = fs::remove_dir_all(&room);
    bound
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
