//! `about`: what this machine is of.

use serde_json::{Value, json};

use super::{Command, Needs, Takes};
use crate::answer::{Answer, columns, row};
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::guest::Guest;
use crate::session::Session;

pub(super) const COMMAND: Command = Command {
    name: "about",
    usage: "about",
    summary: "what this machine is of: the run, the command that repeats it, the host",
    details: "",
    takes: Takes::Nothing,
    needs: Needs::Machine,
    run,
};

fn run(session: &mut Session, arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    arguments.end()?;
    let about = session.target().about();
    let kind = kind(session);
    let mut rows = vec![
        row(["run", &about.run]),
        row(["again", &about.command]),
        row(["written by", &format!("stallbench {}", about.tool)]),
        row(["guest", &kind]),
        row(["vCPUs", &session.vcpus().len().to_string()]),
    ];
    rows.extend(host(&about.host));
    rows.retain(|row| !row[1].is_empty());
    let data = json!({
        "run": about.run,
        "command": about.command,
        "tool": about.tool,
        "guest": kind,
        "vcpus": session.vcpus().len(),
        "host": about.host,
        "is_live": session.target().is_live(),
    });
    Ok(Answer::new(columns(&rows), data))
}

fn kind(session: &Session) -> String {
    match session.guest() {
        Guest::Contract(program) => format!("keeps the contract, {} cases", program.cases().len()),
        Guest::Plain(_) => "plain: it keeps no contract and publishes nothing".into(),
        Guest::Unreadable(error) => format!("its file cannot be read: {error}"),
    }
}

/// The host's fingerprint, a row a value.
fn host(host: &Value) -> Vec<Vec<String>> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let of = |(key, value): (&String, &Value)| {
        let key = format!("host {}", key.strip_prefix("host_").unwrap_or(key).replace('_', " "));
        let values = value.as_array().map_or_else(|| vec![plain(value)], |values| values.iter().map(plain).collect());
        values.into_iter().map(|value| row([&key, &value])).collect::<Vec<_>>()
    };
    host.as_object().map(|host| host.iter().flat_map(of).collect()).unwrap_or_default()
}

#[cfg(test)]
mod test {
    use crate::sample::{answer, session_with, text};

    #[test]
    fn about_names_the_run() {
        assert!(text("about").starts_with("run         sample/deadlock@vcpus=2\nwritten by  stallbench 0.0.0\n"));
    }

    #[test]
    fn payload_that_cannot_be_read_is_said_so_and_costs_nothing_else() {
        let mut session = session_with(|machine| machine.payload = b"\x7fELF".to_vec());
        let text = answer(&mut session, "about").expect("it has an answer").text;
        assert!(text.contains("its file cannot be read"), "{text}");
        assert!(answer(&mut session, "vcpus").is_ok());
    }
}
