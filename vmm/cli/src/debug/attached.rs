//! A run of another process, looked into by its control socket.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use stallbench_debug::Follower;
use stallbench_debug::follow::{Lost, Tell};
use stallbench_debug::remote::Client;

use crate::exit::Failure;
use crate::interrupt::OfCommands;

/// Who is in a run. Ctrl-C while a command is followed interrupts that.
#[derive(Debug)]
pub(crate) struct Attached {
    client: Client,
    interrupts: OfCommands,
}

/// Comes into a run.
pub(crate) fn attach(run: &Path) -> Result<Attached, Failure> {
    let interrupts = OfCommands::watch()?;
    let client = Client::attach(run, Arc::clone(&interrupts.flag));
    let client = client.map_err(|error| Failure::usage(format!("--attach {error}")))?;
    Ok(Attached { client, interrupts })
}

impl Follower for Attached {
    fn follow(&mut self, line: &str, tell: &mut Tell<'_>) -> Result<(), Lost> {
        let Self { client, interrupts } = self;
        interrupts.during(|| client.follow(line, tell))
    }

    fn interrupt(&self) -> Arc<AtomicBool> {
        self.client.interrupt()
    }

    fn complete(&self, line: &str) -> (usize, Vec<String>) {
        self.client.complete(line)
    }

    fn current(&self) -> usize {
        self.client.current()
    }

    fn is_over(&self) -> bool {
        self.client.is_over()
    }
}
