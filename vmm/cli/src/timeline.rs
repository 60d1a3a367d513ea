//! `--timeline`: what of a way matters, as a picture in a file.

use std::io;
use std::path::{Path, PathBuf};

use stallbench_runner::story::Story;
use stallbench_runner::trace::new_file;

use crate::exit::{Exit, Failure};

/// A file for a picture.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    file: PathBuf,
    is_page: bool,
}

impl Timeline {
    /// Of an argument: the name says what it is.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let file = PathBuf::from(text);
        let is_page = match file.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => false,
            Some("html") => true,
            _ => return Err("expected a name that ends in .svg or .html".to_owned()),
        };
        Ok(Self { file, is_page })
    }

    /// Refuses a file that is there already, or that several runs would write.
    pub(crate) fn check(&self, runs: usize) -> Result<(), Failure> {
        check_new(&self.file, "--timeline", runs)
    }

    /// Draws a story.
    pub(crate) fn write(&self, story: &Story<'_>) -> Result<(), Failure> {
        let text = if self.is_page { story.html() } else { story.svg() };
        let failed = |error: io::Error| Failure::new(Exit::ReportFailed, &error);
        new_file(&self.file, &text)
            .map_err(|error| failed(error).context(format_args!("--timeline {}", self.file.display())))
    }
}

/// Refuses a file that is there already, or that several runs would write.
pub(crate) fn check_new(file: &Path, option: &str, runs: usize) -> Result<(), Failure> {
    let refused = |why: &str| Failure::usage(format!("{option} {}: {why}", file.display()));
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    match directory {
        _ if runs > 1 => Err(refused(&format!("{runs} runs are selected, and it is of one"))),
        _ if file.symlink_metadata().is_ok() => Err(refused("exists already")),
        Some(directory) if !directory.is_dir() => Err(refused("its directory does not exist")),
        _ => Ok(()),
    }
}
