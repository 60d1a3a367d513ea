//! Twins: a scenario that shows a bug and one with its fix, which has the other's name with `-fixed`.

use std::sync::Arc;

use stallbench_abi::knob::Knob;
use stallbench_abi::layout::MAX_VCPUS;

use super::catalogue::Catalogue;
use super::compile::{Axis, Checked};
use super::error::ScenarioError;
use super::knobs::text_of;
use super::{Pattern, Scenario};

/// What the name of a fixed scenario ends with.
const FIXED: &str = "-fixed";

/// A bug and its fix.
#[derive(Clone, Copy, Debug)]
pub struct Twins<'a> {
    /// The scenario that shows the bug.
    pub bug: &'a Arc<Scenario>,
    /// The one with the fix.
    pub fixed: &'a Arc<Scenario>,
}

/// A knob that two scenarios set differently: its values in each, as written, or its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which knob.
    pub knob: &'static Knob,
    /// In the scenario that shows the bug.
    pub bug: Vec<String>,
    /// In the one with the fix.
    pub fixed: Vec<String>,
}

impl Catalogue {
    /// The bugs of a pattern, each with its fix, in the order of the files.
    ///
    /// # Errors
    ///
    /// A file is wrong.
    pub fn twins(&self, pattern: &Pattern) -> Result<Vec<Twins<'_>>, ScenarioError> {
        let scenarios = self.scenarios_of(pattern)?;
        let twins = |bug: &&'_ Arc<Scenario>| {
            let name = format!("{}{FIXED}", bug.name());
            scenarios.iter().copied().find(|fixed| fixed.name() == name)
        };
        Ok(scenarios.iter().filter_map(|bug| Some(Twins { bug, fixed: twins(bug)? })).collect())
    }
}

/// The knobs that a bug and its fix set differently, in the order of their numbers.
pub fn differences(bug: &Checked, fixed: &Checked) -> Vec<Difference> {
    let mut knobs: Vec<_> = axes(bug).chain(axes(fixed)).map(|axis| axis.knob).collect();
    knobs.sort_by_key(|knob| knob.number);
    knobs.dedup_by_key(|knob| knob.number);
    let difference = |knob| {
        let (bug, fixed) = (values(bug, knob), values(fixed, knob));
        (bug.1 != fixed.1).then_some(Difference { knob, bug: bug.0, fixed: fixed.0 })
    };
    knobs.into_iter().filter_map(difference).collect()
}

fn axes(checked: &Checked) -> impl Iterator<Item = &Axis> {
    checked.set.iter().chain(&checked.matrix).chain(&checked.alternate)
}

/// The values of a knob as written, and what they mean: `0x10` is 16, and `last` is no number.
fn values(checked: &Checked, knob: &'static Knob) -> (Vec<String>, Vec<Result<u64, String>>) {
    let texts = match axes(checked).find(|axis| axis.knob.number == knob.number) {
        Some(axis) => axis.values.clone(),
        None => vec![text_of(knob, knob.default_value())],
    };
    let meaning = |text: &String| match text.as_str() {
        "last" => Err(text.clone()),
        _ => knob.parse(text, MAX_VCPUS).map_err(|_| text.clone()),
    };
    let meanings = texts.iter().map(meaning).collect();
    (texts, meanings)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::scenario::Case;

    const FILE: &str = "subject = 's'\nabout = ''\n\
        [[pattern]]\nid = 'C07'\nname = 'stops'\ntitle = 't'\nstory = 's'\nstep = 's'\n\
        [[scenario]]\nname = 'a'\npattern = 'C07'\ncase = 'c'\nstory = ''\nvcpus = [2]\n\
        set = { call = 'kmalloc-2.6.28', bound = 0x10 }\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n\
        [[scenario]]\nname = 'a-fixed'\npattern = 'C07'\ncase = 'c'\nstory = ''\nvcpus = [2]\n\
        set = { call = 'llist', initiator = 0, bound = 16 }\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n\
        [[scenario]]\nname = 'alone'\npattern = 'C07'\ncase = 'c'\nstory = ''\nvcpus = [2]\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n";

    #[test]
    fn bug_and_fix_are_paired_by_name_and_differ_in_what_is_set_differently() {
        let catalogue = Catalogue::new(&[("s", FILE)]);
        let twins = catalogue.twins(catalogue.pattern("C07").unwrap().unwrap()).unwrap();
        assert_eq!(twins.iter().map(|twins| twins.bug.name()).collect::<Vec<_>>(), ["s/a"]);
        let case = |name: &str| {
            Ok(Case { name: name.to_owned(), index: 0, knobs: u64::MAX, points: std::sync::Arc::default() })
        };
        let [bug, fixed] = [twins[0].bug, twins[0].fixed].map(|scenario| Checked::new(scenario, &case).unwrap());
        let found = differences(&bug, &fixed);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].knob.name, &*found[0].bug[0], &*found[0].fixed[0]), ("call", "kmalloc-2.6.28", "llist"));
    }
}
