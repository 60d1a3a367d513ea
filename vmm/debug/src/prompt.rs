//! The line editor: history, completion, and what is typed followed line by line.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, DefaultEditor, Editor, Helper};

use crate::follow::Follower;

/// Lines that the history keeps.
const HISTORY: usize = 1000;

/// Reads lines from a terminal until it has no more, and hands each to `follow`, with who follows commands.
///
/// # Errors
///
/// What the terminal said where it cannot be read.
pub fn prompt<F: Follower>(follower: F, follow: impl FnMut(&mut F, &str) -> io::Result<()>) -> io::Result<()> {
    let config = Config::builder().completion_type(CompletionType::List).auto_add_history(true);
    let config = config.max_history_size(HISTORY).map_err(io::Error::other)?.build();
    let mut editor: Editor<Completing<F>, FileHistory> = Editor::with_config(config).map_err(io::Error::other)?;
    editor.set_helper(Some(Completing(follower)));
    let history = history_file();
    if let Some(history) = &history {
        // None yet, or none that can be read: then there is none.
        let _ = editor.load_history(history);
    }
    let ended = each_line(&mut editor, follow);
    if let Some(history) = history {
        let _ = editor.save_history(&history);
    }
    ended
}

fn each_line<F: Follower>(
    editor: &mut Editor<Completing<F>, FileHistory>,
    mut follow: impl FnMut(&mut F, &str) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let vcpu = editor.helper().map_or(0, |helper| helper.0.current());
        match editor.readline(&format!("vcpu{vcpu}> ")) {
            Ok(line) => {
                let Some(Completing(follower)) = editor.helper_mut() else { return Ok(()) };
                follow(follower, &line)?;
                if follower.is_over() {
                    return Ok(());
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// Asks at a terminal. Only what begins with a y is a yes; Ctrl-C is none.
pub fn ask(question: &str) -> bool {
    let config = Config::builder().auto_add_history(false).build();
    let answer =
        DefaultEditor::with_config(config).and_then(|mut editor| editor.readline(&format!("{question} [y/N] ")));
    answer.is_ok_and(|answer| answer.trim_start().to_lowercase().starts_with('y'))
}

/// Where the history is kept, where it can be: below the directory for state (XDG base directory specification).
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    let directory = state.join("stallbench");
    fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

/// Who follows commands, as the editor sees it: to complete words by.
struct Completing<F>(F);

impl<F: Follower> Helper for Completing<F> {}
impl<F: Follower> Highlighter for Completing<F> {}
impl<F: Follower> Validator for Completing<F> {}

impl<F: Follower> Hinter for Completing<F> {
    type Hint = String;
}

impl<F: Follower> Completer for Completing<F> {
    type Candidate = String;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.0.complete(line.get(..cursor).unwrap_or_default()))
    }
}
