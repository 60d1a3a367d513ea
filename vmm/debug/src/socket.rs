//! A socket in the file system that is its owner's alone: where it lies, who may connect, and that it is gone when nobody listens any more.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

/// How many may have connected and not been let in yet.
const BACKLOG: i32 = 128;

/// Why nobody can listen there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody does.
    #[error("{}: process {pid} listens there", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
        /// Who made it.
        pid: i32,
    },
    /// Something else lies there.
    #[error("{}: is there, and no socket", path.display())]
    NoSocket {
        /// What.
        path: PathBuf,
    },
    /// The host does not let us.
    #[error("{}: {source}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// A socket that somebody listens at. It is removed at the end.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: nobody else's is removed.
    identity: Option<(u64, u64)>,
}

impl Listening {
    /// Refuses a path where nobody could listen, as far as that can be seen without doing it; what a dead process left there is no hindrance.
    ///
    /// # Errors
    ///
    /// Somebody listens there, or something else is there.
    pub fn check(path: &Path) -> Result<(), ListenError> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
        if !metadata.file_type().is_socket() {
            return Err(ListenError::NoSocket { path: path.to_owned() });
        }
        match UnixStream::connect(path) {
            Ok(stream) => {
                Err(ListenError::Taken { path: path.to_owned(), pid: peer(&stream).map_or(0, |(_, pid)| pid) })
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(source) => Err(ListenError::Refused { path: path.to_owned(), source }),
        }
    }

    /// Listens there from now on; a socket that a dead process left is replaced.
    ///
    /// # Errors
    ///
    /// [`ListenError`] says in one line what is in the way.
    pub fn at(path: &Path) -> Result<Self, ListenError> {
        let refused = |source| ListenError::Refused { path: path.to_owned(), source };
        Self::check(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(refused(error)),
            _ => {}
        }
        let listener = bind(path).map_err(refused)?;
        let identity = identity(path);
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Listening {
    /// Who connects next, whoever it is: [`admit`] says whether he may.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// Waits for nobody any more in [`Listening::accept`].
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        self.listener.set_nonblocking(true)
    }

    /// Takes the socket away: nobody connects any more.
    pub(crate) fn remove(&self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Ends accept(2) in another thread.
    pub(crate) fn end(&self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A socket that nobody else can open at any moment: the file gets the mode that its descriptor has when it is bound (Linux,
/// `unix_bind_bsd()` in net/unix/af_unix.c). Whatever lies there is an error.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The process at the other end, where it is one of our user.
///
/// # Errors
///
/// Why it may not come in, as words.
pub(crate) fn admit(stream: &UnixStream) -> Result<i32, String> {
    // The number of a process of a pid namespace that is not below ours is 0 here, which rustix takes for an error of no sense.
    let unnamed = "who are you? The kernel does not say here, as of a process outside of a container whose run this is";
    let (user, process) = peer(stream).map_err(|_| unnamed)?;
    let own = rustix::process::geteuid().as_raw();
    if user == own { Ok(process) } else { Err(format!("only user {own} may come in, and you are user {user}")) }
}

/// User and process at the other end, as the kernel noted them when it connected or listened (unix(7), SO_PEERCRED).
fn peer(stream: &UnixStream) -> io::Result<(u32, i32)> {
    let credentials = socket_peercred(stream)?;
    Ok((credentials.uid.as_raw(), credentials.pid.as_raw_nonzero().get()))
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_is_its_owners_alone_and_goes_with_who_listens() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control");
        let listening = Listening::at(&path).expect("nobody is there");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        let own = std::process::id();
        assert!(matches!(Listening::at(&path), Err(ListenError::Taken { pid, .. }) if pid.unsigned_abs() == own));
        drop(listening);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_what_is_no_socket_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control");
        // Closing a listener leaves its socket, as death does.
        drop(UnixListener::bind(&path).expect("nobody is there"));
        let listening = Listening::at(&path).expect("nobody listens");
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "a file").expect("written");
        assert!(matches!(Listening::at(&path), Err(ListenError::NoSocket { .. })));
        drop(listening);
        assert!(path.exists(), "it is not ours");
        assert!(matches!(Listening::at(Path::new("/nonexistent/control")), Err(ListenError::Refused { .. })));
        assert!(matches!(Listening::at(Path::new(&"x".repeat(200))), Err(ListenError::Refused { .. })));
    }
}
