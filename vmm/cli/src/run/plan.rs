//! From arguments to what is to be done, with everything checked that can be checked without the host.

use std::sync::Arc;
use std::time::Duration;

use stallbench_runner::evidence::Evidence;
use stallbench_runner::execute::RunPlan;
use stallbench_runner::report::Kind;
use stallbench_runner::scenario::{Catalogue, Request, Run, Selection};

use super::Arguments;
use crate::exit::Failure;
use crate::guest::Guest;

/// The reports that are written. The one for people is always among them, unless another has standard output to itself.
pub(super) fn report_kinds(asked: &[Kind]) -> Result<Vec<Kind>, Failure> {
    let mut kinds: Vec<Kind> = Vec::new();
    for kind in asked {
        if kinds.contains(kind) {
            return Err(Failure::usage(format!("--report {kind} is there twice")));
        }
        if let Some(other) = kinds.iter().find(|other| kind.shares_file_with(other)) {
            return Err(Failure::usage(format!("--report {other} and --report {kind} write the same file")));
        }
        kinds.push(kind.clone());
    }
    match kinds.iter().filter(|kind| kind.is_on_stdout()).count() {
        0 => kinds.insert(0, Kind::Human),
        1 => {}
        _ => return Err(Failure::usage("only one --report can go to standard output")),
    }
    Ok(kinds)
}

/// The runs that are asked for.
pub(super) fn selection(arguments: &Arguments, guest: &Guest) -> Result<Selection, Failure> {
    let mut catalogue = Catalogue::default();
    let request = Request {
        names: catalogue.take_paths(&arguments.names)?,
        vcpus: arguments.vcpus.clone(),
        set: arguments.set.clone(),
        repeat: arguments.repeat,
        seed: arguments.seed,
    };
    if !arguments.names.is_empty() && request.names.is_empty() {
        return Ok(Selection::default());
    }
    match (&arguments.case, &arguments.payload) {
        (Some(case), _) => {
            let case = guest.case(case).map_err(|problem| Failure::usage(problem.to_string()))?;
            Ok(Selection::of_cases(&[case], &request)?)
        }
        (None, Some(_)) if request.names.is_empty() => Ok(Selection::of_cases(&guest.cases(), &request)?),
        _ => Ok(Selection::new(&catalogue, &request, &|name| guest.case(name))?),
    }
}

/// Which part of the request leaves nothing to run, where all of its names are known.
pub(super) fn why_nothing(arguments: &Arguments) -> String {
    let names = match arguments.names.as_slice() {
        [] => "the default".to_owned(),
        names => names.join(", "),
    };
    let vcpus: Vec<_> = arguments.vcpus.iter().map(usize::to_string).collect();
    match (vcpus.as_slice(), &arguments.payload) {
        ([], Some(payload)) if arguments.names.is_empty() => format!("{} has no case", payload.display()),
        ([], _) => format!("there is no scenario in {names}"),
        (vcpus, _) => format!(
            "no declared cell in {names} has --vcpus {}; the name of a scenario takes other numbers too",
            vcpus.join(",")
        ),
    }
}

/// Refuses a run directory that is there already, before anything is looked at that could be missing.
pub(super) fn check_out(arguments: &Arguments) -> Result<(), Failure> {
    Ok(arguments.out.as_deref().map_or(Ok(()), Evidence::check)?)
}

/// The run directory, if one is asked for.
pub(super) fn evidence(arguments: &Arguments) -> Result<Option<Arc<Evidence>>, Failure> {
    let Some(root) = &arguments.out else { return Ok(None) };
    let mut options = format!(" --budget {}", arguments.budget);
    if let Some(payload) = &arguments.payload {
        options.push_str(&format!(" --payload '{}'", payload.display()));
    }
    let catalogue = Catalogue::default();
    for path in arguments.names.iter().filter(|name| catalogue.is_path(name)) {
        options.push_str(&format!(" '{path}'"));
    }
    let command = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    Ok(Some(Arc::new(Evidence::create(root, command, options)?)))
}

/// What one run needs to know.
pub(crate) fn run_plan(run: &Run, budget: Duration) -> RunPlan {
    RunPlan { case: run.case, vcpus: run.vcpus, knobs: run.knobs, seed: run.seed, budget }
}

#[cfg(test)]
mod test {
    use super::*;

    fn kinds(texts: &[&str]) -> Result<Vec<String>, String> {
        let asked: Vec<Kind> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let kinds = report_kinds(&asked).map_err(|failure| failure.to_string())?;
        Ok(kinds.iter().map(Kind::to_string).collect())
    }

    #[test]
    fn people_get_their_report_unless_another_has_standard_output() {
        assert_eq!(kinds(&[]).unwrap(), ["human"]);
        assert_eq!(kinds(&["jsonl=a"]).unwrap(), ["human", "jsonl=a"]);
        assert_eq!(kinds(&["jsonl=-", "junit=a"]).unwrap(), ["jsonl=-", "junit=a"]);
    }

    #[test]
    fn two_reports_on_one_sink_are_refused() {
        assert!(kinds(&["human", "jsonl=-"]).unwrap_err().contains("only one"));
        assert!(kinds(&["junit=a", "junit=a"]).unwrap_err().contains("is there twice"));
        assert!(kinds(&["jsonl=-", "junit=-"]).unwrap_err().contains("only one"));
        assert_eq!(
            kinds(&["jsonl=r/a", "junit=./r/a"]).unwrap_err(),
            "--report jsonl=r/a and --report junit=./r/a write the same file"
        );
    }
}
