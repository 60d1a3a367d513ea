//! Signals. Ctrl-C and SIGTERM: the first asks the session to end, with results so far kept; one that comes later ends the process at
//! once. SIGQUIT (Ctrl-\) asks for dumps of the machines that run, and ends nothing. Threads of their own wait for them.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use stallbench_runner::dump::Requests;

use crate::exit::{Exit, Failure};

/// A signal that comes so soon after the first is the same one: timeout(1) and shells send it to the process and to its group.
const SAME: Duration = Duration::from_millis(300);

/// A flag that the first signal sets.
pub(crate) fn flag_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let failed = |error: std::io::Error| Failure::host(&error).context("wait for signals");
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || watch(signals, &flag)).map_err(failed)?;
    Ok(interrupted)
}

/// A flag that whatever asks the process to end sets, for somebody who owns the terminal meanwhile.
pub(crate) fn flag_on_termination() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::default();
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        let registered = flag::register(signal, Arc::clone(&flag));
        registered.map_err(|error| Failure::host(&error).context("handle signals"))?;
    }
    Ok(flag)
}

/// Ctrl-C for somebody who gives commands: it interrupts the one that is followed. While none is, it ends the process as ever.
#[derive(Clone, Debug)]
pub(crate) struct OfCommands {
    /// The one that is followed is to be left.
    pub(crate) flag: Arc<AtomicBool>,
    is_idle: Arc<AtomicBool>,
}

impl OfCommands {
    /// From now on.
    pub(crate) fn watch() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::host(&error).context("handle signals");
        let (flag, is_idle) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        flag::register_conditional_default(SIGINT, Arc::clone(&is_idle)).map_err(failed)?;
        flag::register(SIGINT, Arc::clone(&flag)).map_err(failed)?;
        Ok(Self { flag, is_idle })
    }

    /// Does something that Ctrl-C interrupts.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.flag.store(false, Ordering::SeqCst);
        self.is_idle.store(false, Ordering::SeqCst);
        let done = work();
        self.is_idle.store(true, Ordering::SeqCst);
        done
    }
}

/// Passes each SIGQUIT on.
pub(crate) fn ask_on_quit(requests: &Requests) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::host(&error).context("wait for signals");
    let (requests, mut signals) = (requests.clone(), Signals::new([SIGQUIT]).map_err(failed)?);
    let ask = move || signals.forever().for_each(|_| requests.ask());
    thread::Builder::new().name("requests".to_owned()).spawn(ask).map(drop).map_err(failed)
}

/// A write beyond the limit for files is an error like a full disk, and not the end of the process.
pub(crate) fn survive_file_limit() -> Result<(), Failure> {
    // A handler, not SIG_IGN: it does not pass on to processes that are started. Nobody reads the flag.
    let ignored = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    ignored.map(drop).map_err(|error| Failure::host(&error).context("handle signals"))
}

fn watch(mut signals: Signals, flag: &AtomicBool) {
    let mut first: Option<Instant> = None;
    for _ in signals.forever() {
        flag.store(true, Ordering::Relaxed);
        if first.get_or_insert_with(Instant::now).elapsed() > SAME {
            process::exit(Exit::Interrupted as i32);
        }
    }
}
