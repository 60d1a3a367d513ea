//! Lines of commands, followed one command after the other: by a session here, or by one behind a socket.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use thiserror::Error;

use crate::answer::Answer;
use crate::complete;
use crate::line::commands;
use crate::session::{Ask, Session};

/// Takes what a command came to: its words, and its answer or the line that says why there is none. `Break` leaves the rest of the
/// line. What happened to the machine meanwhile comes before, without words: it is the answer to no command.
pub type Tell<'a> = dyn FnMut(&str, Result<Answer, String>) -> ControlFlow<()> + 'a;

/// Whoever follows commands is gone: why, as a sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Lost(pub String);

/// Somebody who follows commands.
pub trait Follower {
    /// Follows the commands of a line and hands on what each comes to, as it comes. One that has no answer costs no other; the rest
    /// of the line is left after `quit`.
    ///
    /// # Errors
    ///
    /// [`Lost`], if there is nobody any more who could follow it. Never so of a session here.
    fn follow(&mut self, line: &str, tell: &mut Tell<'_>) -> Result<(), Lost>;

    /// Where another thread interrupts what is followed, by setting it.
    fn interrupt(&self) -> Arc<AtomicBool>;

    /// What the last word of a line could become, and at which byte it begins.
    fn complete(&self, line: &str) -> (usize, Vec<String>);

    /// The number of the vCPU that is looked at.
    fn current(&self) -> usize;

    /// Whether somebody has said `quit`.
    fn is_over(&self) -> bool;

    /// Has `ask` say yes or no where a command is about to change the guest. Without, and where nobody here can be asked, such a
    /// command wants a word for it.
    fn set_ask(&mut self, _ask: Ask) {}
}

impl Follower for Session {
    fn follow(&mut self, line: &str, tell: &mut Tell<'_>) -> Result<(), Lost> {
        let all = match commands(line) {
            Ok(all) => all,
            Err(error) => {
                let _ = tell(line.trim(), Err(error.to_string()));
                return Ok(());
            }
        };
        for words in all {
            if let Some(news) = self.news()
                && tell("", Ok(news)).is_break()
            {
                break;
            }
            let answer = self.run(&words).map_err(|error| error.to_string());
            if tell(&words.join(" "), answer).is_break() || self.is_over() {
                break;
            }
        }
        self.forget_interrupt();
        Ok(())
    }

    fn interrupt(&self) -> Arc<AtomicBool> {
        self.interrupt()
    }

    fn complete(&self, line: &str) -> (usize, Vec<String>) {
        complete::complete(self, line)
    }

    fn current(&self) -> usize {
        self.current()
    }

    fn is_over(&self) -> bool {
        self.is_over()
    }

    fn set_ask(&mut self, ask: Ask) {
        self.set_ask(ask);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample::session;

    /// What each command of a line came to, in short; told of so many at most.
    fn followed(line: &str, most: usize) -> Vec<String> {
        let (mut session, mut all) = (session(), Vec::new());
        let mut tell = |command: &str, answer: Result<Answer, String>| {
            all.push(format!("{command}: {}", answer.map_or_else(|error| error, |answer| answer.data.to_string())));
            if all.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        session.follow(line, &mut tell).expect("it is here");
        all
    }

    #[test]
    fn command_without_an_answer_costs_no_other() {
        let all = followed("vcpu 1; vcpu 7; vcpu", 9);
        assert_eq!(all, [r#"vcpu 1: {"vcpu":1}"#, "vcpu 7: no vCPU 7: there are 2, from 0 on", r#"vcpu: {"vcpu":1}"#]);
        assert_eq!(followed(" vcpu \"1 ", 9), ["vcpu \"1: a quotation mark is not closed: vcpu \"1"]);
    }

    #[test]
    fn rest_is_left_after_quit_and_where_nobody_listens() {
        assert_eq!(followed("quit; vcpu", 9), ["quit: null"]);
        assert_eq!(followed("vcpu; vcpu", 1), [r#"vcpu: {"vcpu":0}"#]);
    }
}
