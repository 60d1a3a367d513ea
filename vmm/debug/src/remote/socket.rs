//! The socket: where it lies, who may connect, and that it is gone when nobody listens any more.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;
use thiserror::Error;

/// What the socket is called in a directory of a run.
const IN_DIRECTORY: &str = "control";

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

/// The socket that a path names: itself, or `control` in a directory.
pub fn name_of_socket(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(IN_DIRECTORY) } else { path.to_owned() }
}

/// A socket that somebody listens at. It is removed at the end.
#[derive(Debug)]
pub struct Listening {
    pub(super) listener: UnixListener,
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
        let listener = UnixListener::bind(path).map_err(refused)?;
        // Who connects before this is asked who he is all the same.
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(refused)?;
        let identity = identity(path);
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Listening {
    /// Takes the socket away: nobody connects any more.
    pub(super) fn remove(&self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// User and process at the other end, as the kernel noted them when it connected or listened (unix(7), SO_PEERCRED).
pub(super) fn peer(stream: &UnixStream) -> io::Result<(u32, i32)> {
    let credentials = socket_peercred(stream)?;
    Ok((credentials.uid.as_raw(), credentials.pid.as_raw_nonzero().get()))
}

/// The user that this process acts as.
pub(super) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn socket_is_its_owners_alone_and_goes_with_who_listens() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control");
        assert_eq!(name_of_socket(directory.path()), path);
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
