//! From arguments to what is to be done, with everything checked that can be checked without the host.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use stallbench_runner::dump::{Dumps, Moment, OnRequest, Requests};
use stallbench_runner::layout::Layout;
use stallbench_runner::report::Kind;
use stallbench_runner::scenario::{Catalogue, Request, Run, Selection};

use super::What;
use crate::exit::{Exit, Failure};
use crate::guest::Guest;
use crate::output;

/// The reports that are written. The one for people is always among them, unless another has standard output to itself.
pub(crate) fn report_kinds(asked: &[Kind]) -> Result<Vec<Kind>, Failure> {
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
pub(super) fn selection(what: &What, guest: &Guest, declared: Option<String>) -> Result<Selection, Failure> {
    let selection = all_selected(what, guest, declared)?;
    let programs = |run: &Run| run.layout.is_some();
    if what.layout.is_some() && !selection.is_empty() && !selection.cells.iter().any(programs) {
        return Err(Failure::usage("--layout: nothing that is selected programs a layout; mtrr/layout does"));
    }
    Ok(selection)
}

fn all_selected(what: &What, guest: &Guest, declared: Option<String>) -> Result<Selection, Failure> {
    let layout = what.layout.as_deref().map(Layout::read).transpose();
    let layout = layout.map_err(|error| Failure::new(Exit::Usage, &error).context("--layout"))?;
    let mut catalogue = Catalogue::default();
    let request = Request {
        names: catalogue.take_paths(&what.names)?,
        vcpus: what.vcpus.clone(),
        set: what.set.clone(),
        repeat: 1,
        seed: what.seed,
        layout: layout.map(Arc::new),
        order: what.order,
        declared,
    };
    if !what.names.is_empty() && request.names.is_empty() {
        return Ok(Selection::default());
    }
    if what.payload.is_some() && request.names.iter().any(|name| name.starts_with(OWN)) {
        return of_names(&catalogue, &request, guest);
    }
    match (&what.case, &what.payload) {
        (Some(case), _) => {
            let case = guest.case(case).map_err(|problem| Failure::usage(problem.to_string()))?;
            Ok(Selection::of_cases(&[case], &request)?)
        }
        (None, Some(_)) if request.names.is_empty() && request.declared.is_none() => {
            Ok(Selection::of_cases(&guest.cases(), &request)?)
        }
        _ => Ok(Selection::new(&catalogue, &request, &|name| guest.case(name))?),
    }
}

/// What names of the cases of a payload begin with, as reports print them.
const OWN: &str = "payload/";

/// Cases of a payload by the names that reports print, and whatever else is named.
fn of_names(catalogue: &Catalogue, request: &Request, guest: &Guest) -> Result<Selection, Failure> {
    let (own, others): (Vec<_>, Vec<_>) = request.names.iter().cloned().partition(|name| name.starts_with(OWN));
    let mut selection = Selection { cells: Vec::new(), repeat: request.repeat };
    for name in &own {
        selection.cells.extend(of_name(name, request, guest)?.cells);
    }
    if !others.is_empty() {
        let request = Request { names: others, ..request.clone() };
        selection.cells.extend(Selection::new(catalogue, &request, &|name| guest.case(name))?.cells);
    }
    // What is named twice runs once.
    let mut seen = HashSet::new();
    selection.cells.retain(|run| seen.insert(Arc::clone(&run.name)));
    Ok(selection)
}

/// `payload/NAME` or `payload/NAME@vcpus=N`.
fn of_name(name: &str, request: &Request, guest: &Guest) -> Result<Selection, Failure> {
    let wrong = |problem: &dyn Display| Failure::usage(format!("'{name}': {problem}"));
    let (base, filter) = name.split_once('@').map_or((name, None), |(base, filter)| (base, Some(filter)));
    let case = guest.case(base.strip_prefix(OWN).unwrap_or(base)).map_err(|problem| wrong(&problem))?;
    let mut request = request.clone();
    if let Some(filter) = filter {
        let number = filter.strip_prefix("vcpus=").and_then(|number| number.parse().ok());
        request.vcpus = vec![number.ok_or_else(|| wrong(&"expected vcpus=N behind the '@'"))?];
    }
    Ok(Selection::of_cases(&[case], &request)?)
}

/// Which part of the request leaves nothing to run, where all of its names are known.
pub(super) fn why_nothing(what: &What) -> String {
    let names = match what.names.as_slice() {
        [] => "the default".to_owned(),
        names => names.join(", "),
    };
    let vcpus: Vec<_> = what.vcpus.iter().map(usize::to_string).collect();
    match (vcpus.as_slice(), &what.payload) {
        ([], Some(payload)) if what.names.is_empty() => format!("{} has no case", payload.display()),
        ([], _) => format!("there is no scenario in {names}"),
        (vcpus, _) => format!(
            "no declared cell in {names} has --vcpus {}; the name of a scenario takes other numbers too",
            vcpus.join(",")
        ),
    }
}

/// Has each request leave a dump of that run's machine, which runs on.
pub(crate) fn on_request(requests: &Requests, dumps: &Arc<Dumps>, run: &Run) -> OnRequest {
    let (dumps, of) = (Arc::clone(dumps), run.clone());
    let take = move |moment: &Moment| {
        if let Some(path) = dumps.write_running(&of, moment) {
            output::diagnostic(&format!("dump: {}", path.display()));
        }
    };
    OnRequest { requests: requests.clone(), take: Arc::new(take) }
}

/// The options with which such a run is asked for again.
pub(crate) fn options(what: &What) -> String {
    let mut options = format!(" --budget {}", what.budget);
    if let Some(order) = what.order {
        options.push_str(&format!(" --order {order}"));
    }
    if let Some(payload) = &what.payload {
        options.push_str(&format!(" --payload '{}'", payload.display()));
    }
    if let Some(layout) = &what.layout {
        options.push_str(&format!(" --layout '{}'", layout.display()));
    }
    options.push_str(&what.plain.to_string());
    let catalogue = Catalogue::default();
    for path in what.names.iter().filter(|name| catalogue.is_path(name)) {
        options.push_str(&format!(" '{path}'"));
    }
    options
}

/// What a trace says of such a run beside its name: [`What`] can be made of it again.
pub(crate) fn trace_options(what: &What) -> Vec<(String, String)> {
    let path = |key: &str, path: &Path| (key.to_owned(), path.display().to_string());
    let catalogue = Catalogue::default();
    let files = what.names.iter().filter(|name| catalogue.is_path(name)).map(|file| path("file", Path::new(file)));
    let payload = what.payload.iter().map(|file| path("payload-file", file));
    files.chain(payload).chain(what.layout.iter().map(|file| path("layout", file))).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    fn own(name: &str) -> Result<Vec<String>, String> {
        let request = Request { names: vec![name.to_owned(); 2], ..Request::default() };
        let guest = Guest::open(None).map_err(|failure| failure.to_string())?;
        let selection = of_names(&Catalogue::default(), &request, &guest).map_err(|failure| failure.to_string())?;
        Ok(selection.cells.iter().map(|run| run.name.to_string()).collect())
    }

    #[test]
    fn name_of_a_payloads_case_selects_it_as_it_was_printed() {
        assert_eq!(own("payload/plain@vcpus=3").unwrap(), ["payload/plain@vcpus=3"]);
        assert_eq!(own("payload/plain").unwrap(), ["payload/plain@vcpus=2"]);
        assert!(own("payload/plian").unwrap_err().contains("did you mean plain"));
        assert!(own("payload/plain@alloc=ok").unwrap_err().contains("expected vcpus=N"));
        assert!(own("payload/plain@vcpus=999").unwrap_err().contains("999 vCPUs"));
    }

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
