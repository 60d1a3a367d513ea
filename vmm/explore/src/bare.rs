//! What a search asks KVM for, and that alone: what it costs without states, tables and everything else that is ours.

use stallbench_core::controlled::Tape;

use crate::search::{ExploreError, Search, Way};

impl Search<'_> {
    /// Puts the vCPUs to the start line, and keeps what KVM is asked for from then on.
    pub fn record(&mut self) {
        self.stage.machine().record();
        self.begin();
    }

    /// What it was asked for since then.
    pub fn recorded(&mut self) -> Tape {
        self.stage.machine().recorded()
    }

    /// Asks KVM for all of that again: whether every stop was the same.
    pub fn play(&mut self, tape: &Tape) -> bool {
        let same = self.stage.machine().play(tape);
        // Where they stand now nobody knows.
        self.begin();
        self.rest();
        same
    }

    /// Has KVM go a way once more, forward: each vCPU from where its last step has left it.
    ///
    /// # Errors
    ///
    /// It did not do on that way what it did before.
    pub fn follow_way(&mut self, way: &Way) -> Result<(), ExploreError> {
        self.walk(&way.choices).map(drop)
    }

    fn begin(&mut self) {
        let first = self.graph.state(0);
        self.stage.rewind(&first.locals);
    }
}
