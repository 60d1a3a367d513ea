//! Somebody who looks into runs while they last: the door that lets them in, one at a time.
//!
//! A run is watched by one thread, and nobody else touches its machine. Who is let in, an [`Attached`], hands that thread what is to be
//! done, and it does it between two polls, while the machine stands still. What is on its way lies on the [`desk`] between the two.

mod attached;
mod bench;
mod desk;

use std::sync::Arc;
use std::time::Duration;

use stallbench_state::dump::About;
use thiserror::Error;

use crate::scenario::Run;
pub use attached::Attached;
use desk::Desk;

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
#[expect(dead_code, reason = "no machine is looked into yet")]
pub struct Controlled {
    pub(crate) control: Control,
    /// What is run, to say at the end whether that came out which was to.
    pub(crate) run: Box<Run>,
    /// What a copy of its machine is of.
    pub(crate) about: About,
}
