//! A machine that stands at a step of a trace, and can be put at any other.

use serde_json::Value;

/// What is asked of a trace.
pub trait Steps {
    /// After how many steps the machine stands.
    fn at(&self) -> usize;

    /// How many steps there are.
    fn last(&self) -> usize;

    /// Puts the machine where it stood after so many steps, [`Self::last`] at most.
    ///
    /// # Errors
    ///
    /// Why it could not be put there, in one line; the machine is as it was.
    fn go(&mut self, step: usize) -> Result<(), String>;

    /// What a step did, from 1 on; for people.
    fn told(&self, step: usize) -> String;

    /// What a step did, for programs: an object.
    fn data(&self, step: usize) -> Value;

    /// The vCPU of a step.
    fn vcpu(&self, step: usize) -> Option<usize>;
}
