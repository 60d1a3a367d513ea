//! A program at a terminal of its own, for the tests that type and read what it shows.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long anything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(120);
/// After how long something is typed again.
const AGAIN: Duration = Duration::from_millis(500);

/// What was shown so far, and whether that was all.
#[derive(Default)]
struct Shown {
    bytes: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

/// A program at a terminal.
pub(crate) struct Terminal {
    child: Child,
    terminal: File,
    shown: Arc<Shown>,
    /// Up to where it was read.
    read: usize,
}

impl Terminal {
    /// Starts a program at a terminal of that many columns and rows, which is its controlling one.
    pub(crate) fn start(program: &str, arguments: &[&str], (columns, rows): (u16, u16)) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::from(open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap());
        let end = || Stdio::from(slave.try_clone().unwrap());
        // setsid(1) makes the terminal the controlling one, so that Ctrl-C is a signal.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", program]).args(arguments).env("TERM", "xterm");
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let (terminal, shown) = (File::from(master), Arc::new(Shown::default()));
        let (mut from, into) = (terminal.try_clone().unwrap(), Arc::clone(&shown));
        thread::spawn(move || read(&mut from, &into));
        let terminal = Self { child, terminal, shown, read: 0 };
        terminal.resize((columns, rows));
        terminal
    }

    /// Gives it another size.
    pub(crate) fn resize(&self, (columns, rows): (u16, u16)) {
        tcsetwinsize(&self.terminal, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    /// Types something.
    pub(crate) fn types(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    /// Types something again and again until that is shown: before a program is ready for it, it may go nowhere.
    pub(crate) fn types_until(&mut self, text: &str, wanted: &str) -> String {
        let began = Instant::now();
        loop {
            self.types(text);
            match self.shown_within(AGAIN, wanted) {
                Ok(shown) => return shown,
                Err(instead) => assert!(began.elapsed() < DEADLINE, "{wanted:?} is not shown: {instead}"),
            }
        }
    }

    /// Waits until that is shown, behind what was waited for before: all that was shown up to its end.
    pub(crate) fn shows(&mut self, wanted: &str) -> String {
        self.shown_within(DEADLINE, wanted).unwrap_or_else(|instead| panic!("{wanted:?} is not shown: {instead}"))
    }

    /// What is shown up to there, or if that is not shown, what is instead.
    fn shown_within(&mut self, timeout: Duration, wanted: &str) -> Result<String, String> {
        let found = |shown: &[u8]| shown.windows(wanted.len()).position(|window| window == wanted.as_bytes());
        let from = self.read;
        let waits = |(bytes, is_all): &mut (Vec<u8>, bool)| found(&bytes[from..]).is_none() && !*is_all;
        let bytes = self.shown.bytes.lock().unwrap();
        let (bytes, _) = &*self.shown.more.wait_timeout_while(bytes, timeout, waits).unwrap().0;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let at = found(&bytes[from..]).ok_or_else(|| text(&bytes[from..]))?;
        self.read = from + at + wanted.len();
        Ok(text(&bytes[from..self.read]))
    }

    /// Waits until the program ends: its exit code, and what it showed since something was waited for.
    pub(crate) fn ends(mut self) -> (Option<i32>, String) {
        let bytes = self.shown.bytes.lock().unwrap();
        let wait = self.shown.more.wait_timeout_while(bytes, DEADLINE, |(_, is_all)| !*is_all).unwrap();
        assert!(wait.0.1, "it ends: {}", String::from_utf8_lossy(&wait.0.0));
        let rest = String::from_utf8_lossy(&wait.0.0[self.read..]).into_owned();
        drop(wait);
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until nobody is at the other end any more, which is an error.
fn read(from: &mut File, into: &Shown) {
    let mut bytes = [0; 4096];
    loop {
        let read = from.read(&mut bytes).unwrap_or(0);
        let mut shown = into.bytes.lock().unwrap();
        shown.0.extend_from_slice(&bytes[..read]);
        shown.1 = read == 0;
        into.more.notify_all();
        if read == 0 {
            return;
        }
    }
}
