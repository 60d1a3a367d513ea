//! Replaying a trace: every step on KVM again, and at its end a free machine, as after a search.

use std::sync::atomic::AtomicBool;

use stallbench_core::HostKvm;
use stallbench_core::controlled::{ControlError, Controlled};
use stallbench_explore::{
    Against, Difference, Event, ExploreError, Replayed, Search, Settings, StateHash, Trace, chain, missing_symbol,
};
use stallbench_state::certificate::Certificate;
use stallbench_state::program::Program;
use thiserror::Error;

use crate::dump::{Keep, Moment};
use crate::execute::{self, ExecuteError, RunPlan, boot_block};
use crate::explore::{controlled, death, safety};
use crate::outcome::RunOutcome;
use crate::trace::boot_hash;

/// Why a trace cannot be followed. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It names a model that is not known.
    #[error("follow it under the model '{text}': {expected}")]
    Model {
        /// As the trace has it.
        text: String,
        /// What is.
        expected: &'static str,
    },
    /// What the host hands the guest is not what it was.
    #[error("make its machine again: what the host hands the guest has changed since it was written")]
    Boot,
    /// Its payload is another one, in which a function is missing.
    #[error(
        "follow it with this payload (sha256 {now}), for it is of another (sha256 {recorded}), and this one has no function {function}"
    )]
    Payload {
        /// Of this one.
        now: String,
        /// Of the one in the trace.
        recorded: String,
        /// Which is missing.
        function: String,
    },
    /// The host cannot.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest cannot be driven.
    #[error(transparent)]
    Explore(#[from] ExploreError),
    /// The free machine could not be run.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

impl ReplayError {
    /// Whether the request is wrong, and not the host.
    pub fn is_of_request(&self) -> bool {
        matches!(self, Self::Model { .. } | Self::Boot | Self::Payload { .. })
    }
}

/// A trace that was followed, and its machine.
#[derive(Debug)]
pub struct Replay<'p> {
    search: Search<'p>,
    replayed: Replayed,
    against: Against,
    plan: RunPlan,
    chain: StateHash,
    expects_caches_off: bool,
}

/// The verdict of which a free machine knows nothing: it is looked at only when it stands still.
const CACHES_OFF: &str = "breach cache-off";

impl<'p> Replay<'p> {
    /// Makes the machine of a trace, and follows so many steps at most, up to the first difference.
    ///
    /// # Errors
    ///
    /// The trace is not one of this run, or the host cannot.
    pub fn new(
        host: &HostKvm,
        program: &'p Program,
        plan: &RunPlan,
        trace: &Trace,
        most: usize,
    ) -> Result<Self, ReplayError> {
        let plan = RunPlan { keep: Keep::default(), ..controlled(plan) };
        let settings = trace.of.model.parse::<Settings>();
        let settings = settings.map_err(|expected| ReplayError::Model { text: trace.of.model.clone(), expected })?;
        if plan.vcpus != trace.of.vcpus || boot_hash(program, &plan) != trace.of.boot {
            return Err(ReplayError::Boot);
        }
        let against = against(program, trace)?;
        let machine = Controlled::new(host, plan.vcpus, program.bytes(), &boot_block(&plan))?;
        let mut search = Search::new(machine, program, settings)?;
        let start = search.start_hash();
        let replayed = search.replay(trace, against, most)?;
        let chain = chain(start, replayed.events.iter().map(|event| event.hash));
        let expects_caches_off = trace.verdict == CACHES_OFF;
        Ok(Self { search, replayed, against, plan, chain, expects_caches_off })
    }

    /// Whether it is of another payload, so that places are those of symbols, and hashes are not compared.
    pub fn is_rebased(&self) -> bool {
        self.against == Against::Symbols
    }

    /// Where it went another way than the trace.
    pub fn difference(&self) -> Option<&Difference> {
        self.replayed.difference.as_ref()
    }

    /// What happened.
    pub fn events(&self) -> &[Event] {
        &self.replayed.events
    }

    /// One hash for all states that it came through.
    pub fn chain(&self) -> StateHash {
        self.chain
    }

    /// Whether it ended in the state in which it was after so many steps.
    pub fn is_back(&self, steps: usize) -> bool {
        self.search.is_back(&self.replayed.way, steps)
    }

    /// Where each vCPU stands after so many steps.
    pub fn standing(&self, steps: usize) -> Vec<String> {
        self.search.standing(&self.replayed.way, steps)
    }

    /// The machine after so many steps: each of them is executed once more, from the start line on.
    ///
    /// # Errors
    ///
    /// KVM did not do what it did before.
    pub fn moment(&mut self, steps: usize) -> Result<Moment, ExploreError> {
        let short = self.replayed.way.steps().saturating_sub(steps);
        let moment = self.search.moment(&self.replayed.way, short)?;
        Ok(Moment { machine: moment.machine, memory: moment.memory })
    }

    /// What a free machine comes to from the end of the trace; where that has caches off on one vCPU alone, or a vCPU that has died, that it
    /// has.
    ///
    /// # Errors
    ///
    /// KVM did not do what it did before, or the free machine could not be run.
    pub fn verdict(
        &mut self,
        host: &HostKvm,
        program: &Program,
        interrupt: &AtomicBool,
    ) -> Result<RunOutcome, ReplayError> {
        let short = self.search.before_fault(&self.replayed.way);
        let moment = self.moment(self.replayed.way.steps() - short)?;
        let free = execute::resume(host, program, &self.plan, &moment, interrupt)?;
        if short > 0 {
            let found = death::found(&mut self.search, program, &self.replayed.way)?;
            return Ok(death::outcome(found, free));
        }
        let seen = self.expects_caches_off.then(|| self.search.caches_off_behind(&self.replayed.way)).flatten();
        Ok(match seen {
            Some(broken) => safety::outcome(&broken, free),
            None => free,
        })
    }
}

/// What a replay with that payload is compared by.
fn against(program: &Program, trace: &Trace) -> Result<Against, ReplayError> {
    let now = Certificate::digest(program.bytes());
    if now == trace.of.payload {
        return Ok(Against::All);
    }
    match missing_symbol(trace, program) {
        Some(function) => Err(ReplayError::Payload { now, recorded: trace.of.payload.clone(), function }),
        None => Ok(Against::Symbols),
    }
}
