//! A run of another process, looked into by its control socket.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use stallbench_debug::follow::{Lost, Tell};
use stallbench_debug::remote::Client;
use stallbench_debug::{Ask, CommandError, Follower, commands};

use crate::dump::quoted;
use crate::exit::Failure;
use crate::interrupt::OfCommands;

/// Who is in a run. Ctrl-C while a command is followed interrupts that.
pub(crate) struct Attached {
    client: Client,
    interrupts: OfCommands,
    /// Somebody here who says yes or no before the guest is changed: the run itself can ask nobody.
    ask: Option<Ask>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("client", &self.client).finish_non_exhaustive()
    }
}

/// Comes into a run.
pub(crate) fn attach(run: &Path) -> Result<Attached, Failure> {
    let interrupts = OfCommands::watch()?;
    let client = Client::attach(run, Arc::clone(&interrupts.flag));
    let client = client.map_err(|error| Failure::usage(format!("--attach {error}")))?;
    Ok(Attached { client, interrupts, ask: None })
}

impl Follower for Attached {
    fn follow(&mut self, line: &str, tell: &mut Tell<'_>) -> Result<(), Lost> {
        let Self { client, interrupts, ask } = self;
        interrupts.during(|| match (ask, commands(line)) {
            (Some(ask), Ok(all)) if all.iter().any(|words| changes(words)) => asking(client, &all, ask, tell),
            // What is wrong with a line the run says.
            _ => client.follow(line, tell),
        })
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

    fn set_ask(&mut self, ask: Ask) {
        self.ask = Some(ask);
    }
}

/// Whether a command is to be asked for before it is sent.
fn changes(words: &[String]) -> bool {
    words[0] == "write" && !words.iter().any(|word| word == "--yes")
}

/// Has commands followed one by one, and those that change the guest only after a yes.
fn asking(client: &mut impl Follower, all: &[Vec<String>], ask: &mut Ask, tell: &mut Tell<'_>) -> Result<(), Lost> {
    for words in all {
        let command = words.join(" ");
        let is_asked = changes(words);
        if is_asked && !ask(&format!("{command}?")) {
            if tell(&command, Err(CommandError::Declined.to_string())).is_break() {
                break;
            }
            continue;
        }
        let line = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let mut is_heard = true;
        client.follow(&if is_asked { line + " --yes" } else { line }, &mut |command, answer| {
            let heard = tell(command, answer);
            is_heard = heard.is_continue();
            heard
        })?;
        if !is_heard || client.is_over() {
            break;
        }
    }
    Ok(())
}
