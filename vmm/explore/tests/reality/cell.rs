//! A cell of a built-in scenario: its plan, and a search of it.

use std::sync::Arc;
use std::time::Duration;

use stallbench_core::HostKvm;
use stallbench_core::controlled::Controlled;
use stallbench_explore::{Limits, Search, Settings};
use stallbench_image::program;
use stallbench_runner::dump::Keep;
use stallbench_runner::execute::{RunPlan, boot_block};
use stallbench_runner::scenario::{Case, Catalogue, Injected, Problem, Request, Selection};

/// No cell that is asked for here has so many states.
const LIMITS: Limits = Limits { states: 200_000, bytes: 1 << 30 };

/// The host, or a loud skip where there is none; a failure under CI.
pub(crate) fn host() -> Option<HostKvm> {
    match HostKvm::open() {
        Ok(host) => Some(host),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED, this host cannot run guests: {error}; {}", error.remedy());
            None
        }
        Err(error) => panic!("{error}; {}", error.remedy()),
    }
}

fn case(name: &str) -> Result<Case, Problem> {
    let (index, info) = program().case(name).unwrap_or_else(|| panic!("the image has no case {name}"));
    Ok(Case { name: info.name.clone(), index, knobs: info.knobs, points: program().points().into() })
}

/// The plan of the one cell of that name, with nothing injected.
pub(crate) fn plan(name: &str) -> RunPlan {
    RunPlan { injected: Arc::new(Injected::default()), ..plan_with_holds(name) }
}

/// The plan of the one cell of that name, held up where its scenario has it so.
pub(crate) fn plan_with_holds(name: &str) -> RunPlan {
    let request = Request { names: vec![name.to_owned()], ..Request::default() };
    let selection = Selection::new(&Catalogue::default(), &request, &case).unwrap();
    assert_eq!(selection.len(), 1, "{name}");
    let run = selection.get(0).unwrap();
    RunPlan {
        case: run.case,
        vcpus: run.vcpus,
        knobs: run.knobs,
        seed: run.seed,
        injected: Arc::clone(&run.injected),
        layout: run.layout.clone(),
        order: run.order,
        budget: Duration::from_secs(60),
        keep: Keep::default(),
        control: None,
    }
}

/// A search of all of it.
pub(crate) fn searched(host: &HostKvm, name: &str, settings: Settings) -> Search<'static> {
    let plan = plan(name);
    let machine = Controlled::new(host, plan.vcpus, program().bytes(), &boot_block(&plan)).unwrap();
    let mut search = Search::new(machine, program(), settings).unwrap_or_else(|error| panic!("{name}: {error}"));
    let is_complete = search.run(LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(is_complete, "{name}: {:?}", search.counts());
    search
}
