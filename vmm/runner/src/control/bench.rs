//! The machine of a run, as the thread that watches it works on it for who is in.

use std::marker::PhantomData;

use serde_json::Value;
use stallbench_debug::live::{How, LiveError, Stop, Until};
use stallbench_state::dump::Dump;
use stallbench_state::machine::Registers;

/// What somebody who is in may have done.
pub(super) struct Bench<'m>(PhantomData<&'m ()>);

type Done<T> = Result<T, LiveError>;

impl Bench<'_> {
    pub(super) fn look(&mut self) -> Done<Dump> {
        Err(LiveError::Gone)
    }

    pub(super) fn stop(&mut self) -> Done<()> {
        Err(LiveError::Gone)
    }

    pub(super) fn run(&mut self, _: Until) -> Done<()> {
        Err(LiveError::Gone)
    }

    pub(super) fn step(&mut self, _: usize) -> Done<()> {
        Err(LiveError::Gone)
    }

    pub(super) fn add(&mut self, _: Stop) -> Done<(u32, How)> {
        Err(LiveError::Gone)
    }

    pub(super) fn remove(&mut self, _: u32) -> Done<bool> {
        Err(LiveError::Gone)
    }

    pub(super) fn stops(&self) -> Vec<(u32, Stop, How)> {
        Vec::new()
    }

    pub(super) fn write(&mut self, _: u64, _: &[u8]) -> Done<()> {
        Err(LiveError::Gone)
    }

    pub(super) fn set_registers(&mut self, _: usize, _: &Registers) -> Done<()> {
        Err(LiveError::Gone)
    }

    pub(super) fn interrupt(&mut self, _: usize, _: u8) -> Done<()> {
        Err(LiveError::Gone)
    }

    pub(super) fn nmi(&mut self, _: usize) -> Done<()> {
        Err(LiveError::Gone)
    }

    pub(super) fn release(&mut self, _: &str) -> Done<Vec<usize>> {
        Err(LiveError::Gone)
    }

    pub(super) fn prove(&mut self) -> Done<(String, Value)> {
        Err(LiveError::Gone)
    }

    pub(super) fn statistics(&self) -> Done<Vec<Vec<(String, u64)>>> {
        Err(LiveError::Gone)
    }
}
