//! `stallbench dump`: a file of a machine that runs, which runs on.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use stallbench_debug::{Answer, Follower, printable};

use crate::debug::attach;
use crate::exit::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
#[command(after_help = "`stallbench debug --dump FILE` looks at it, and gdb opens it")]
pub(crate) struct Arguments {
    /// The run: the socket of its --control, or a directory with a socket `control` in it
    #[arg(long, value_name = "RUN")]
    attach: PathBuf,
    /// Where the dump is to lie, a new file [default: the name of what runs, with .core]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) fn dump(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut run = attach(&arguments.attach)?;
    let file = match &arguments.file {
        Some(file) => file.to_string_lossy().into_owned(),
        None => name_of(&ask(&mut run, "about")?.data),
    };
    let answer = ask(&mut run, &format!("dump {}", quoted(&file)))?;
    output::print(&answer.text)
}

/// What a run answers to one command.
fn ask(run: &mut impl Follower, command: &str) -> Result<Answer, Failure> {
    let mut answered = None;
    let mut tell = |command: &str, answer: Result<Answer, String>| {
        // What happened to the machine meanwhile is the answer to no command.
        if !command.is_empty() {
            answered = Some(answer);
        }
        ControlFlow::Continue(())
    };
    run.follow(command, &mut tell).map_err(|lost| Failure::usage(lost.to_string()))?;
    let answer = answered.unwrap_or_else(|| Err(format!("{command}: no answer")));
    answer.map_err(|error| Failure::usage(printable(&error)))
}

/// A name for a dump of what runs, in the current directory.
fn name_of(about: &Value) -> String {
    let name = about["run"].as_str().unwrap_or("run");
    let kept = |c: char| if c.is_control() || matches!(c, '/' | ':' | '\\') { '-' } else { c };
    format!("{}.core", name.chars().map(kept).collect::<String>())
}

/// A word of a line of commands, whatever is in it.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\"'\"'"))
}

#[cfg(test)]
mod test {
    use serde_json::json;

    use super::*;

    #[test]
    fn any_file_is_one_word() {
        for name in ["a b", "it's", "\"'; quit", ""] {
            let line = format!("dump {}", quoted(name));
            assert_eq!(stallbench_debug::commands(&line).expect("closed"), [["dump", name]]);
        }
    }

    #[test]
    fn name_of_a_dump_leaves_no_directory() {
        assert_eq!(name_of(&json!({"run": "mtrr/layout@vcpus=4:x"})), "mtrr-layout@vcpus=4-x.core");
        assert_eq!(name_of(&Value::Null), "run.core");
    }
}
