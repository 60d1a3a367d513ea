//! A process of ours that waits for gdb, and gdb itself.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::binary::binary;

/// Long enough for any host; no test waits so long unless it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// A process that waits for gdb at a socket in a directory of its own.
pub(crate) struct Server {
    process: Option<Child>,
    pub(crate) directory: TempDir,
}

impl Server {
    /// Starts it and waits until it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut server = Self { process: None, directory: TempDir::new().unwrap() };
        server.again(arguments);
        server
    }

    /// Starts it once more, where the one before has left its socket.
    pub(crate) fn again(&mut self, arguments: &[&str]) {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--gdb").arg(format!("unix:{}", self.socket().display()));
        let command = command.current_dir(self.directory.path()).stdin(Stdio::null());
        self.process = Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        self.wait_until("it listens", |server| {
            assert_eq!(server.child().try_wait().unwrap(), None, "it has ended");
            UnixStream::connect(server.socket()).is_ok()
        });
    }

    /// Serves a dump of the shelf.
    pub(crate) fn of_dump(name: &str) -> Self {
        Self::start(&["debug", "--dump", shelved(name).to_str().unwrap()])
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("gdb")
    }

    /// What gdb prints that follows these commands on it.
    pub(crate) fn gdb(&self, commands: &[&str]) -> String {
        let target = format!("target remote {}", self.socket().display());
        gdb(&[&[&*target], commands].concat())
    }

    /// How it ends, and what it has printed.
    pub(crate) fn end(mut self) -> Output {
        self.wait_until("it ends", |server| server.child().try_wait().unwrap().is_some());
        assert!(!self.socket().exists(), "the socket stays");
        self.process.take().unwrap().wait_with_output().unwrap()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        self.process.as_mut().unwrap()
    }

    /// Looks again until something holds.
    pub(crate) fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
            thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What gdb prints that follows these commands.
pub(crate) fn gdb(commands: &[&str]) -> String {
    let mut gdb = Command::new("timeout");
    gdb.args(["-s", "KILL", &DEADLINE.as_secs().to_string(), "gdb", "-batch", "-nx"]);
    gdb.args(["-ex", "set confirm off", "-ex", "set width 0"]);
    gdb.args(commands.iter().flat_map(|command| ["-ex", command]));
    // In the source tree, where it finds the lines of the guest; an emulated machine has none.
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    if root.is_dir() {
        gdb.current_dir(root);
    }
    let output = gdb.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.code().is_some(), "gdb took longer than {DEADLINE:?}:\n{said}");
    said
}

pub(crate) fn shelved(name: &str) -> PathBuf {
    let shelf = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/dumps");
    Path::new(shelf).join(format!("{name}.core"))
}

/// Each part is in a text.
pub(crate) fn has(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "'{part}' is not in:\n{said}");
    }
}

/// The binary with these arguments, which ends by itself.
pub(crate) fn stallbench(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().unwrap()
}
