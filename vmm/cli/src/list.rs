//! `stallbench list`: patterns, scenarios, cases and knobs; the story of one.

mod json;
mod pattern;
mod words;

use std::path::PathBuf;

use clap::Args;
use stallbench_runner::scenario::{ALL_PATTERNS, Catalogue, Request, Selection, markdown, patterns_markdown};

use crate::exit::{Exit, Failure};
use crate::guest::Guest;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Scenario, pattern (by its id or name), subject or group to tell about; files and directories of scenarios are taken in
    #[arg(value_name = "SCENARIO|PATTERN|FILE|DIR")]
    names: Vec<String>,
    /// One JSON object instead of text
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Every cell of a group, subject or scenario with its expectation and reason, as Markdown; of `patterns`: their stories
    #[arg(long, value_name = "GROUP")]
    markdown: Option<String>,
    /// The cases of another image
    #[arg(long, value_name = "FILE.elf")]
    payload: Option<PathBuf>,
}

pub(crate) fn list(arguments: &Arguments) -> Result<Exit, Failure> {
    let guest = Guest::open(arguments.payload.as_deref())?;
    let mut catalogue = Catalogue::default();
    let names = catalogue.take_paths(&arguments.names)?;
    catalogue.check_patterns()?;
    if arguments.markdown.as_deref() == Some(ALL_PATTERNS) {
        return output::print(&patterns_markdown(&catalogue, &|name| guest.case(name))?);
    }
    if let Some(group) = &arguments.markdown {
        return output::print(&markdown(&catalogue, group, &|name| guest.case(name))?);
    }
    // A part of a name behind the '@' shows nothing less, but it has to be one that `run` takes.
    let cells = names.iter().filter(|name| name.contains('@')).cloned().collect::<Vec<_>>();
    if !cells.is_empty() {
        Selection::new(&catalogue, &Request { names: cells, ..Request::default() }, &|name| guest.case(name))?;
    }
    // Another image is listed by itself: the catalogue is about the built-in one, unless something of it is named.
    let with_scenarios = arguments.payload.is_none() || !names.is_empty();
    let text = match (arguments.json, names.is_empty()) {
        (true, _) => json::everything(&catalogue, &names, &guest, with_scenarios)?,
        (false, true) => words::everything(&catalogue, &guest, with_scenarios)?,
        (false, false) => words::stories(&catalogue, &names, &guest)?,
    };
    output::print(&text)
}
