//! Somebody who looks into runs while they last: the door that lets them in, one at a time.
//!
//! A run is watched by one thread, and nobody else touches its machine. Who is let in, an [`Attached`], hands that thread what is to be
//! done, and it does it between two polls, while the machine stands still. What is on its way lies on the desk between the two.

mod attached;
mod bench;
mod desk;
mod guest;
mod hand;
mod hits;
mod interventions;
mod look;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stallbench_core::{HostKvm, Machine, StartError};
use stallbench_debug::live::Why;
use stallbench_state::dump::About;
use thiserror::Error;

use crate::outcome::RunOutcome;
use crate::report::human::block;
use crate::report::result_json;
use crate::result::RunResult;
use crate::scenario::Run;
pub use attached::Attached;
pub(crate) use bench::Bench;
use desk::Desk;
pub(crate) use guest::Guest;

/// The door of a process: runs that are given it let in who comes.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Desk>);

/// Somebody looks into it already, and one at a time does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("somebody looks into it already")]
pub struct Taken;

impl Control {
    /// A door with nobody in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets somebody in, until the [`Attached`] is dropped. `hold`: the run that begins next stands still before its first instruction.
    ///
    /// # Errors
    ///
    /// [`Taken`]: somebody is in.
    pub fn attach(&self, hold: bool) -> Result<Attached, Taken> {
        if self.0.enter(hold) { Ok(Attached::new(Arc::clone(&self.0))) } else { Err(Taken) }
    }

    /// The door of one run, for its plan: with what a look at its machine says of it.
    pub fn of(&self, run: &Run, about: About) -> Controlled {
        Controlled { control: self.clone(), run: Box::new(run.clone()), about }
    }

    /// Waits until there is a machine, no longer than `timeout`: whether there is.
    pub fn wait_for_machine(&self, timeout: Duration) -> bool {
        self.0.wait_for_machine(timeout)
    }

    /// Says that no run will follow: whoever waits for one waits no longer.
    pub fn close(&self) {
        self.0.close();
    }

    /// Whether no run will follow.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// The door of one run.
#[derive(Clone, Debug)]
pub struct Controlled {
    pub(crate) control: Control,
    /// What is run, to say at the end whether that came out which was to.
    pub(crate) run: Box<Run>,
    /// What a copy of its machine is of.
    pub(crate) about: About,
}

impl Controlled {
    /// Opens it for a run that begins.
    pub(crate) fn open(&self) -> Opened<'_> {
        Opened { door: self, hold: self.control.0.begin(), result: None, uncounted: None }
    }

    /// Whether who is in has the run end.
    pub(crate) fn is_ending(&self) -> bool {
        self.control.0.is_ending()
    }
}

/// The door of a run that has begun. It closes when this is dropped.
#[derive(Debug)]
pub(crate) struct Opened<'p> {
    door: &'p Controlled,
    /// The machine is to stand still at its start.
    hold: bool,
    /// What came out, as soon as that is known.
    result: Option<Value>,
    /// Why nobody is told what KVM counts, where the host failed to keep it.
    uncounted: Option<String>,
}

impl Opened<'_> {
    fn about(&self) -> About {
        About { result: self.result.clone(), ..self.door.about.clone() }
    }

    /// The run has this outcome: what to tell of it.
    fn end(&mut self, outcome: &RunOutcome) -> Why {
        let result = RunResult::new((*self.door.run).clone(), outcome.clone());
        // It fails for no result: they have no maps with other keys than strings.
        let json = result_json(&result).unwrap_or_default();
        self.result = Some(json.clone());
        Why::End { text: block(&result, false), result: json }
    }

    fn desk(&self) -> &Desk {
        &self.door.control.0
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.desk().finish();
    }
}

/// Starts a machine. One that is to stand still at its start executes nothing before the pause that follows has ended.
pub(crate) fn start(machine: &mut Machine, host: &HostKvm, door: Option<&mut Opened<'_>>) -> Result<(), StartError> {
    let Some(door) = door else { return machine.start() };
    // The run does without; whoever asks for them is told so.
    door.uncounted = machine.keep_statistics(host).err().map(|error| error.to_string());
    if door.hold { machine.start_held() } else { machine.start() }
}
