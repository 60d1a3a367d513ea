//! `irq`, `nmi`, `release`: what comes to a vCPU from outside.

use serde_json::json;

use crate::answer::{Answer, hex};
use crate::arguments::{Arguments, number};
use crate::command::{Command, Needs, Takes};
use crate::error::CommandError;
use crate::nearest::did_you_mean;
use crate::session::Session;

pub(in crate::command) const IRQ: Command = Command {
    name: "irq",
    usage: "irq VCPU VECTOR",
    summary: "send a vCPU a fixed interrupt of that vector, to its local APIC",
    details: "It takes it when it runs and lets interrupts in. The report of the run tells of it.\n",
    takes: Takes::Vcpu,
    needs: Needs::Live,
    run: irq,
};

pub(in crate::command) const NMI: Command = Command {
    name: "nmi",
    usage: "nmi VCPU",
    summary: "send a vCPU an NMI",
    details: "The report of the run tells of it.\n",
    takes: Takes::Vcpu,
    needs: Needs::Live,
    run: nmi,
};

pub(in crate::command) const RELEASE: Command = Command {
    name: "release",
    usage: "release POINT",
    summary: "let go who is held at the pause point of that name; `print pause` shows who is",
    details: "The report of the run tells of it.\n",
    takes: Takes::Point,
    needs: Needs::Live,
    run: release,
};

/// The first vector that a local APIC takes (SDM 3A 11.5.2).
const FIRST_VECTOR: u64 = 16;

fn irq(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    session.refresh()?;
    let vcpu = session.vcpu_of(Some(arguments.word("the vCPU")?))?.index;
    let word = arguments.word("the vector")?;
    arguments.end()?;
    let wrong = || arguments.wrong(format!("a vector is a number from {FIRST_VECTOR} to 255, and not {word}"));
    let vector = number(word).filter(|vector| *vector >= FIRST_VECTOR).and_then(|vector| u8::try_from(vector).ok());
    let vector = vector.ok_or_else(wrong)?;
    session.machine()?.interrupt(vcpu, vector)?;
    let text = format!("vector {} was sent to vcpu{vcpu}", session.vector(vector.into()));
    Ok(Answer::new(text, json!({"vcpu": vcpu, "vector": hex(vector.into())})))
}

fn nmi(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    session.refresh()?;
    let vcpu = session.vcpu_of(Some(arguments.word("the vCPU")?))?.index;
    arguments.end()?;
    session.machine()?.nmi(vcpu)?;
    Ok(Answer::new(format!("an NMI was sent to vcpu{vcpu}"), json!({"vcpu": vcpu})))
}

fn release(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let name = arguments.word("the pause point")?;
    arguments.end()?;
    let points = session.contract("pause points")?.points();
    if !points.iter().any(|point| point.name == name) {
        let near = did_you_mean(name, points.iter().map(|point| point.name.as_str()));
        return Err(CommandError::UnknownPoint { name: name.to_owned(), near });
    }
    let released = session.machine()?.release(name)?;
    let who: Vec<_> = released.iter().map(|vcpu| format!("vcpu{vcpu}")).collect();
    let text = match who.is_empty() {
        true => format!("nobody is held at {name}"),
        false => format!("{} {} on from {name}", who.join(", "), if who.len() == 1 { "goes" } else { "go" }),
    };
    Ok(Answer::new(text, json!({"point": name, "released": released})))
}

#[cfg(test)]
mod test {
    use crate::sample::live::Lively;
    use crate::sample::{answer, plain};

    #[test]
    fn interrupts_are_sent_to_the_vcpu_that_is_said() {
        let lively = Lively::new();
        let mut session = lively.session();
        let said = answer(&mut session, "irq 1 0xfb").expect("it has an answer");
        assert_eq!(plain(&said.text), "vector 0xfb (single-target call) was sent to vcpu1\n");
        assert!(answer(&mut session, "nmi vcpu0").is_ok());
        assert_eq!(lively.inner().asked, ["interrupt 1 0xfb", "nmi 0"]);
        for (line, says) in [
            ("irq 1 15", "a vector is a number from 16 to 255, and not 15"),
            ("irq 1 256", "a vector is a number from 16 to 255, and not 256"),
            ("irq 2 32", "no vCPU 2"),
            ("irq all 32", "no vCPU all"),
            ("irq 1", "the vector is missing"),
            ("nmi", "the vCPU is missing"),
        ] {
            let error = answer(&mut session, line).expect_err("it is wrong").to_string();
            assert!(error.starts_with(says), "{line}: {error}");
        }
    }

    #[test]
    fn who_is_held_at_a_pause_point_is_let_go() {
        let lively = Lively::new();
        let mut session = lively.session();
        let said = answer(&mut session, "release call_many/sent").expect("it has an answer");
        assert_eq!(said.text, "vcpu1 goes on from call_many/sent\n");
        let mut error = |line| answer(&mut session, line).expect_err("it is wrong").to_string();
        assert!(
            error("release call_many/snet").starts_with("no pause point call_many/snet; did you mean call_many/sent")
        );
        assert_eq!(error("release call_many/queued"), "nobody is held at call_many/queued");
    }
}
