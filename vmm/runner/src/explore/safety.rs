//! The verdict of a way that breaks what must hold while a run goes on.
//!
//! What an event of the guest says, a free machine judges that goes on from there: its rings hold the events of the whole way. That caches
//! were off is the search's to say: a free machine is looked at only when it stands still.

use stallbench_explore::{Broken, Invariant};

use super::unconfirmed;
use crate::oracle::cache_off::CacheOff;
use crate::outcome::{Breach, BreachKind, RunOutcome, Verdict};

/// What it is, from what a free machine comes to behind it.
pub(crate) fn outcome(broken: &Broken, free: RunOutcome) -> RunOutcome {
    match breach(&broken.what) {
        Err(what) => unconfirmed(free, what),
        Ok(_) if !matches!(free.verdict, Verdict::Pass | Verdict::Breach(_)) => free,
        Ok(breach) => {
            let mut breaches = free.breaches;
            breaches.insert(0, breach.clone());
            RunOutcome { verdict: Verdict::Breach(breach), breaches, ..free }
        }
    }
}

/// The breach that the search has seen, or what a free machine is to confirm.
fn breach(what: &Invariant) -> Result<Breach, &'static str> {
    match what {
        Invariant::Wait0 => Err("a call with wait=0 that waits for its own callback"),
        Invariant::Lifetime => Err("a step that uses an object whose life is over"),
        Invariant::CachesOff { vcpu, function, outside } => {
            let found = CacheOff { vcpu: *vcpu, outside: outside.iter().copied().collect() };
            Ok(Breach { kind: BreachKind::CacheOff, vcpu: *vcpu, site: function.clone(), reason: found.reason() })
        }
    }
}
