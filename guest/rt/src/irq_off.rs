//! Sections with interrupts off whose length a scenario limits.
//!
//! A section is measured in visible steps: the events of all vCPUs between its ends, on the clock that they share. No time is
//! read; where the scenario gives no budget (knob `irq-off-budget`), nothing is recorded.

use stallbench_abi::event::{EventKind, text_at};
use stallbench_abi::knob::IRQ_OFF_BUDGET;

use crate::cpu::{self, InterruptsWere};
use crate::{boot, event};

/// A section that has begun.
#[must_use]
#[derive(Debug)]
pub struct Section {
    were: InterruptsWere,
    name: &'static str,
    began: Option<u64>,
}

/// Interrupts are off from here on. `name` is the function of the protocol, with its step if it has one.
pub fn begin(name: &'static str) -> Section {
    begun(name, cpu::disable_interrupts())
}

/// As [`begin`], where interrupts have just been turned off.
pub fn begun(name: &'static str, were: InterruptsWere) -> Section {
    let began = (boot::knob(&IRQ_OFF_BUDGET) != 0).then(|| event::place_of(EventKind::IRQ_OFF, 1, 0, text(name)));
    Section { were, name, began }
}

impl Section {
    /// Interrupts are as they were before it.
    pub fn end(self) {
        if let Some(began) = self.began {
            event::record(EventKind::IRQ_OFF, 0, began, text(self.name));
        }
        cpu::restore_interrupts(self.were);
    }
}

/// Does work with interrupts off.
pub fn section<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let section = begin(name);
    let result = work();
    section.end();
    result
}

/// A visible step of work that leaves no other trace, such as writing back a part of a cache.
pub fn step() {
    event::record(EventKind::STEP, 0, 0, 0);
}

fn text(name: &'static str) -> u64 {
    text_at(name.as_ptr() as u64, name.len())
}
