//! What is said over a control socket: one JSON object a line.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::answer::Answer;

/// Version of the protocol. Who speaks another is not spoken to.
pub const VERSION: u64 = 1;

/// What the first line of a server says it is.
pub(super) const NAME: &str = "control";
/// Most bytes of a line from a client.
pub(super) const LONGEST_REQUEST: usize = 1 << 18;
/// Most bytes of a line from a server: `mem` and `symbols` say much.
pub(super) const LONGEST_REPLY: usize = 64 << 20;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Follow the commands of a line; files are meant to be in that directory.
    Line { line: String, directory: Option<PathBuf> },
    /// What the last word of this could become.
    Complete(String),
    /// Leave what is being done.
    Interrupt,
}

impl Request {
    /// The request of a line, or what is wrong with it.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(line).map_err(|error| format!("not a JSON object: {error}"))?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        if let Some(line) = text("line") {
            return Ok(Self::Line { line, directory: text("cwd").map(PathBuf::from) });
        }
        if let Some(start) = text("complete") {
            return Ok(Self::Complete(start));
        }
        match value.get("interrupt") {
            Some(Value::Bool(true)) => Ok(Self::Interrupt),
            _ => Err("expected an object with a string \"line\" or \"complete\", or with \"interrupt\": true".into()),
        }
    }

    /// The line of a request.
    pub(super) fn written(&self) -> String {
        let value = match self {
            Self::Line { line, directory: None } => json!({"line": line}),
            Self::Line { line, directory: Some(directory) } => {
                json!({"line": line, "cwd": directory.to_string_lossy()})
            }
            Self::Complete(start) => json!({"complete": start}),
            Self::Interrupt => json!({"interrupt": true}),
        };
        format!("{value}\n")
    }
}

/// What a server says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    /// The first line, to who is let in.
    Hello { version: u64, pid: u32 },
    /// What a command came to.
    Command { command: String, answer: Result<Answer, String> },
    /// The end of a line: the vCPU that is looked at, and whether somebody has said `quit`.
    Done { vcpu: usize, is_over: bool },
    /// What a word could become, and at which byte it begins.
    Completions { start: usize, words: Vec<String> },
    /// A request is wrong.
    Wrong(String),
    /// Nothing comes any more: why.
    Bye(String),
}

impl Reply {
    /// The line of a reply.
    pub(super) fn written(&self) -> String {
        let value = match self {
            Self::Hello { version, pid } => {
                json!({"stallbench": NAME, "version": version, "tool": env!("CARGO_PKG_VERSION"), "pid": pid})
            }
            Self::Command { command, answer: Ok(answer) } => {
                json!({"command": command, "text": answer.text, "data": answer.data})
            }
            Self::Command { command, answer: Err(error) } => json!({"command": command, "error": error}),
            Self::Done { vcpu, is_over } => json!({"done": {"vcpu": vcpu, "over": is_over}}),
            Self::Completions { start, words } => json!({"completions": {"start": start, "words": words}}),
            Self::Wrong(error) => json!({"error": error}),
            Self::Bye(why) => json!({"bye": why}),
        };
        format!("{value}\n")
    }

    /// The reply of a line, if it is one.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64);
        if text("stallbench").as_deref() == Some(NAME) {
            let pid = number(&value, "pid").and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
            return Some(Self::Hello { version: number(&value, "version")?, pid });
        }
        if let Some(command) = text("command") {
            let answer = match text("error") {
                Some(error) => Err(error),
                None => Ok(Answer { text: text("text")?, data: value.get("data").cloned().unwrap_or_default() }),
            };
            return Some(Self::Command { command, answer });
        }
        if let Some(done) = value.get("done") {
            let vcpu = usize::try_from(number(done, "vcpu")?).ok()?;
            return Some(Self::Done { vcpu, is_over: done.get("over")?.as_bool()? });
        }
        if let Some(completions) = value.get("completions") {
            let start = usize::try_from(number(completions, "start")?).ok()?;
            let words = completions.get("words")?.as_array()?.iter();
            return Some(Self::Completions {
                start,
                words: words.filter_map(|w| w.as_str().map(str::to_owned)).collect(),
            });
        }
        text("error").map(Self::Wrong).or_else(|| text("bye").map(Self::Bye))
    }
}

/// A request to follow a line, with the directory of this process.
pub(super) fn line_from_here(line: &str) -> Request {
    let directory = std::env::current_dir().ok();
    Request::Line { line: line.to_owned(), directory: directory.as_deref().map(Path::to_owned) }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn requests_are_read_as_they_were_written() {
        let line = Request::Line { line: "bt; mem \"a b\"\n".into(), directory: Some("/tmp/x y".into()) };
        for request in [line, Request::Complete("bt ".into()), Request::Interrupt] {
            let written = request.written();
            assert_eq!(written.matches('\n').count(), 1, "{written}");
            assert_eq!(Request::read(written.trim_end().as_bytes()), Ok(request));
        }
    }

    #[test]
    fn nonsense_is_told_in_one_line() {
        for nonsense in
            ["", "7", "[]", "{}", "{\"line\":7}", "{\"interrupt\":1}", "\u{1b}[2J", "{\"line\":\"a\"", "null"]
        {
            let told = Request::read(nonsense.as_bytes()).expect_err("it is nonsense");
            assert!(!told.contains('\n') && !told.contains('\u{1b}'), "{told}");
        }
        assert!(Request::read(&[0xff, 0xfe]).is_err());
        assert!(Request::read("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn replies_are_read_as_they_were_written() {
        let answer = Answer { text: "a\nb\n".into(), data: json!({"vcpu": 1}) };
        let replies = [
            Reply::Hello { version: 1, pid: 7 },
            Reply::Command { command: "vcpu".into(), answer: Ok(answer) },
            Reply::Command { command: "wiats".into(), answer: Err("no".into()) },
            Reply::Done { vcpu: 3, is_over: true },
            Reply::Completions { start: 2, words: vec!["a".into(), "b".into()] },
            Reply::Wrong("no".into()),
            Reply::Bye("the end".into()),
        ];
        for reply in replies {
            let written = reply.written();
            assert_eq!(written.matches('\n').count(), 1, "{written}");
            assert_eq!(Reply::read(written.trim_end().as_bytes()), Some(reply));
        }
        assert_eq!(Reply::read(b"{\"done\":7}"), None);
    }
}
