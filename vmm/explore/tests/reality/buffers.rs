//! Stores that come to memory as late as they can lead to what stores lead to that come to it at any time.

use std::collections::BTreeSet;

use stallbench_explore::{Model, Search, Settings};

use crate::cell::{host, searched};

/// What lies in the arena at each end of the run.
fn ends(search: &Search<'_>) -> BTreeSet<Vec<(u64, u64)>> {
    search.ends().map(|end| end.words()).collect()
}

#[test]
fn store_is_seen_no_later_than_it_matters() {
    let Some(host) = host() else { return };
    for name in ["acceptance/lock-and-call@vcpus=2", "acceptance/early-done-fixed@vcpus=2", "mtrr/percpu-lock@vcpus=2"]
    {
        let with = |flushes_any_time| {
            searched(&host, name, Settings { model: Model::tso(), flushes_any_time, ..Settings::default() })
        };
        let (late, any_time) = (with(false), with(true));
        assert_eq!(ends(&late), ends(&any_time), "{name}");
        assert_eq!(late.findings().stuck > 0, any_time.findings().stuck > 0, "{name}");
        assert!(late.counts().states < any_time.counts().states, "{name}");
    }
}
