//! `monitor COMMAND`: every command of the debugger, in gdb.

use std::convert::Infallible;

use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};

use super::machine::Machine;
use crate::command::{Takes, named};
use crate::line::commands;
use crate::style::plain;

/// Bytes of an answer that go into one packet.
const PART: usize = 1024;

impl Machine<'_> {
    /// Follows the commands of a line.
    fn follow(&mut self, line: &str) -> String {
        let all = match commands(line) {
            Ok(all) if all.is_empty() => vec![vec!["help".to_owned()]],
            Ok(all) => all,
            Err(error) => return format!("error: {error}\n"),
        };
        self.client.forget_interrupt();
        let before = self.places();
        let mut said = String::new();
        for words in &all {
            // Nobody waits for the rest, and each command takes an interrupt back.
            if !self.client.is_gone() {
                said.push_str(&self.answer(words));
            }
        }
        self.is_old = self.session.target().is_live();
        self.look();
        let moved = if before == self.places() { "" } else { MOVED };
        let notices: String = self.take_notices().iter().map(|notice| format!("{notice}\n")).collect();
        notices + &said + moved
    }

    fn answer(&mut self, words: &[String]) -> String {
        if words.first().is_some_and(|name| name == "quit") {
            return "`detach` lets the machine go on, `kill` ends its run\n".into();
        }
        if self.client.is_by_tcp && takes_files(words) {
            return format!("error: {NO_FILES}\n");
        }
        match self.session.run(words) {
            Ok(answer) => plain(&answer.text),
            Err(error) => format!("error: {}\n", crate::style::printable(&error.to_string())),
        }
    }

    /// Where the vCPUs are.
    fn places(&self) -> Vec<Option<u64>> {
        self.session.vcpus().iter().map(|vcpu| vcpu.registers.as_ref().ok().map(|registers| registers.rip)).collect()
    }
}

/// Files are read and written as the user that the run belongs to, and anybody may come to a port.
const NO_FILES: &str = "no files by TCP, for any user may be there: wait for gdb at unix:PATH";

/// Whether a command with its words names a file.
fn takes_files(words: &[String]) -> bool {
    let name = words.first().filter(|_| words.len() > 1);
    name.and_then(|name| named(name).ok()).is_some_and(|command| command.takes == Takes::File)
}

/// gdb asks for registers again only after a command of its own.
const MOVED: &str = "the machine moved: `maintenance flush register-cache` has gdb look again\n";

impl MonitorCmd for Machine<'_> {
    fn handle_monitor_cmd(&mut self, line: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Infallible> {
        let said = self.follow(&String::from_utf8_lossy(line));
        for part in said.as_bytes().chunks(PART) {
            out.write_raw(part);
            out.flush();
        }
        Ok(())
    }
}
