//! What commands are asked of: a machine that stands still, with its memory and the guest's own file.

use std::ops::Range;

use stallbench_state::dump::{About, Dump};
use stallbench_state::machine::MachineState;
use stallbench_state::memory::{Memory, Snippet};

use crate::live::{Live, LiveError, State};
use crate::steps::Steps;

/// A machine that commands look at.
pub trait Target {
    /// What it is a machine of.
    fn about(&self) -> &About;

    /// All vCPUs, as they were when they were last stopped; captured in full.
    fn machine(&self) -> &MachineState;

    /// Guest-physical memory.
    fn memory(&self) -> &dyn Memory;

    /// Where guest-physical memory holds something other than zeros: ascending, none overlaps another.
    fn filled(&self) -> Vec<Range<u64>>;

    /// The guest's own ELF file.
    fn payload(&self) -> &[u8];

    /// Whether it can run on: what commands say of it may then be over at the next look.
    fn is_live(&self) -> bool;

    /// All of it as a dump, where it is one.
    fn dump(&self) -> Option<&Dump> {
        None
    }

    /// Before a command: looks again where the machine may have changed. What a target was before stays if that fails.
    fn refresh(&mut self) -> Result<(), LiveError> {
        Ok(())
    }

    /// The machine as it was at the look before this, where there was one.
    fn then(&self) -> Option<&Dump> {
        None
    }

    /// Whether it runs, where it can.
    fn state(&mut self) -> Option<State> {
        None
    }

    /// The trace in which it stands at a step, where there is one.
    fn steps(&mut self) -> Option<&mut dyn Steps> {
        None
    }

    /// The machine itself, where it can run on.
    fn live(&mut self) -> Option<&mut dyn Live> {
        None
    }
}

/// A machine that is over, out of a file.
impl Target for Dump {
    fn about(&self) -> &About {
        &self.about
    }

    fn machine(&self) -> &MachineState {
        &self.machine
    }

    fn memory(&self) -> &dyn Memory {
        &self.memory
    }

    fn filled(&self) -> Vec<Range<u64>> {
        let of = |run: &Snippet| run.base..run.base.saturating_add(run.bytes.len() as u64);
        self.memory.runs().iter().map(of).collect()
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn is_live(&self) -> bool {
        false
    }

    fn dump(&self) -> Option<&Dump> {
        Some(self)
    }
}
