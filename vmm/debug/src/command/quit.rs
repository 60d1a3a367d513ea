//! `quit`: the end of a session.

use serde_json::Value;

use super::{Command, Needs, Takes};
use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "quit",
    usage: "quit",
    summary: "leave; so does the end of the input",
    details: "",
    takes: Takes::Nothing,
    needs: Needs::Nothing,
    run,
};

fn run(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    arguments.end()?;
    session.end();
    Ok(Answer::new("", Value::Null))
}

#[cfg(test)]
mod test {
    use crate::sample::{answer, session};

    #[test]
    fn session_is_over_when_it_is_said() {
        let mut session = session();
        assert!(!session.is_over());
        assert_eq!(answer(&mut session, "quit").expect("it has an answer").text, "");
        assert!(session.is_over());
    }
}
