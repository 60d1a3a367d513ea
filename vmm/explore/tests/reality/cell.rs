//! A cell of a built-in scenario: its plan, and a search of it.

use std::sync::Arc;
use std::time::Duration;

use stallbench_core::HostKvm;
use stallbench_core::controlled::Controlled;
use stallbench_explore::{Limits, Search, Settings};
use stallbench_image::program;
use stallbench_runner::execute::{RunPlan, boot_block};
use stallbench_runner::scenario::{Case, Catalogue, Injected, Problem, Request, Selection};

/// No cell that is asked for here has so many states.
const LIMITS: Limits = Limits { states: 200_000, bytes: 1 << 30 };

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
    RunPlan::of(&run, Duration::from_secs(60))
}

/// Its machine.
pub(crate) fn machine(host: &HostKvm, name: &str) -> Controlled {
    let plan = plan(name);
    Controlled::new(host, plan.vcpus, program().bytes(), &boot_block(&plan)).unwrap()
}

/// A search of all of it.
pub(crate) fn searched(host: &HostKvm, name: &str, settings: Settings) -> Search<'static> {
    let mut search =
        Search::new(machine(host, name), program(), settings).unwrap_or_else(|error| panic!("{name}: {error}"));
    let is_complete = search.run(LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(is_complete, "{name}: {:?}", search.counts());
    search
}
