//! `vcpu`: which vCPU is looked at.

use serde_json::json;

use super::{Command, Needs, Takes};
use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "vcpu",
    usage: "vcpu [N]",
    summary: "look at vCPU N from here on",
    details: "",
    takes: Takes::Vcpu,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let index = session.vcpu_of(arguments.next())?.index;
    arguments.end()?;
    session.select(index);
    Ok(Answer::new(format!("vcpu{index}"), json!({"vcpu": index})))
}

#[cfg(test)]
mod test {
    use crate::sample::{refusal, text};

    #[test]
    fn vcpu_that_is_chosen_is_the_one_that_others_ask() {
        assert_eq!(text("vcpu 1; vcpu"), "vcpu1\n");
        assert!(text("vcpu vcpu1; regs").starts_with("vcpu1\n"));
    }

    #[test]
    fn vcpu_that_does_not_exist_is_refused() {
        for asked in ["2", "vcpu2", "-1", "x", "18446744073709551616"] {
            assert_eq!(refusal(&format!("vcpu {asked}")), format!("no vCPU {asked}: there are 2, from 0 on"));
        }
    }
}
