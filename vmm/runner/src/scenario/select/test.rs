//! Patterns against names.

use super::*;

const FILE: &str = "subject = 's'\nabout = ''\n\
    [[scenario]]\nname = 'small'\ncase = 'c'\nstory = ''\nvcpus = [2]\ngroups = ['table']\n\
    [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n\
    [[scenario]]\nname = 'matrix'\ncase = 'c'\nstory = ''\nvcpus = [2, 4]\nset = { call = 'llist' }\n\
    matrix = { alloc = ['ok', 'nth:1'] }\ngroups = ['table']\n\
    [[scenario.expect]]\nwhen = { alloc = 'nth', vcpus = '4..' }\nverdict = 'stall'\nkind = 'deadlock'\nbecause = ''\n\
    [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n\
    [[scenario]]\nname = 'large'\ncase = 'c'\nstory = ''\nvcpus = [255]\ndefault = false\n\
    [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n";

fn case(name: &str) -> Result<Case, Problem> {
    Ok(Case { name: name.to_owned(), index: 0, knobs: 0b1111, points: Arc::default() })
}

fn select(request: &Request) -> Result<Vec<Run>, ScenarioError> {
    Selection::new(&Catalogue::new(&[("s", FILE)]), request, &case)
        .map(|selection| (0..selection.len()).filter_map(|index| selection.get(index)).collect())
}

fn by_name(name: &str) -> Result<Vec<Run>, ScenarioError> {
    select(&Request { names: vec![name.to_owned()], ..Request::default() })
}

fn names(runs: &[Run]) -> Vec<&str> {
    runs.iter().map(|run| &*run.name).collect()
}

#[test]
fn nothing_named_selects_the_default() {
    assert_eq!(select(&Request::default()).unwrap().len(), 5);
}

#[test]
fn scenario_out_of_the_default_runs_by_name() {
    assert_eq!(names(&by_name("s/large").unwrap()), ["s/large@vcpus=255"]);
    assert_eq!(by_name("s").unwrap().len(), 6);
    assert_eq!(by_name("table").unwrap().len(), 5);
}

#[test]
fn every_printed_name_selects_exactly_its_cell() {
    for run in by_name("s").unwrap() {
        assert_eq!(names(&by_name(&run.name).unwrap()), [&*run.name]);
    }
}

#[test]
fn part_of_a_name_selects_all_cells_that_fit() {
    assert_eq!(by_name("s/matrix@alloc=nth").unwrap().len(), 2);
    assert_eq!(by_name("s/matrix@call=llist,vcpus=2").unwrap().len(), 2);
}

#[test]
fn filter_of_a_subject_or_group_picks_among_all_of_its_cells() {
    assert_eq!(names(&by_name("table@vcpus=2,alloc=ok").unwrap()), ["s/small@vcpus=2", "s/matrix@vcpus=2,alloc=ok"]);
    assert_eq!(by_name("s@call=llist,vcpus=4").unwrap().len(), 2);
    let error = |name: &str| by_name(name).unwrap_err().to_string();
    assert_eq!(error("s@alloc=pool:9"), "s has no cell 'alloc=pool:9'; none of its scenarios has");
    assert!(error("s@aloc=ok").contains("did you mean alloc"));
}

#[test]
fn undeclared_vcpus_run_where_an_expectation_covers_them() {
    let runs = by_name("s/matrix@vcpus=5,alloc=nth:1").unwrap();
    assert_eq!((runs.len(), runs[0].vcpus, runs[0].expectation.verdict), (1, 5, "stall"));
    let request = Request { names: vec!["table".into()], vcpus: vec![4, 9], ..Request::default() };
    assert_eq!(names(&select(&request).unwrap()), ["s/matrix@vcpus=4,alloc=ok", "s/matrix@vcpus=4,alloc=nth:1"]);
}

#[test]
fn unknown_names_bring_the_nearest() {
    assert!(by_name("s/matrx").unwrap_err().to_string().contains("did you mean s/matrix"));
    assert!(by_name("tabel").unwrap_err().to_string().contains("did you mean table"));
    assert!(by_name("qqq").unwrap_err().to_string().contains("the subjects are s; stallbench list shows them all"));
    assert!(by_name("s/matrix@aloc=ok").unwrap_err().to_string().contains("did you mean alloc"));
    let message = by_name("s/matrix@alloc=fail").unwrap_err().to_string();
    assert_eq!(message, "s/matrix has no cell 'alloc=fail'; it has vcpus 2, 4; alloc ok, nth:1");
}

#[test]
fn long_name_is_refused_for_its_length_and_cut() {
    let message = by_name(&"x".repeat(5000)).unwrap_err().to_string();
    assert!(message.starts_with("no name has 5000 characters: 'xxx") && message.len() < 100, "{message}");
}

#[test]
fn set_replaces_the_knob_and_keeps_the_expectation() {
    let names = vec!["s/matrix@vcpus=4,alloc=nth:1".to_owned()];
    let runs = select(&Request { names, set: vec!["alloc=ok".into()], ..Request::default() }).unwrap();
    let alloc = stallbench_abi::knob::ALLOC.number as usize;
    assert_eq!((runs[0].knobs[alloc], runs[0].expectation.verdict), (0, "stall"));
}

#[test]
fn initiator_of_the_expectation_is_the_one_that_is_set() {
    let everything = |_: &str| Ok(Case { name: "c".to_owned(), index: 0, knobs: u64::MAX, points: Arc::default() });
    let request = Request { names: vec!["s/matrix".into()], set: vec!["initiator=last".into()], ..Request::default() };
    let selection = Selection::new(&Catalogue::new(&[("s", FILE)]), &request, &everything).unwrap();
    let initiators: Vec<_> = selection.cells.iter().map(|run| run.size.initiator).collect();
    assert_eq!(initiators, [1, 1, 3, 3]);
}

#[test]
fn bad_settings_are_named() {
    let set = |text: &str| select(&Request { set: vec![text.into()], ..Request::default() }).unwrap_err().to_string();
    assert!(set("alloc").contains("--set alloc: 'alloc' is no setting, expected KNOB=VALUE"));
    assert!(set("alloc=fial").contains("did you mean fail"));
    assert!(set("vcpus=2").contains("--set vcpus=2: vcpus is no knob"));
    assert!(set("fence=off").contains("case 'c' takes no knob 'fence'"));
}

#[test]
fn vcpus_beyond_the_host_are_refused() {
    let with = |vcpus| select(&Request { vcpus: vec![vcpus], ..Request::default() });
    assert!(with(0).unwrap_err().to_string().contains("--vcpus: 0 vCPUs, and this host gives 1 to 255"));
    assert!(with(256).is_err());
    let selection = Selection { cells: by_name("s/large").unwrap(), repeat: 1 };
    assert!(selection.check_host(64).unwrap_err().to_string().contains("255 vCPUs, and this host gives 1 to 64"));
}

#[test]
fn repetitions_count_the_seed_up() {
    let request = Request { names: vec!["s/small".into()], repeat: 3, seed: 7, ..Request::default() };
    let seeds: Vec<_> = select(&request).unwrap().iter().map(|run| (run.repetition, run.seed)).collect();
    assert_eq!(seeds, [(0, 7), (1, 8), (2, 9)]);
}
